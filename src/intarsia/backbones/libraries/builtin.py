"""The built-in backbone: a small vision transformer for drawings."""

import json
from importlib.resources import files
from typing import Any

from safetensors.torch import load

from intarsia.backbones.libraries.loaded import Loaded
from intarsia.backbones.locations import Options
from intarsia.backbones.names import BUILTIN
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.errors import InputError

OWN = Options()


def builtin_card() -> dict[str, Any]:
    """What is known of the built-in backbone: architecture, images, source, scores."""
    return json.loads((files("intarsia") / "assets" / f"{BUILTIN}.json").read_text())


def describe() -> dict[str, Any]:
    """What the built-in backbone is, where its weights come from and what they scored."""
    card = builtin_card()
    shape = card["architecture"]
    what = f"vision transformer, {shape['embed_dim']} wide, {shape['depth']} deep, {card['image_size']} px, one channel"
    return {"name": BUILTIN, "what": what, **{k: card[k] for k in ("classes_seen", "source", "licence", "scores")}}


def load_builtin_network(which: str = "", options: Options = OWN) -> Loaded:
    """The network with its weights, and how it wants its images.

    Raises:
        InputError: another size, or features, are asked for.
    """
    if which or options != OWN:
        raise InputError(f"backbone {BUILTIN!r} has one size and one kind of features: leave the options out")
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415  slow to import

    card, assets = builtin_card(), files("intarsia") / "assets"
    model = VisionTransformer(**card["architecture"])
    model.load_state_dict(load((assets / f"{BUILTIN}.safetensors").read_bytes()))
    size, channels = card["image_size"], card["channels"]
    preprocessing = Preprocessing(size, size, channels, tuple(card["mean"]), tuple(card["std"]), "bilinear")
    architecture = {"library": "timm", "name": "VisionTransformer", "arguments": card["architecture"]}
    return Loaded(model, preprocessing, architecture)
