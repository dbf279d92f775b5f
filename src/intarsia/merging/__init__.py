"""Compositions of task vectors, and the models made of them."""
