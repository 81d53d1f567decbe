"""Training-data attribution for language models, as distributed batch stages on Ray."""

__version__ = "0.1.0"
