"""Backbones of timm, with weights from the hub or from a local file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.errors import InputError
from intarsia.numerics import finite


def load_timm(spec: str) -> tuple[nn.Module, Preprocessing]:
    """A network of timm, and how it wants its images.

    Args:
        spec: ``<name>`` (weights from the hub) or ``<name>@<file.safetensors>``.

    Raises:
        InputError: the name is unknown, or the weights cannot be had or do not fit.
    """
    import_torchvision()
    import timm  # noqa: PLC0415  slow to import
    from timm.data.config import resolve_model_data_config  # noqa: PLC0415

    name, _, weights = spec.partition("@")
    if not timm.is_model(name.split(".")[0]):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]) or "see timm.list_models()"
        raise InputError(f"unknown backbone 'timm/{name}': timm has no such model; close names: {close}")
    try:
        model = timm.create_model(name, pretrained=not weights, num_classes=0)
    except Exception as error:
        raise InputError(
            f"backbone 'timm/{name}': its pre-trained weights could not be had ({type(error).__name__}: "
            f"{_first_line(error)}). Check name and network, or give a local file: timm/{name}@weights.safetensors"
        ) from error
    preprocessing = timm_preprocessing(name, resolve_model_data_config(model))
    if weights:
        _load_weights(model, name, Path(weights))
    return model, preprocessing


def _load_weights(model: nn.Module, name: str, path: Path) -> None:
    try:
        with path.open("rb"):  # of a file that may not be read, safetensors says that there is none
            state = load_file(path)
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(
            f"weights {path}: not a readable safetensors file ({_first_line(error)}); get it again"
        ) from error
    own = model.state_dict()
    wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    if wrong:
        found = tuple(state[wrong[0]].shape) if wrong[0] in state else "nothing"
        raise InputError(
            f"weights {path} do not fit timm/{name}: {wrong[0]} should be {tuple(own[wrong[0]].shape)}, found {found} "
            f"({len(wrong)} of {len(own)} tensors differ)"
        )
    for key in own:
        if state[key].is_floating_point() and not finite(state[key]):
            raise InputError(f"weights {path}: {key} has numbers that are not finite; get the file again")
    model.load_state_dict({key: state[key] for key in own})


def timm_preprocessing(name: str, config: Mapping[str, Any]) -> Preprocessing:
    """How a model of timm wants its images: what ``timm.data.create_transform(**config)`` does to evaluate it.

    Args:
        name: of the model.
        config: what ``timm.data.resolve_model_data_config`` says of it.

    Raises:
        InputError: it wants what there is no preprocessing for.
    """
    channels, height, width = config["input_size"]
    if height != width:
        raise InputError(
            f"backbone 'timm/{name}' takes images of {height} x {width} pixels: expected a square; choose another model"
        )
    if config["crop_pct"] > 1:
        raise InputError(
            f"backbone 'timm/{name}' has crop_pct {config['crop_pct']}: expected at most 1; choose another model"
        )
    resize = math.floor(height / config["crop_pct"])
    mean, std = tuple(config["mean"])[:channels], tuple(config["std"])[:channels]
    return Preprocessing(height, resize, channels, mean, std, config["interpolation"], config["crop_mode"])


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else "no message"
