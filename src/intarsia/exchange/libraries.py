"""A composed model as a folder of timm, or of transformers: its own network, label names and preprocessing.

timm          config.json, model.safetensors: ``timm.create_model("local-dir:DIR", pretrained=True)``; the same
folder is one of transformers, which wraps networks of timm
transformers  config.json, model.safetensors, preprocessor_config.json: ``pipeline("image-classification", DIR)``
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from intarsia.backbones.libraries.transformers import INTERPOLATIONS
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.errors import InputError
from intarsia.exchange.classifier import Classifier, classifier_of, logits_of, native_timm
from intarsia.exchange.extras import library
from intarsia.merging.model import ComposedModel
from intarsia.store.files import save, write_json

WEIGHTS = "model.safetensors"
PYTORCH = {"format": "pt"}
"""What transformers wants to read beside tensors."""


def as_classifier(model: ComposedModel) -> Classifier:
    """A composed model as the network of the library that its backbone is of.

    Raises:
        InputError: see ``classifier_of``.
    """
    made = classifier_of(model.network, model.architecture, model.preprocessing, model.labels)
    return made.put(model.head.head())


def write_timm(model: ComposedModel, folder: Path) -> None:
    """Write a folder of timm.

    Raises:
        InputError: the backbone is none of timm, or one whose features timm does not classify.
    """
    architecture = model.architecture
    if architecture is not None and architecture["library"] != "timm":
        raise InputError(
            f"--format timm: the backbone is {architecture['name']} of {architecture['library']}, expected one of "
            f"timm; use --format {architecture['library']}, onnx or torch"
        )
    made = as_classifier(model)
    assert architecture is not None
    name, arguments = native_timm(architecture)
    network, classes = made.network, len(model.labels)
    config = {
        "architecture": name,
        "num_classes": classes,
        "num_features": getattr(network, "num_features", None),
        "label_names": list(model.labels),
        "model_args": arguments,
        "pretrained_cfg": {
            **_timm_images(model.preprocessing),
            "num_classes": classes,
            "fixed_input_size": True,
            "pool_size": None,
            "first_conv": getattr(network, "pretrained_cfg", {}).get("first_conv"),
            "classifier": made.layer,
        },
    }
    write_json(config, folder / "config.json")
    save(network.state_dict(), folder / WEIGHTS, PYTORCH, exact=True)


def _timm_images(preprocessing: Preprocessing) -> dict[str, Any]:
    """How timm says how images are prepared; it takes floor(size / crop_pct) for the side that is resized to."""
    return {
        "input_size": [preprocessing.channels, preprocessing.size, preprocessing.size],
        "crop_pct": preprocessing.size / (preprocessing.resize + 1e-3),
        "crop_mode": preprocessing.crop,
        "interpolation": preprocessing.interpolation,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def read_timm(folder: Path, model: ComposedModel) -> tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]:
    """What timm makes of the folder: normalised images -> logits, and image files -> probabilities."""
    timm = library("timm")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prepared: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    mode = "RGB" if model.preprocessing.channels == 3 else "L"
    if tuple(network.pretrained_cfg["label_names"]) != model.labels:
        raise InputError(f"timm reads other label names than were written: {network.pretrained_cfg['label_names'][:3]}")

    @torch.no_grad()
    def answers(paths: Sequence[Path]) -> Tensor:
        return network(torch.stack([prepared(Image.open(path).convert(mode)) for path in paths])).softmax(1)

    return network, answers


def write_transformers(model: ComposedModel, folder: Path) -> None:
    """Write a folder of transformers; of a network of timm, timm's, which transformers takes.

    Raises:
        InputError: its images are grey (a pipeline opens them in colour), or see ``classifier_of``.
    """
    transformers = library("transformers", "hf")
    if model.preprocessing.channels != 3:
        raise InputError(
            "--format transformers: the backbone takes grey images, expected colour, which transformers' pipelines "
            "open images in; use --format timm, onnx or torch"
        )
    if model.architecture is not None and model.architecture["library"] == "timm":
        write_timm(model, folder)
        return
    network: Any = as_classifier(model).network
    network.save_pretrained(folder)
    how = model.preprocessing
    whole = {"height": how.resize, "width": how.resize}
    crop = {"height": how.size, "width": how.size}
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    transformers.CLIPImageProcessor(
        size=whole if how.crop == "squash" else {"shortest_edge": how.resize},
        resample=numbers[how.interpolation],
        do_center_crop=how.crop == "center" or how.size < how.resize,
        crop_size=crop,
        image_mean=list(how.mean),
        image_std=list(how.std),
    ).save_pretrained(folder)


def read_transformers(folder: Path, model: ComposedModel) -> tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]:
    """What transformers makes of the folder: normalised images -> logits, and image files -> probabilities."""
    transformers = library("transformers", "hf")
    network = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    pipeline = transformers.pipeline("image-classification", model=str(folder), device="cpu")

    def answers(paths: Sequence[Path]) -> Tensor:
        found = pipeline([str(path) for path in paths], top_k=len(model.labels))
        scores = [{entry["label"]: entry["score"] for entry in row} for row in found]
        return torch.tensor([[row[label] for label in model.labels] for row in scores])

    return lambda images: logits_of(network(pixel_values=images)), answers
