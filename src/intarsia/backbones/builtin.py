"""The built-in backbone: a small vision transformer for drawings."""

import json
from importlib.resources import files
from typing import Any

from safetensors.torch import load
from torch import nn

from intarsia.backbones.names import BUILTIN
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision


def builtin_card() -> dict[str, Any]:
    """What is known of the built-in backbone: architecture, images, source, scores."""
    return json.loads((files("intarsia") / "assets" / f"{BUILTIN}.json").read_text())


def describe() -> dict[str, Any]:
    """What the built-in backbone is, where its weights come from and what they scored."""
    card = builtin_card()
    shape = card["architecture"]
    what = f"vision transformer, {shape['embed_dim']} wide, {shape['depth']} deep, {card['image_size']} px, one channel"
    return {"name": BUILTIN, "what": what, **{k: card[k] for k in ("classes_seen", "source", "licence", "scores")}}


def load_builtin_network() -> tuple[nn.Module, Preprocessing]:
    """The network with its weights, and how it wants its images."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415  slow to import

    card, assets = builtin_card(), files("intarsia") / "assets"
    model = VisionTransformer(**card["architecture"])
    model.load_state_dict(load((assets / f"{BUILTIN}.safetensors").read_bytes()))
    size, channels = card["image_size"], card["channels"]
    preprocessing = Preprocessing(size, size, channels, tuple(card["mean"]), tuple(card["std"]), "bilinear")
    return model, preprocessing
