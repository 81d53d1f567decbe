"""Evaluation: how far rankings agree with exact influence, and with answers that are known."""
