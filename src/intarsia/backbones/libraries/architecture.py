"""A network without its pre-trained weights: what a merged model, which has its own, needs of a backbone."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from intarsia.backbones.attention import open_attention
from intarsia.backbones.libraries.loaded import meta_or_real
from intarsia.backbones.libraries.timm import TokenFeatures
from intarsia.backbones.libraries.transformers import build_transformers
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.errors import InputError

ARGUMENTS = (
    "num_classes",
    "img_size",
    "in_chans",
    "global_pool",
    "dynamic_img_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "patch_size",
    "window_size",
    "depths",
    "dims",
    "reg_tokens",
    "class_token",
    "init_values",
    "no_embed_class",
)
"""Of timm's models that a file may give; others could name a file to read, or an address."""


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """The network, every weight still to be loaded (``load_state_dict(..., assign=True)``); nothing is fetched.

    Raises:
        InputError: the library has no network of that name, or other arguments.
    """
    libraries: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
        "timm": _build_timm,
        "transformers": build_transformers,
    }
    if (library := architecture["library"]) not in libraries:
        raise InputError(f"unknown library {library!r} of an architecture: expected one of {', '.join(libraries)}")
    network = libraries[library](architecture)
    open_attention(network)
    return network


def _build_timm(architecture: Mapping[str, Any]) -> nn.Module:
    import_torchvision()
    import timm  # noqa: PLC0415  slow to import
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415

    name, features = architecture["name"], architecture.get("features")
    own = name == "VisionTransformer"
    if not (own or timm.is_model(name.split(".")[0])):
        raise InputError(f"unknown architecture {name!r} of 'timm': expected one of timm {timm.__version__}")

    arguments = architecture["arguments"]
    if not own and (odd := sorted(arguments.keys() - {*ARGUMENTS})):
        raise InputError(f"architecture {name!r} with {odd[0]!r}: expected some of {', '.join(ARGUMENTS)}")

    def made() -> nn.Module:
        return VisionTransformer(**arguments) if own else timm.create_model(name, pretrained=False, **arguments)

    try:
        network = meta_or_real(made)
    except (TypeError, AssertionError) as error:
        raise InputError(f"architecture {name!r}: {error}; it was written by another version of timm") from error
    return network if features is None else TokenFeatures(network, features)
