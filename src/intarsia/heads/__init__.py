"""Linear heads: pre-tuning, alignment, discriminant."""
