"""The errors that a user's own input can cause."""


class InputError(Exception):
    """Bad input: its message names the thing, what was found, what was expected and what to do.

    The command line prints the message alone and exits with code 2.
    """


class DivergenceError(InputError):
    """A number left the finite ones; the pool is as it was before the task."""
