"""Networks of libraries: built in, timm, transformers; and how a network is built again without its weights."""
