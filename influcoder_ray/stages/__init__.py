"""The stages: each a pure function of its input, and the few lines that run it on Ray."""
