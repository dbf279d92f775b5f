"""Where backbones come from: one file and one line here each.

A name is ``<kind>`` or ``<kind>/<which>``. Another package can add a kind of its own to ``LOADERS``.
"""

from collections.abc import Callable

from torch import nn

from intarsia.backbones.builtin import BUILTIN, load_builtin_network
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.timm import load_timm
from intarsia.errors import InputError

Loader = Callable[[str], tuple[nn.Module, Preprocessing]]
"""What stands behind the first slash -> the network without its classifier, and how it wants its images."""
LOADERS: dict[str, Loader] = {
    BUILTIN: lambda _: load_builtin_network(),
    "timm": load_timm,
}
SHOWN = {BUILTIN: f"{BUILTIN!r} (built in)", "timm": "'timm/<name>', 'timm/<name>@<weights.safetensors>'"}
"""How a name is shown; one that is not here as ``<kind>/<which>``."""


def load_network(name: str) -> tuple[nn.Module, Preprocessing]:
    """A network by name, and how it wants its images.

    Raises:
        InputError: there is none of that name, or its weights cannot be had or do not fit.
    """
    kind, _, which = name.partition("/")
    if kind not in LOADERS or bool(which) == (kind == BUILTIN):
        known = ", ".join(SHOWN.get(each, f"'{each}/<which>'") for each in LOADERS)
        raise InputError(f"unknown backbone {name!r}: expected {known}")
    return LOADERS[kind](which)
