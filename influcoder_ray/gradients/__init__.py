"""The teacher: a frozen causal LM with a LoRA adapter -> per-example gradients -> CountSketch."""
