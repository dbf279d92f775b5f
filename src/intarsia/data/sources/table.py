"""The sources that a stream can be loaded from: one file and one line here each.

A spec is ``<kind>`` or ``<kind>:<where>``. Another package can add a kind of its own to ``SOURCES``.
"""

from collections.abc import Callable

from intarsia.data.sources.builtin import open_builtin
from intarsia.data.sources.folder import open_folder
from intarsia.data.sources.source import Source
from intarsia.errors import InputError

Opener = Callable[[str, float | None, int], Source]
"""What stands behind the colon, the fraction held out to test (None: there are test images), its seed -> source."""
SOURCES: dict[str, Opener] = {
    "sketches": lambda _, fraction, seed: open_builtin("sketches", fraction),
    "chalk": lambda _, fraction, seed: open_builtin("chalk", fraction),
    "folder": open_folder,
}
SHOWN = {"folder": "folder:<dir>"}
"""How a spec is shown that does not stand alone."""


def open_source(spec: str, test_fraction: float | None, seed: int) -> Source:
    """The source that ``TaskStream.load`` is told of.

    Raises:
        InputError: there is none of that name, or a test fraction is missing or too much.
    """
    kind, _, where = spec.partition(":")
    if kind not in SOURCES or (kind in SHOWN) != bool(where):
        known = ", ".join(SHOWN.get(name, name) for name in SOURCES)
        raise InputError(f"There is no stream {spec!r}: expected one of {known}.")
    return SOURCES[kind](where, test_fraction, seed)
