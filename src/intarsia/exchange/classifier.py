"""A library's own classification network with a backbone's weights in it.

Libraries put a linear layer behind their own pooling. Where its inputs are a backbone's features, or have them among
them (DINOv2's are the class token and the mean of the patch tokens), heads on these features can be written into that
layer, and the network says what ours says. Whether it is so, a forward pass of both tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.backbones.libraries.timm import TokenFeatures
from intarsia.backbones.libraries.transformers import VisionFeatures
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.errors import InputError, first_line
from intarsia.exchange.extras import library
from intarsia.heads.head import Head

ELSEWHERE = "export it with --format onnx or torch, which take any network"
NEAR = 1e-4
"""Features are the same where they differ by so much of the largest at most; they are those of one computation."""


@dataclass(frozen=True)
class Classifier:
    """A network of a library, images (B, C, S, S) -> logits, and where a backbone stands in it.

    Args:
        network: the library's.
        prefix: what stands before the path of a layer of the backbone's network; empty, or with a dot at its end.
        layer: path of the linear layer that classifies.
        columns: which of that layer's inputs are the backbone's features.
    """

    network: nn.Module
    prefix: str
    layer: str
    columns: slice

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, C) of normalised images."""
        return logits_of(self.network(images))

    def head(self, head: Head) -> dict[str, Tensor]:
        """Weight and bias of the layer that classifies, of a head on the backbone's features."""
        layer = self.network.get_submodule(self.layer)
        assert isinstance(layer, nn.Linear)
        weight = head.weight.new_zeros(len(head), layer.in_features)
        weight[:, self.columns] = head.weight
        return {"weight": weight, "bias": head.bias}

    def put(self, head: Head) -> "Classifier":
        """Write a head into the network; returns self."""
        self.network.get_submodule(self.layer).load_state_dict(self.head(head))
        return self


def logits_of(answer: Any) -> Tensor:
    """What a network of timm, or of transformers, says."""
    return answer if isinstance(answer, Tensor) else answer.logits


def inner(network: nn.Module) -> nn.Module:
    """The library's network in a backbone's, which may take its features in a way of its own."""
    return network.network if isinstance(network, TokenFeatures | VisionFeatures) else network


def inner_path(network: nn.Module, path: str) -> str:
    """The path of a backbone's layer in the library's own network."""
    return path if inner(network) is network else path.removeprefix("network.")


def native_timm(architecture: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments that ``timm.create_model`` takes: the class VisionTransformer itself has none of its own."""
    arguments = {key: value for key, value in architecture["arguments"].items() if key != "num_classes"}
    name = architecture["name"]
    return ("vit_tiny_patch16_224" if name == "VisionTransformer" else name), arguments


def classifier_of(
    network: nn.Module,
    architecture: Mapping[str, Any] | None,
    preprocessing: Preprocessing,
    labels: Sequence[str],
) -> Classifier:
    """The classification network of the library that a backbone is of, with the weights of one of its networks.

    Args:
        network: images -> features (B, D), of that architecture; its weights are copied.
        architecture: as the backbone says; None where only its maker knows.
        preprocessing: of its images.
        labels: of the classes; the layer that classifies is still to be written (``put``).

    Raises:
        InputError: the library has none, or one that classifies other features.
    """
    if architecture is None:
        raise InputError(
            "the backbone was made in Python, and no library knows its architecture: expected one loaded by name; "
            f"{ELSEWHERE}"
        )
    makers = {"timm": _make_timm, "transformers": _make_transformers}
    made, prefix, layer = makers[architecture["library"]](architecture, labels)
    _fill(made, prefix, layer, inner(network), architecture["name"])
    made.eval().requires_grad_(False)
    columns = _columns(made, layer, network, preprocessing, architecture["name"])
    return Classifier(made, prefix, layer, columns)


def _make_timm(architecture: Mapping[str, Any], labels: Sequence[str]) -> tuple[nn.Module, str, str]:
    timm = library("timm")
    name, arguments = native_timm(architecture)
    made = timm.create_model(name, pretrained=False, num_classes=len(labels), **arguments)
    found = made.get_classifier()
    paths = [path for path, module in made.named_modules() if module is found]
    if not isinstance(found, nn.Linear) or not paths:
        raise InputError(f"{name} of timm classifies by {type(found).__name__}, expected one linear layer; {ELSEWHERE}")
    return made, "", paths[0]


def _make_transformers(architecture: Mapping[str, Any], labels: Sequence[str]) -> tuple[nn.Module, str, str]:
    transformers = library("transformers", "hf")
    name = architecture["name"]
    kind = getattr(transformers, name).config_class
    made_by = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(kind, None)
    if made_by is None:
        raise InputError(f"{name}: transformers has no image classification network of that kind; {ELSEWHERE}")
    config = kind.from_dict(dict(architecture["arguments"]["config"]))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    made = (made_by[0] if isinstance(made_by, tuple) else made_by)(config).float()
    start = f"{made.base_model_prefix}."
    layers = [path for path, module in made.named_modules() if isinstance(module, nn.Linear)]
    outside = [path for path in layers if not path.startswith(start)]
    if len(outside) != 1:
        raise InputError(
            f"{type(made).__name__} classifies by {', '.join(outside) or 'no layer'}: expected one; {ELSEWHERE}"
        )
    return made, start, outside[0]


def _fill(made: nn.Module, prefix: str, layer: str, source: nn.Module, name: str) -> None:
    """Copy a backbone's weights; its pooler, which a classifier may not have, is left out.

    Raises:
        InputError: other weights are missing, or over.
    """
    state = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    own = made.state_dict()
    wanted = {key for key in own if not key.startswith(f"{layer}.")}
    over = {key for key in state.keys() - wanted if "pooler" not in key}
    unlike = {key for key in wanted & state.keys() if own[key].shape != state[key].shape}
    if odd := sorted((wanted - state.keys()) | over | unlike):
        raise InputError(
            f"{name}: {odd[0]} is in one of the backbone and {type(made).__name__} only, or of another shape "
            f"({len(odd)} such), expected the same weights; {ELSEWHERE}"
        )
    made.load_state_dict({key: state[key] for key in wanted}, strict=False)


@torch.no_grad()
def _columns(made: nn.Module, layer: str, network: nn.Module, preprocessing: Preprocessing, name: str) -> slice:
    """Which inputs of the layer that classifies are the network's features.

    Raises:
        InputError: none are, or the library's network does not take such images.
    """
    side = preprocessing.size
    images = torch.randn(2, preprocessing.channels, side, side, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    hook = made.get_submodule(layer).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    try:
        made(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{type(made).__name__} does not take images of {side} px ({first_line(error)}), expected a network of "
            f"that size: load the backbone without --image-size, or {ELSEWHERE}"
        ) from error
    finally:
        hook.remove()
    features = network(images)
    width, within = features.shape[1], NEAR * float(features.abs().max())
    for start in range(0, seen[0].shape[1] - width + 1, width):
        columns = slice(start, start + width)
        if float((seen[0][:, columns] - features).abs().max()) <= within:
            return columns
    raise InputError(
        f"{name}: what {type(made).__name__} classifies are not the features that the pool's heads were learned on "
        f"(class token, mean of patches, or another pooling): {ELSEWHERE}"
    )
