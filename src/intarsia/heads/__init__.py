"""Heads: pre-tuning, alignment, discriminant."""
