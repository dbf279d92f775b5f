"""The built-in backbone's name, canonical names of layers, and the layers that patterns name.

Weights have the names of timm's vision transformers (``blocks.3.attn.qkv.weight``), whatever the library a network
comes from calls them.
"""

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from intarsia.errors import InputError

if TYPE_CHECKING:
    from torch import nn

BUILTIN = "vit_sketch"
"""The built-in backbone."""


TARGETS = ("*attn.qkv", "*attn.q", "*attn.k", "*attn.v", "*attn.proj", "*mlp.fc1", "*mlp.fc2")
"""The layers whose weights are trained if nothing else is said."""


_CANONICAL = (  # how other libraries call a vision transformer's layers -> how timm does
    (
        re.compile(r"^(?:.*\.)?(?:encoder\.)?layers?\.(\d+)\.attention\.attention\.(q|k|v)(?:uery|ey|alue)$"),
        r"blocks.\1.attn.\2",
    ),
    (re.compile(r"^(?:.*\.)?(?:encoder\.)?layers?\.(\d+)\.attention\.(q|k|v)_proj$"), r"blocks.\1.attn.\2"),
    (re.compile(r"^(?:.*\.)?(?:encoder\.)?layers?\.(\d+)\.attention\.output\.dense$"), r"blocks.\1.attn.proj"),
    (re.compile(r"^(?:.*\.)?(?:encoder\.)?layers?\.(\d+)\.attention\.o_proj$"), r"blocks.\1.attn.proj"),
    (re.compile(r"^(?:.*\.)?(?:encoder\.)?layers?\.(\d+)\.intermediate\.dense$"), r"blocks.\1.mlp.fc1"),
    (re.compile(r"^(?:.*\.)?(?:encoder\.)?layers?\.(\d+)\.output\.dense$"), r"blocks.\1.mlp.fc2"),
    (re.compile(r"^(?:.*\.)?(?:encoder\.)?layers?\.(\d+)\.mlp\.(fc[12])$"), r"blocks.\1.mlp.\2"),
)


def canonical(path: str) -> str:
    """The canonical name of a layer path: timm's name for the same layer, the path itself where no rule applies."""
    for pattern, name in _CANONICAL:
        if pattern.match(path):
            return pattern.sub(name, path)
    return path


def match_targets(model: "nn.Module", name: str, patterns: Sequence[str]) -> dict[str, str]:
    """Canonical weight name -> path of the linear layers that patterns name.

    Raises:
        InputError: a pattern matches none.
    """
    from torch import nn  # noqa: PLC0415  slow to load, and the names above are needed by flags

    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    shared = {name for name, count in Counter(map(canonical, paths)).items() if count > 1}  # two towers, say
    layers = {path if canonical(path) in shared else canonical(path): path for path in paths}
    unmatched = [p for p in patterns if not any(fnmatchcase(layer, p) for layer in layers)]
    matched = {f"{n}.weight": path for n, path in layers.items() if any(fnmatchcase(n, p) for p in patterns)}
    first = {id(model.get_submodule(path).get_parameter("weight")): name for name, path in reversed(matched.items())}
    chosen = {name: path for name, path in matched.items() if name in first.values()}  # one name per shared weight
    if chosen and (not unmatched or tuple(patterns) == TARGETS):
        return chosen
    some = ", ".join(list(layers)[:6]) or "none at all"
    raise InputError(
        f"target {unmatched[0] if unmatched else patterns!r} matches no linear layer of backbone {name}; "
        f"its linear layers are {some}{', ...' if len(layers) > 6 else ''}. Name them by pattern, for example '*.qkv'"
    )
