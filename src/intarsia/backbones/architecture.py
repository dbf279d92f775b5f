"""A network without its pre-trained weights: what a merged model, which has its own, needs of a backbone."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from intarsia.backbones.builtin import BUILTIN, builtin_card
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.errors import InputError

ARGUMENTS = ("num_classes", "img_size", "in_chans", "global_pool", "dynamic_img_size")
"""Of timm's models that a file may give; others could name a file to read, or an address."""


def architecture_of(spec: str) -> dict[str, Any] | None:
    """How a backbone's network is built, as JSON; None where only its maker knows (a network made in Python)."""
    if spec == BUILTIN:
        return {"library": "timm", "name": "VisionTransformer", "arguments": builtin_card()["architecture"]}
    if spec.startswith("timm/"):
        name = spec.removeprefix("timm/").partition("@")[0]
        return {"library": "timm", "name": name, "arguments": {"num_classes": 0}}
    return None


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """The network, every weight still to be loaded (``load_state_dict(..., assign=True)``); nothing is fetched.

    Raises:
        InputError: the library has no network of that name, or other arguments.
    """
    import_torchvision()
    import timm  # noqa: PLC0415  slow to import
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415

    library, name = architecture["library"], architecture["name"]
    own = name == "VisionTransformer"
    if library != "timm" or not (own or timm.is_model(name.split(".")[0])):
        raise InputError(f"unknown architecture {name!r} of {library!r}: expected one of timm {timm.__version__}")

    arguments = architecture["arguments"]
    if not own and (odd := sorted(arguments.keys() - {*ARGUMENTS})):
        raise InputError(f"architecture {name!r} with {odd[0]!r}: expected some of {', '.join(ARGUMENTS)}")

    def made() -> nn.Module:
        return VisionTransformer(**arguments) if own else timm.create_model(name, pretrained=False, **arguments)

    try:
        return _empty(made)
    except (TypeError, AssertionError) as error:
        raise InputError(f"architecture {name!r}: {error}; it was written by another version of timm") from error


def _empty(made: Callable[[], nn.Module]) -> nn.Module:
    """Built without memory for weights; as usual where a buffer is no part of what a model keeps, or that fails."""
    try:
        with torch.device("meta"):
            network = made()
    except (RuntimeError, NotImplementedError):  # it computes with its weights as it is built
        return made()
    computed = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    return made() if computed else network
