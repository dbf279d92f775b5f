"""Names to choose from, without torch."""

DEFAULT_STREAM = "chalk"
"""The stream that is loaded if none is named, in Python and on the command line: modules pay on it."""
