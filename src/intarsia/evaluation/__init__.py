"""Measures: accuracy, forgetting, editing, and the theorem."""
