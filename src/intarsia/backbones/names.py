"""Canonical names of layers, and the layers that targets name.

Weights have the names of timm's vision transformers (``blocks.3.attn.qkv.weight``), whatever the library a network
comes from calls them.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from intarsia.errors import InputError

if TYPE_CHECKING:
    from torch import nn

BUILTIN = "vit_sketch"
"""The built-in backbone."""


TARGETS = ("attention", "mlp")
"""What is trained if nothing else is said: both kinds of layers that a transformer block has."""


KINDS = {
    "attention": re.compile(r"(?:^|\.)\w*att\w*\.(?:qkv|qk|kv|q|k|v|proj)$"),
    "mlp": re.compile(
        r"(?:^|\.)(?:mlp\w*|ffn|feed_?forward)\.(?:fc[12]|fc1_[gx]|(?:gate|up|down)_proj|w[123]|w12|\d+)$"
    ),
}
"""Kind of layer -> the canonical names it has, under any library; of gated MLPs too."""
NO_BLOCK = re.compile(r"(?:^|\.)(?:attn_?pool\w*|head|pooler|pool)\.")
"""What pools tokens or classifies belongs to no block, and to neither kind."""
AUXILIARY = re.compile(
    r"cpb_mlp|position_bias|rel_pos|proj_[lw]$|(?:^|\.)(?:\w*embed\w*|downsample|\w*reduction|se|gate_layer)(?:\.|$)"
)
"""Small layers beside attention and MLP: position biases, mixed heads, what joins patches."""


_BLOCK = (  # where a layer's block is
    (re.compile(r"^(?:.*\.)?layers\.(\d+)\.blocks\.(\d+)\."), r"layers.\1.blocks.\2."),
    (re.compile(r"^(?:.*\.)?(stages\.\d+\.)?(?:encoder_)?layers?[._](\d+)\."), r"\1blocks.\2."),
    (re.compile(r"^((?:.*\.)?blocks\.\d+\.)"), r"\1"),
)
_LAYER = (  # how other libraries call a layer of a block -> how timm does
    (
        re.compile(
            r"(?:attention\.attention|attention\.self|self_attention|self_attn|attention|attn)\.(q|k|v)(?:uery|ey|alue|_proj)$"
        ),
        r"attn.\1",
    ),
    (re.compile(r"(?:self_attention|self_attn|attention)\.qkv$"), "attn.qkv"),
    (
        re.compile(r"attention\.output\.dense$|(?:self_attention|self_attn|attention)\.(?:o_proj|out_proj|proj)$"),
        "attn.proj",
    ),
    (re.compile(r"(?:intermediate\.dense|linear1|pwconv1)$"), "mlp.fc1"),
    (re.compile(r"(?:output\.dense|linear2|pwconv2)$"), "mlp.fc2"),
)


def canonical(path: str) -> str:
    """The canonical name of a layer path: timm's name for the same layer, the path itself where no rule applies."""
    if NO_BLOCK.search(path):
        return path
    for pattern, block in _BLOCK:
        if found := pattern.match(path):
            inner = path[found.end() :]
            for layer, name in _LAYER:
                inner = layer.sub(name, inner)
            known = any(kind.search(inner) for kind in KINDS.values())
            return found.expand(block) + inner if known else path
    return path


def kind_of(path: str) -> str | None:
    """``attention``, ``mlp``, or None for a layer that is neither, by its path or canonical name."""
    if NO_BLOCK.search(path) or AUXILIARY.search(path):
        return None
    name = canonical(path)
    return next((kind for kind, names in KINDS.items() if names.search(name)), None)


def linear_layers(model: "nn.Module") -> dict[str, str]:
    """Canonical name -> path of every linear layer; where two would have one name (two towers), their paths."""
    from torch import nn  # noqa: PLC0415  slow to load, and the names above are needed by flags

    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    shared = {name for name, count in Counter(map(canonical, paths)).items() if count > 1}
    return {path if canonical(path) in shared else canonical(path): path for path in paths}


def match_targets(model: "nn.Module", name: str, targets: Sequence[str]) -> dict[str, str]:
    """Canonical weight name -> path of the linear layers that targets name.

    Args:
        model: the network.
        name: of the backbone, for messages.
        targets: ``attention`` and ``mlp`` for all layers of the kind, or patterns over canonical names (``fnmatch``).

    Raises:
        InputError: a pattern matches none; or, where both kinds are asked for, the network has layers in attention or
            an MLP that neither kind knows: it would be trained by half.
    """
    layers = linear_layers(model)
    both = set(KINDS) <= set(targets)  # a network may have one kind alone
    asked = [t for t in targets if not (both and t in KINDS)]
    unmatched = [t for t in asked if not any(named(n, path, t) for n, path in layers.items())]
    matched = {f"{n}.weight": path for n, path in layers.items() if any(named(n, path, t) for t in targets)}
    if not matched or unmatched:
        some = ", ".join(list(layers)[:6]) or "none at all"
        raise InputError(
            f"target {unmatched[0] if unmatched else tuple(targets)!r} matches no linear layer of backbone {name}; "
            f"its linear layers are {some}{', ...' if len(layers) > 6 else ''}. Name them by pattern, for example "
            "'*.qkv'"
        )
    if tuple(targets) == TARGETS:
        _refuse_half(layers, name)
    first = {id(model.get_submodule(path).get_parameter("weight")): n for n, path in reversed(matched.items())}
    return {n: path for n, path in matched.items() if n in first.values()}  # one name per shared weight


def named(layer: str, path: str, target: str) -> bool:
    """Whether a target names a layer, by its canonical name and path."""
    return kind_of(path) == target if target in KINDS else fnmatchcase(layer, target)


def _refuse_half(layers: Mapping[str, str], name: str) -> None:
    """Refuse a network of whose attention or MLPs some layers have names that neither kind knows."""
    inside = re.compile(r"(?:^|\.)(\w*att\w*|mlp\w*|ffn|feed_?forward|intermediate|output)\.")
    odd = [
        layer
        for layer, path in layers.items()
        if inside.search(layer) and not kind_of(path) and not NO_BLOCK.search(path) and not AUXILIARY.search(path)
    ]
    if odd:
        kinds = sorted({re.sub(r"\d+", "*", layer) for layer in odd})
        raise InputError(
            f"backbone {name}: {len(odd)} of its {len(layers)} linear layers are in attention or an MLP and have names "
            f"that are not known: {', '.join(kinds[:6])}{', ...' if len(kinds) > 6 else ''}. Without them it would be "
            f"trained by half: name what is trained, for example --network.targets attention mlp '{kinds[0]}'"
        )
