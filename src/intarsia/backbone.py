"""theta0: a pre-trained network without its classifier, frozen; it names its tuned weights and gives features.

Weights have canonical names, those of timm's vision transformers (``blocks.3.attn.qkv.weight``), whatever the library
a network comes from calls them.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from intarsia import _torchvision  # noqa: F401  must come before timm
from intarsia.adapters import AdaptedLinear, Adapter, Attachment
from intarsia.errors import InputError
from intarsia.images import Preprocessing
from intarsia.storage import digest, finite

BUILTIN = "vit_sketch"
TARGETS = ("*attn.qkv", "*attn.q", "*attn.k", "*attn.v", "*attn.proj", "*mlp.fc1", "*mlp.fc2")
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


class Backbone:
    """A frozen pre-trained network: images (B, C, H, W) -> features (B, D).

    Args:
        model: any module from normalised images to features, with named ``nn.Linear`` layers. Its parameters are
            frozen and it is put in evaluation mode; its weights are never written.
        name: what a pool calls it.
        preprocessing: how its images are prepared.
        targets: patterns over canonical layer names (``fnmatch``: ``*`` any text); the weights of the layers they
            match are tuned.

    Raises:
        InputError: a pattern matches no ``nn.Linear``.

    Example:
        >>> theta0 = Backbone.load()
        >>> theta0.features(torch.zeros(2, 1, 28, 28)).shape[0]
        2
    """

    def __init__(
        self, model: nn.Module, *, name: str, preprocessing: Preprocessing, targets: Sequence[str] = TARGETS
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.preprocessing = preprocessing
        self.patterns = tuple(targets)
        self.targets = _match(model, name, self.patterns)
        self.hash = digest(model.state_dict())

    def __repr__(self) -> str:
        numbers = sum(p.numel() for p in self.model.parameters())
        return f"Backbone({self.name}, {numbers:,} weights, {len(self.targets)} tuned, {self.hash[:12]})"

    @classmethod
    def load(cls, spec: str = BUILTIN, *, targets: Sequence[str] = TARGETS) -> "Backbone":
        """Load theta0 by name.

        Args:
            spec: ``vit_sketch`` (built in), ``timm/<name>`` (pre-trained weights from the hub) or
                ``timm/<name>@<file.safetensors>`` (weights from a local file).
            targets: see the class.

        Raises:
            InputError: the name is unknown, the weights cannot be had or do not fit, a target matches nothing.
        """
        if spec == BUILTIN:
            model, preprocessing = _load_builtin()
        elif spec.startswith("timm/"):
            model, preprocessing = _load_timm(spec.removeprefix("timm/"))
        else:
            raise InputError(
                f"unknown backbone {spec!r}: expected {BUILTIN!r} (built in), 'timm/<name>' or "
                "'timm/<name>@<weights.safetensors>'"
            )
        return cls(model, name=spec, preprocessing=preprocessing, targets=targets)

    @property
    def tuned(self) -> dict[str, Tensor]:
        """Canonical name -> pre-trained weight (O, I) of every tuned weight."""
        return {name: self._linear(path).weight.detach() for name, path in self.targets.items()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "Backbone":
        """Move the weights; returns self."""
        self.model.to(device)
        return self

    def attach(self, adapter: Adapter, generator: torch.Generator | None = None) -> Attachment:
        """Make the tuned weights trainable through ``adapter`` until the attachment is removed.

        Args:
            adapter: say ``LoRA(16)``.
            generator: source of the adapter's random start; seed 0 if None.
        """
        return Attachment(self.model, self.targets, adapter, generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, C, H, W), without a graph."""
        return self.model(images.to(self.device))

    def _linear(self, path: str) -> nn.Linear:
        layer = self.model.get_submodule(path)
        layer = layer.linear if isinstance(layer, AdaptedLinear) else layer
        assert isinstance(layer, nn.Linear)
        return layer


def canonical(path: str) -> str:
    """The canonical name of a layer path: timm's name for the same layer, the path itself where no rule applies."""
    for pattern, name in _CANONICAL:
        if pattern.match(path):
            return pattern.sub(name, path)
    return path


def _match(model: nn.Module, name: str, patterns: Sequence[str]) -> dict[str, str]:
    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    shared = {name for name, count in Counter(map(canonical, paths)).items() if count > 1}  # two towers, say
    layers = {path if canonical(path) in shared else canonical(path): path for path in paths}
    unmatched = [p for p in patterns if not any(fnmatchcase(layer, p) for layer in layers)]
    chosen = {f"{n}.weight": path for n, path in layers.items() if any(fnmatchcase(n, p) for p in patterns)}
    if chosen and (not unmatched or tuple(patterns) == TARGETS):
        return chosen
    some = ", ".join(list(layers)[:6]) or "none at all"
    raise InputError(
        f"target {unmatched[0] if unmatched else patterns!r} matches no linear layer of backbone {name}; "
        f"its linear layers are {some}{', ...' if len(layers) > 6 else ''}. Name them by pattern, for example '*.qkv'"
    )


def describe() -> dict[str, Any]:
    """What the built-in backbone is, where its weights come from and what they scored."""
    card = json.loads((files("intarsia") / "assets" / f"{BUILTIN}.json").read_text())
    shape = card["architecture"]
    what = f"vision transformer, {shape['embed_dim']} wide, {shape['depth']} deep, {card['image_size']} px, one channel"
    return {"name": BUILTIN, "what": what, **{k: card[k] for k in ("classes_seen", "source", "licence", "scores")}}


def _load_builtin() -> tuple[nn.Module, Preprocessing]:
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415  slow to import

    assets = files("intarsia") / "assets"
    card = json.loads((assets / f"{BUILTIN}.json").read_text())
    model = VisionTransformer(**card["architecture"])
    model.load_state_dict(load((assets / f"{BUILTIN}.safetensors").read_bytes()))
    size, channels = card["image_size"], card["channels"]
    preprocessing = Preprocessing(size, size, channels, tuple(card["mean"]), tuple(card["std"]), "bilinear")
    return model, preprocessing


def _load_timm(spec: str) -> tuple[nn.Module, Preprocessing]:
    import timm  # noqa: PLC0415  slow to import

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
    if weights:
        _load_weights(model, name, Path(weights))
    return model, _timm_preprocessing(model)


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


def _timm_preprocessing(model: nn.Module) -> Preprocessing:
    from timm.data.config import resolve_model_data_config  # noqa: PLC0415  slow to import

    config: Mapping[str, Any] = resolve_model_data_config(model)
    channels, size, _ = config["input_size"]
    resize = max(size, round(size / config["crop_pct"]))
    mean, std = tuple(config["mean"])[:channels], tuple(config["std"])[:channels]
    interpolation = config["interpolation"] if config["interpolation"] in ("nearest", "bilinear") else "bicubic"
    return Preprocessing(size, resize, channels, mean, std, interpolation)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else "no message"
