"""Verbs that exchange models with other libraries."""
