"""Adapters of PEFT: modules and compositions out, a LoRA from elsewhere in."""
