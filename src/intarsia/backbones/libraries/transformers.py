"""Backbones of transformers, from the hub or from a folder: ViT, DeiT, BEiT, DINOv2 and 3, CLIP, SigLIP, Swin, ..."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from intarsia.backbones.libraries.hub import offline_if_unreachable
from intarsia.backbones.libraries.loaded import Loaded, meta_or_real, pooled_tokens, refuse_pickle
from intarsia.backbones.locations import Features, Options, is_folder
from intarsia.backbones.preprocessing import Interpolation, Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.errors import InputError, first_line, not_installed

TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
"""Models of images and text -> the class of their image part."""
UNPOOLED = ("vit", "deit")
"""Their pooler is a layer that classifiers do not use, and most checkpoints do not have: their features are cls."""
INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


class VisionFeatures(nn.Module):
    """Images -> features of an image model of transformers.

    Args:
        network: the model.
        features: ``cls``, ``mean`` (of patch tokens) or ``pooled`` (what the model's own pooling gives).
    """

    def __init__(self, network: nn.Module, features: Features) -> None:
        super().__init__()
        self.network = network
        self.features: Features = features
        accepted = inspect.signature(network.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, D)."""
        config = self.network.config
        native = images.shape[-1] == getattr(config, "image_size", None)
        found = self.network(pixel_values=images, **({} if native else self._options))
        if self.features == "pooled":
            return _flat(found.pooler_output)
        prefix = 1 + int(getattr(config, "num_register_tokens", 0)) if has_class_token(self.network) else 0
        if found.last_hidden_state.ndim != 3 or (self.features == "cls" and not prefix):
            raise ValueError(f"tokens {tuple(found.last_hidden_state.shape)}: it has no {self.features} features")
        return pooled_tokens(found.last_hidden_state, cast(Literal["cls", "mean"], self.features), prefix)


def has_class_token(network: nn.Module) -> bool:
    """Whether the first token of a model is no patch: a parameter says so, under any of its names."""
    return any(name.rpartition(".")[2] in ("cls_token", "class_embedding") for name, _ in network.named_parameters())


def load_transformers(which: str, options: Options) -> Loaded:
    """A network of transformers, and how it wants its images.

    Args:
        which: repository of the hub or folder, with ``@<revision>`` behind it.
        options: of its images and features.

    Raises:
        InputError: transformers is not installed; there is no such model, or it is none of images; its weights are a
            pickle, or do not fit; its images are prepared in a way that there is no preprocessing for.
    """
    transformers = _library(which)
    where, revision = (which, None) if is_folder(which) else _revision(which)
    if is_folder(where):
        where = str(Path(where).expanduser().resolve())
        _look_into(Path(where), which)
    try:
        with offline_if_unreachable():
            config = transformers.AutoConfig.from_pretrained(where, revision=revision)
            made = _class_of(transformers, config, which)
            unpooled = config.model_type in UNPOOLED
            model, found = made.from_pretrained(
                where,
                revision=revision,
                use_safetensors=True,
                output_loading_info=True,
                **({"add_pooling_layer": False} if unpooled else {}),
            )
            processor = transformers.AutoImageProcessor.from_pretrained(where, revision=revision)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"backbone 'hf/{which}' could not be loaded ({type(error).__name__}: {first_line(error)}). Check name, "
            "revision and network; it wants safetensors weights, config.json and preprocessor_config.json"
        ) from error
    _refuse_random(which, found)
    features = options.features or ("cls" if unpooled else "pooled")
    network = VisionFeatures(model, features)
    preprocessing = transformers_preprocessing(which, processor.to_dict(), model.config, options.image_size)
    arguments = {"config": model.config.to_diff_dict(), "features": features, "pooling": not unpooled}
    architecture = {"library": "transformers", "name": type(model).__name__, "arguments": arguments}
    return Loaded(network, preprocessing, architecture)


def build_transformers(architecture: Mapping[str, Any]) -> nn.Module:
    """The network of an architecture, its weights still to be loaded; nothing is fetched.

    Raises:
        InputError: transformers is not installed, or has no such model.
    """
    transformers = _library("a merged model")
    name, arguments = architecture["name"], architecture["arguments"]
    made: Any = getattr(transformers, name, None)
    known = inspect.isclass(made) and issubclass(made, transformers.PreTrainedModel)
    if not known:
        raise InputError(f"unknown architecture {name!r}: expected a model of transformers {transformers.__version__}")
    made = cast(Any, made)
    config = made.config_class.from_dict(dict(arguments["config"]))
    unpooled = {"add_pooling_layer": False} if not arguments["pooling"] else {}
    try:
        return VisionFeatures(meta_or_real(lambda: made(config, **unpooled)), arguments["features"])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"architecture {name!r}: {error}; it was written by another version of transformers"
        ) from error


def _library(which: str) -> Any:
    """The library, quiet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import_torchvision()
        import transformers  # noqa: PLC0415  optional, and slow to import
    except ImportError as error:
        raise not_installed(f"hf/{which}", "transformers", "hf", error) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _revision(which: str) -> tuple[str, str | None]:
    name, _, revision = which.partition("@")
    return name, revision or None


def _look_into(folder: Path, which: str) -> None:
    """Refuse a folder without what a model has, or whose weights are a pickle."""
    missing = [name for name in ("config.json", "preprocessor_config.json") if not (folder / name).is_file()]
    if missing:
        what = "is no folder" if not folder.is_dir() else f"has no {' and no '.join(missing)}"
        raise InputError(
            f"backbone hf/{which}: {folder} {what}; expected what save_pretrained of a model and of its image "
            "processor write"
        )
    if not list(folder.glob("*.safetensors")):
        for path in sorted(folder.iterdir()):
            refuse_pickle(path, f"backbone hf/{which}")
        raise InputError(f"backbone hf/{which}: {folder} has no weights; expected model.safetensors")


def _class_of(transformers: Any, config: Any, which: str) -> Any:
    kind = config.model_type
    if tower := TOWERS.get(kind):
        return getattr(transformers, tower)
    if hasattr(config, "vision_config") or not any(hasattr(config, n) for n in ("num_channels", "patch_size")):
        raise InputError(
            f"backbone hf/{which} is a {kind!r} model: expected one of images alone, or {', '.join(TOWERS)}, whose "
            "image part is taken"
        )
    return transformers.AutoModel


def _refuse_random(which: str, found: Mapping[str, Any]) -> None:
    missing, mismatched = sorted(found["missing_keys"]), list(found["mismatched_keys"])
    if missing or mismatched:
        first = missing[0] if missing else mismatched[0]
        raise InputError(
            f"backbone hf/{which}: {len(missing) + len(mismatched)} weights are not in its checkpoint, or of another "
            f"shape, and would be random (first: {first}): expected all of them; choose a checkpoint that has them, or "
            "another --features"
        )


def transformers_preprocessing(
    which: str, processor: Mapping[str, Any], config: Any, image_size: int | None = None
) -> Preprocessing:
    """How a model wants its images: what its image processor, on Pillow, does.

    Args:
        which: of the model, for messages.
        processor: the image processor's settings.
        config: the model's.
        image_size: other than the checkpoint's; what is cut off keeps its share.

    Raises:
        InputError: it does something that there is no preprocessing for.
    """

    def refused(what: str) -> InputError:
        return InputError(
            f"backbone hf/{which}: its image processor {what}: expected a square, resized by Pillow, cropped in the "
            "middle and normalised; write that into its preprocessor_config.json, or choose another model"
        )

    channels = int(getattr(config, "num_channels", 3))
    size, crop = dict(processor.get("size") or {}), dict(processor.get("crop_size") or {})
    if not processor.get("do_resize", True) or not size:
        raise refused("does not resize images")
    shortest = size.get("shortest_edge")
    if shortest is None and size.get("height") != size.get("width"):
        raise refused(f"makes them {size.get('height')} x {size.get('width')}")
    resize = int(shortest or size["height"])
    cropped = bool(processor.get("do_center_crop")) and bool(crop)
    if cropped and crop["height"] != crop["width"]:
        raise refused(f"crops them to {crop['height']} x {crop['width']}")
    side = int(crop["height"]) if cropped else resize
    if (number := int(processor.get("resample", 2))) not in INTERPOLATIONS:
        raise refused(f"resamples by Pillow's filter {number}")
    if shortest is not None and not cropped:
        raise refused("keeps the images' shape")
    if side > resize:
        raise refused(f"crops {side} of {resize} pixels")
    if image_size is not None:
        side, resize = image_size, max(image_size, round(resize * image_size / side))
    normalised = processor.get("do_normalize", True)
    mean, std = (
        tuple(float(v) for v in (processor.get(key) or default))[:channels] if normalised else (default[0],) * channels
        for key, default in (("image_mean", (0.0,) * 3), ("image_std", (1.0,) * 3))
    )
    return Preprocessing(
        size=side,
        resize=resize,
        channels=channels,
        mean=mean,
        std=std,
        interpolation=INTERPOLATIONS[number],
        crop="center" if shortest is not None else "squash",
    )


def _flat(pooled: Tensor) -> Tensor:
    """(B, D) of (B, D) or (B, D, 1, 1)."""
    return pooled.flatten(1)
