"""Training: any transformers causal LM and any method, through one path."""
