"""Where backbones come from: one file and one line here each.

A name is ``<kind>`` or ``<kind>/<which>``, with options behind a ``?``. Another package can add a kind of its own to
``LOADERS``.
"""

from collections.abc import Callable

from torch import nn

from intarsia.backbones.libraries.builtin import BUILTIN, load_builtin_network
from intarsia.backbones.libraries.loaded import Loaded
from intarsia.backbones.libraries.timm import load_timm
from intarsia.backbones.libraries.transformers import load_transformers
from intarsia.backbones.locations import Options, parsed
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.errors import InputError

Loader = Callable[[str, Options], tuple[nn.Module, Preprocessing] | Loaded]
"""What stands behind the first slash, and options -> the network without its classifier, and how it wants its images.

A loader that has no use for an option that is given refuses it.
"""
LOADERS: dict[str, Loader] = {
    BUILTIN: load_builtin_network,
    "timm": load_timm,
    "hf": load_transformers,
}
SHOWN = {
    BUILTIN: f"{BUILTIN!r} (built in)",
    "timm": "'timm/<name>', 'timm/<name>@<weights.safetensors>', 'timm/hf-hub:<repository>', 'timm/local-dir:<folder>'",
    "hf": "'hf/<repository or folder of transformers>'",
}
"""How a name is shown; one that is not here as ``<kind>/<which>``."""


def load_network(spec: str) -> Loaded:
    """A network by name, and how it wants its images.

    Raises:
        InputError: there is none of that name, or its weights cannot be had or do not fit.
    """
    name, options = parsed(spec)
    kind, _, which = name.partition("/")
    if kind not in LOADERS or bool(which) == (kind == BUILTIN):
        known = ", ".join(SHOWN.get(each, f"'{each}/<which>'") for each in LOADERS)
        raise InputError(f"unknown backbone {name!r}: expected {known}")
    found = LOADERS[kind](which, options)
    return found if isinstance(found, Loaded) else Loaded(found[0], found[1])
