"""Backbones of timm, with weights from the hub, a folder or a local file."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from intarsia.backbones.libraries.hub import offline_if_unreachable
from intarsia.backbones.libraries.loaded import Loaded, pooled_tokens, refuse_pickle
from intarsia.backbones.locations import Options
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.errors import InputError, first_line
from intarsia.numerics import finite

HUB, FOLDER = "hf-hub:", "local-dir:"
PARALLEL = "module."
"""What ``nn.DataParallel`` writes before every name."""


class TokenFeatures(nn.Module):
    """The class token, or the mean of the patch tokens, of a vision transformer of timm.

    Args:
        network: one whose ``forward_features`` gives tokens (B, N, D).
        features: which.
    """

    def __init__(self, network: nn.Module, features: Literal["cls", "mean"]) -> None:
        super().__init__()
        self.network = network
        self.features: Literal["cls", "mean"] = features

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, D)."""
        tokens = self.network.forward_features(images)  # pyright: ignore[reportCallIssue]
        prefix = getattr(self.network, "num_prefix_tokens", 0)
        if tokens.ndim != 3 or (self.features == "cls" and prefix < 1):
            raise ValueError(f"tokens {tuple(tokens.shape)}, {prefix} of them no patches: it has no {self.features}")
        return pooled_tokens(tokens, self.features, int(prefix))


def load_timm(which: str, options: Options) -> Loaded:
    """A network of timm, and how it wants its images.

    Args:
        which: ``<name>`` (weights from the hub), ``<name>@<file.safetensors>``, ``hf-hub:<repository>[@revision]`` or
            ``local-dir:<folder>`` with timm's config.json.
        options: of its images and features.

    Raises:
        InputError: the name is unknown, or the weights cannot be had or do not fit.
    """
    import_torchvision()
    import timm  # noqa: PLC0415  slow to import
    from timm.data.config import resolve_model_data_config  # noqa: PLC0415

    other = which.startswith((HUB, FOLDER))
    name, _, weights = (which, "", "") if other else which.partition("@")
    if not other and not timm.is_model(name.split(".")[0]):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]) or "see timm.list_models()"
        raise InputError(f"unknown backbone 'timm/{name}': timm has no such model; close names: {close}")
    state = _state(Path(weights), f"weights of timm/{name}") if weights else None
    if which.startswith(FOLDER):
        _look_into(Path(which.removeprefix(FOLDER)))
    size = {} if options.image_size is None else {"img_size": options.image_size}
    with _no_random_weights(f"backbone 'timm/{which}'"), offline_if_unreachable():
        model, size = _create(timm, name, state, size)
        own = _own_arguments(which) if other else {}
    if state is not None and not size:
        _fit(model, name, weights, state)
    config = resolve_model_data_config(model)
    if options.image_size is not None:
        config["input_size"] = (config["input_size"][0], options.image_size, options.image_size)
    arguments = {"num_classes": 0, **own, **size}
    architecture = {"library": "timm", "name": str(model.pretrained_cfg["architecture"]), "arguments": arguments}
    preprocessing = timm_preprocessing(name, config)
    if options.features in ("cls", "mean"):
        architecture["features"] = options.features
        model = TokenFeatures(model, options.features)
    return Loaded(model, preprocessing, architecture)


def _create(timm: Any, name: str, state: Mapping[str, Tensor] | None, size: dict[str, int]) -> tuple[Any, dict]:
    """The model; a size is left out for networks that take any."""
    overlay = {"pretrained_cfg_overlay": {"state_dict": dict(state)}} if state is not None and size else {}
    wanted = state is None or bool(size)
    try:
        return timm.create_model(name, pretrained=wanted, num_classes=0, **overlay, **size), size
    except TypeError as error:
        if not size or "img_size" not in str(error):
            raise
        return _create(timm, name, state, {})
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:
        what = f"do not fit at {size['img_size']} px" if overlay else "could not be had"
        raise InputError(
            f"backbone 'timm/{name}': its pre-trained weights {what} ({type(error).__name__}: "
            f"{first_line(error)}). Check name and network, or give a local file: timm/{name}@weights.safetensors"
        ) from error


class _Missing(logging.Handler):
    """What timm says of weights that a file does not have: it would go on with random ones."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        if "Missing keys" in record.getMessage() or "using random init" in record.getMessage():
            self.said = record.getMessage()


@contextmanager
def _no_random_weights(what: str) -> Iterator[None]:
    logger, listener = logging.getLogger("timm.models._builder"), _Missing()
    level, spreads = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = spreads
    if listener.said:
        missing = listener.said.split(" discovered")[0]
        raise InputError(
            f"{what}: some weights are not in its checkpoint and would be random ({missing}): expected all of them; "
            "choose a checkpoint that has them, or another --features"
        )


def _look_into(folder: Path) -> None:
    """Refuse a folder that is none of timm's, or whose weights are a pickle."""
    if not (folder / "config.json").is_file():
        raise InputError(
            f"backbone folder {folder}: it has no config.json of timm; expected what timm saves or a hub has"
        )
    if not list(folder.glob("*.safetensors")):
        for path in sorted(folder.iterdir()):
            refuse_pickle(path, f"backbone folder {folder}")
        raise InputError(
            f"backbone folder {folder}: it has no weights; expected a file .safetensors beside config.json"
        )


def _own_arguments(which: str) -> dict[str, Any]:
    """Arguments that the config.json of a folder, or of a repository of the hub, gives beside the name."""
    import_torchvision()
    from timm.models import load_model_config_from_hf  # noqa: PLC0415

    if which.startswith(FOLDER):
        return json.loads((Path(which.removeprefix(FOLDER)) / "config.json").read_text()).get("model_args") or {}
    return load_model_config_from_hf(which.removeprefix(HUB))[2] or {}


def _state(path: Path, what: str) -> dict[str, Tensor]:
    refuse_pickle(path, what)
    try:
        with path.open("rb"):  # of a file that may not be read, safetensors says that there is none
            state = load_file(path)
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(
            f"weights {path}: not a readable safetensors file ({first_line(error)}); get it again"
        ) from error
    in_parallel = all(name.startswith(PARALLEL) for name in state)
    return {name.removeprefix(PARALLEL): value for name, value in state.items()} if in_parallel else state


def _fit(model: nn.Module, name: str, path: str, state: Mapping[str, Tensor]) -> None:
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
