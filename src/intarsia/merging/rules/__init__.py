"""Merge rules from the literature, one file each, on task vectors."""
