"""theta0: a pre-trained network without its classifier, frozen; it names its trainable weights and gives features.

Weights have canonical names, those of timm's vision transformers (``blocks.3.attn.qkv.weight``), whatever the library
a network comes from calls them.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.protocol import AdaptedLinear, Adapter
from intarsia.backbones.attention import open_attention
from intarsia.backbones.loaders import load_network
from intarsia.backbones.locations import absolute
from intarsia.backbones.names import BUILTIN, TARGETS, kind_of, match_targets, named
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.probe import acting
from intarsia.errors import InputError
from intarsia.numerics import digest, wide

HALF = (torch.float16, torch.bfloat16)


class Backbone:
    """A frozen pre-trained network: images (B, C, H, W) -> features (B, D).

    Args:
        model: any module from normalised images to features, with named ``nn.Linear`` layers. Its parameters are
            frozen and it is put in evaluation mode; half precision becomes float32; else its weights are never written.
            One in float64 stays so, and takes images in float32 too; heads, statistics and stored modules are float32.
        name: what a pool calls it.
        preprocessing: how its images are prepared.
        targets: patterns over canonical layer names (``fnmatch``: ``*`` any text); the weights of the layers they
            match are trained.

    Attributes:
        architecture: how its network is built without weights, JSON; None where only its maker knows.
        width: D of its features.
        cast_from: the type that was cast to float32, ``float16`` or ``bfloat16``; None where nothing was.

    Raises:
        InputError: a pattern matches no ``nn.Linear``, or weights are of a type that cannot be trained around.

    Example:
        >>> theta0 = Backbone.load()
        >>> theta0.features(torch.zeros(2, 1, 28, 28)).shape[0]
        2
    """

    def __init__(
        self, model: nn.Module, *, name: str, preprocessing: Preprocessing, targets: Sequence[str] = TARGETS
    ) -> None:
        self.cast_from = _to_single(model, name)
        self.model = model.eval().requires_grad_(False)
        if any(p.dtype == torch.float64 for p in model.parameters()):
            model.register_forward_pre_hook(_as_weights)
        self.name = name
        self.preprocessing = preprocessing
        self.architecture: Mapping[str, Any] | None = None
        self.patterns = tuple(targets)
        open_attention(model)
        self.targets = match_targets(model, name, self.patterns)
        self.targets, self.width = self._acting()
        self.hash = digest(model.state_dict())

    def __repr__(self) -> str:
        numbers = sum(p.numel() for p in self.model.parameters())
        cast = f", cast from {self.cast_from}" if self.cast_from else ""
        return f"Backbone({self.name}, {numbers:,} weights{cast}, {len(self.targets)} trainable, {self.hash[:12]})"

    @classmethod
    def load(cls, spec: str = BUILTIN, *, targets: Sequence[str] = TARGETS) -> "Backbone":
        """Load theta0 by name.

        Args:
            spec: ``vit_sketch`` (built in); ``timm/<name>`` (pre-trained weights from the hub),
                ``timm/<name>@<file.safetensors>`` (weights from a local file), ``timm/hf-hub:<repository>``,
                ``timm/local-dir:<folder>``; ``hf/<repository or folder>[@revision]`` of transformers. Options stand
                behind: ``?image-size=70&features=mean``.
            targets: see the class.

        Raises:
            InputError: the name is unknown, the weights cannot be had or do not fit, a target matches nothing.
        """
        network, preprocessing, architecture = load_network(spec)
        found = cls(network, name=absolute(spec), preprocessing=preprocessing, targets=targets)
        found.architecture = architecture
        return found

    def _acting(self) -> tuple[dict[str, str], int]:
        """The targets that act on the features, and how wide these are; see ``probe``."""
        names, width = acting(self.model, self.name, self.weights, self.preprocessing)
        acts = {name: self.targets[name] for name in names}
        for target in self.patterns:
            of_it = [n for n, path in self.targets.items() if named(n.removesuffix(".weight"), path, target)]
            if of_it and not set(of_it) & acts.keys():
                raise InputError(
                    f"backbone {self.name}: {of_it[0]} (target {target!r}) does not act on the features: no gradient "
                    "reaches it, and it would never change. Name other targets, or other --features"
                )
        return acts, width

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of the network: of its longest list, the members that have trainable weights inside.

        Empty where no list has two of them.
        """
        found: list[nn.Module] = []
        for path, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList | nn.Sequential):
                start = f"{path}." if path else ""
                inside = {p.removeprefix(start).partition(".")[0] for p in self.targets.values() if p.startswith(start)}
                inside -= {p.removeprefix(start) for p in self.targets.values()}  # a member that is itself one
                members = [member for name, member in module.named_children() if name in inside]
                found = members if len(members) > max(1, len(found)) else found
        return found

    @property
    def weights(self) -> dict[str, Tensor]:
        """Canonical name -> the very parameter (O, I) of every trainable weight."""
        return {name: self._linear(path).weight for name, path in self.targets.items()}

    @property
    def trainable(self) -> dict[str, Tensor]:
        """Canonical name -> pre-trained weight (O, I) of every trainable weight."""
        return {name: weight.detach() for name, weight in self.weights.items()}

    @cached_property
    def sizes(self) -> dict[str, float]:
        """How large the trainable weights are, as the adapters see them.

        ``full``: the root mean square of their entries; ``lora``: that of the norms of their rows, one per output.
        """
        weights = self.trainable.values()
        square = sum(float(wide(w).square().sum()) for w in weights)
        entries, rows = sum(w.numel() for w in weights), sum(len(w) for w in weights)
        return {"full": math.sqrt(square / entries), "lora": math.sqrt(square / rows)}

    def describe(self) -> dict[str, Any]:
        """What it is and what of it is trained, as JSON: layers by kind (``attention``, ``mlp``, ``other``)."""
        trained: dict[str, list[str]] = {}
        for name in self.targets:
            layer = name.removesuffix(".weight")
            trained.setdefault(kind_of(layer) or "other", []).append(layer)
        return {
            "name": self.name,
            "weights": sum(p.numel() for p in self.model.parameters()),
            "trainable_weights": sum(w.numel() for w in self.weights.values()),
            "features": self.width,
            "cast_from": self.cast_from,
            "preprocessing": self.preprocessing.record(),
            "linear_layers": sum(isinstance(layer, nn.Linear) for layer in self.model.modules()),
            "trained": trained,
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "Backbone":
        """Move the weights; returns self."""
        self.model.to(device)
        return self

    def attach(self, adapter: Adapter, generator: torch.Generator | None = None) -> Attachment:
        """Make the trainable weights trainable through ``adapter`` until the attachment is removed.

        Args:
            adapter: say ``LoRA(16)``.
            generator: source of the adapter's random start; seed 0 if None.
        """
        return Attachment(self.model, self.targets, adapter, generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, C, H, W), without a graph.

        Raises:
            InputError: the images are whole numbers: they are not normalised.
        """
        if not images.is_floating_point():
            raise InputError(f"images of type {images.dtype}: expected normalised ones; call preprocessing.normalize")
        first = next(iter(self.targets.values()))
        return self.model(images.to(self.device, self._linear(first).weight.dtype))

    def _linear(self, path: str) -> nn.Linear:
        layer = self.model.get_submodule(path)
        layer = layer.linear if isinstance(layer, AdaptedLinear) else layer
        assert isinstance(layer, nn.Linear)
        return layer


def _to_single(model: nn.Module, name: str) -> str | None:
    """Cast half precision to float32, in place; what it was, None where there is none.

    Raises:
        InputError: a parameter is of a type of 8 bits or less, or of whole numbers.
    """
    for path, parameter in model.named_parameters():
        if parameter.dtype not in (*HALF, torch.float32, torch.float64, torch.complex64, torch.complex128):
            raise InputError(
                f"backbone {name}: {path} is {_short(parameter.dtype)}: expected float32, float16 or bfloat16; load "
                "the network without quantization"
            )
    tensors = [*model.parameters(), *model.buffers()]
    halves = sorted({_short(t.dtype) for t in tensors if t.dtype in HALF})
    for tensor in tensors:
        if tensor.dtype in HALF:
            tensor.data = tensor.data.float()
    return " and ".join(halves) or None


def _as_weights(model: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images, float32 everywhere else, in the type of the network's weights."""
    kind = next(model.parameters()).dtype
    return tuple(x.to(kind) if x.is_floating_point() else x for x in images)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
