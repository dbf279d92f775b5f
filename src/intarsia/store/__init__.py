"""A pool's files: read checked, written whole."""
