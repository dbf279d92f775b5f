"""Verbs that open a page in the browser."""
