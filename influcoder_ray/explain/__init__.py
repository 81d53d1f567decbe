"""Explain: why the model says something, asked of a finished run's output folder, without Ray."""
