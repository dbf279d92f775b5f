"""The errors that a user's own input can cause."""


class InputError(Exception):
    """Bad input: its message names the thing, what was found, what was expected and what to do.

    The command line prints the message alone and exits with code 2.
    """


class DivergenceError(InputError):
    """A number left the finite ones; the pool is as it was before the task."""


class LostProcessError(Exception):
    """Another process of a run has ended, and this one cannot go on alone.

    Args:
        message: what to do.
        told: by another process, too.
    """

    def __init__(self, message: str, *, told: bool) -> None:
        super().__init__(message)
        self.told = told


class UnknownTaskError(InputError, KeyError):
    """A task that a pool does not have: ``pool.get(task)`` gives None for it, as any mapping does."""

    __str__ = Exception.__str__  # a KeyError's is in quotation marks


def not_installed(what: str, library: str, extra: str, error: ImportError) -> InputError:
    """That a library cannot be imported which this package needs for some things only.

    Args:
        what: needs it.
        library: its name.
        extra: of this package that brings it.
        error: of the import.
    """
    return InputError(
        f"{what} needs {library}, which cannot be imported ({first_line(error)}): pip install 'intarsia[{extra}]'"
    )


def first_line(error: BaseException) -> str:
    """Of an error's message, 200 letters at most; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
