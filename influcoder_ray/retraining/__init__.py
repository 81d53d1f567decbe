"""Retraining: what a model becomes when it is fine-tuned with, and without, what influence points at.

Influence predicts what training on an example does; this package trains, and looks. `designs` says on which
parts of a pool the model is fine-tuned, `finetuning` fine-tunes it, `outcomes` reads off the held-out losses
what the predictions were worth.
"""
