"""A composed model: an ordinary network with merged weights, and the heads of its tasks; how it is asked and kept."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import outputs
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.decoding import decode
from intarsia.errors import InputError
from intarsia.heads.head import Head
from intarsia.store.files import Seen, load, read_json, reading, save, write_json, writing

CARD, WEIGHTS = "model.json", "model.safetensors"


class ComposedModel(nn.Module):
    """An ordinary network with merged weights and the heads of its tasks.

    Args:
        network: images (B, C, H, W) -> features (B, D), merged.
        head: of all classes.
        classes: task -> class names, in the head's order.
        preprocessing: how images are prepared.
        recipe: how it came about, as JSON.
        before: the same composition when only the first i tasks had been learned; for the accuracy matrix.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        classes: Mapping[str, Sequence[str]],
        preprocessing: Preprocessing,
        recipe: Mapping[str, Any],
        before: Callable[[int], "ComposedModel"] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.head = cast(nn.Linear, nn.utils.skip_init(nn.Linear, head.weight.shape[1], len(head)))
        self.head.requires_grad_(False)
        self.head.weight.copy_(head.weight)
        self.head.bias.copy_(head.bias)
        self.classes = {task: tuple(names) for task, names in classes.items()}
        self.preprocessing = preprocessing
        self.recipe = dict(recipe)
        self.before = before

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all classes, in the order of the logits."""
        return tuple(name for names in self.classes.values() for name in names)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of normalised images (B, channels, size, size)."""
        return self.head(self.network(images))

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, C), on the CPU, of uint8 images (N, channels, R, R) as a stream holds them."""
        return outputs(self, images, self.preprocessing, self.head.weight.device)

    def predict(self, paths: Sequence[str | Path]) -> list[str]:
        """Class names of image files.

        Raises:
            InputError: a file is missing or not an image.
        """
        return [self.labels[int(i)] for i in self.probabilities(paths).argmax(1)]

    def probabilities(self, paths: Sequence[str | Path]) -> Tensor:
        """Softmax (N, C) of image files."""
        if not paths:
            raise InputError("no image named: expected one or more files")
        images = torch.stack([decode(path, self.preprocessing) for path in paths])
        return torch.softmax(self.logits(images), 1)

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` (``network.*``, ``head.*``) and ``model.json`` into a new or empty folder.

        Raises:
            InputError: the folder exists and is not empty.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not an empty folder: name another, nothing was written")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        seen = save(self.state_dict(), folder / WEIGHTS, exact=True)
        card = {
            "format": 1,
            "recipe": self.recipe,
            "classes": self.classes,
            "preprocessing": self.preprocessing.record(),
            "weights": {"sha256": seen.sha256, "size": seen.size},
        }
        write_json(card, folder / CARD)

    @classmethod
    def load(cls, folder: str | Path, backbone: Backbone | None = None) -> "ComposedModel":
        """The inverse of ``save``; theta0's architecture comes from ``backbone`` or from the recipe's name of it.

        Raises:
            InputError: no composed model is there, it is damaged, or it does not fit the backbone.
        """
        folder = Path(folder)
        if not (folder / CARD).is_file():
            raise InputError(f"{folder} is not a composed model: expected {CARD} and {WEIGHTS} in it")
        card = read_json(folder / CARD)
        with reading(folder / CARD):
            preprocessing = Preprocessing.from_record(card["preprocessing"])
            classes = {task: tuple(names) for task, names in card["classes"].items()}
            recipe, seen = card["recipe"], Seen(**card["weights"]) if "weights" in card else None
            name = recipe["backbone"]
        backbone = backbone or Backbone.load(name)
        state = load(folder / WEIGHTS, seen)
        with reading(folder / WEIGHTS):
            head = Head(state["head.weight"], state["head.bias"])
            model = cls(copy.deepcopy(backbone.model), head, classes, preprocessing, recipe)
            if len(model.labels) != len(head):
                raise ValueError(f"a head of {len(head)} classes, of which {CARD} names {len(model.labels)}")
        own = model.state_dict()
        wrong = sorted(
            {k for k in own if k not in state or state[k].shape != own[k].shape} | (state.keys() - own.keys())
        )
        if wrong:
            raise InputError(
                f"{folder / WEIGHTS} does not fit backbone {backbone.name}: {wrong[0]} differs; name its own"
            )
        model.load_state_dict(state)
        return model
