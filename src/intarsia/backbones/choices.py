"""The built-in backbone by name, and the weights that are tuned if nothing else is said."""

BUILTIN = "vit_sketch"


TARGETS = ("*attn.qkv", "*attn.q", "*attn.k", "*attn.v", "*attn.proj", "*mlp.fc1", "*mlp.fc2")
