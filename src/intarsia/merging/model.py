"""A merged model: an ordinary network with merged weights, and the heads of its tasks; how it is asked and kept.

On disk it is self-contained: neither the pool nor theta0's weights are needed to load it.

    model.safetensors   network.*  the network's own state dict: less ``network.``, the library that names the
                                   architecture loads it strictly (``timm.create_model(name, num_classes=0)``)
                        head.weight (C, D), head.bias (C,): logits = features @ weight.T + bias, in the order of classes
                        head.factors (C, r, D), head.offsets (C, r), head.expected (C,), where there are any: to the
                        logit of class c is added half of |factors[c] @ features - offsets[c]|^2 - expected[c]
    model.json          format, architecture (library, name, arguments), preprocessing (size, resize, channels, mean,
                        std, interpolation), classes (task -> names), id2label (row of the head -> name), recipe
                        (coefficients, heads, theta0's name and hash), streams (task -> where its images were), hash
                        and size of the weights

An image is resized (shorter side to ``resize``), cropped in the middle to ``size``, divided by 255, and normalised.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import BATCH, Pixels, outputs
from intarsia.backbones.libraries.architecture import build
from intarsia.backbones.locations import absolute, kept
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.decoding import decode, decode_all
from intarsia.errors import DivergenceError, InputError
from intarsia.heads.head import Head
from intarsia.heads.layer import HeadLayer
from intarsia.numerics import finite
from intarsia.progress import Progress, silent
from intarsia.store.card import located
from intarsia.store.files import Seen, load, read_json, reading, refuse_full, save, write_json, writing
from intarsia.store.index import MERGED

CARD, WEIGHTS = MERGED, "model.safetensors"


FORMAT = 2


class ComposedModel(nn.Module):
    """An ordinary network with merged weights and the heads of its tasks.

    Args:
        network: images (B, C, H, W) -> features (B, D), merged.
        head: of all classes.
        classes: task -> class names, in the head's order.
        preprocessing: how images are prepared.
        recipe: how it came about, as JSON.
        before: the same composition when only the first i tasks had been learned; for the accuracy matrix.
        architecture: how its network is built (``backbones.libraries.architecture``); None where only its maker knows.
        streams: task -> where its images were, as its card says.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        classes: Mapping[str, Sequence[str]],
        preprocessing: Preprocessing,
        recipe: Mapping[str, Any],
        before: Callable[[int], "ComposedModel"] | None = None,
        *,
        architecture: Mapping[str, Any] | None = None,
        streams: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.head = HeadLayer(head)
        self.classes = {task: tuple(names) for task, names in classes.items()}
        self.preprocessing = preprocessing
        self.recipe = dict(recipe)
        self.before = before
        self.architecture = architecture
        self.streams = dict(streams or {})

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all classes, in the order of the logits."""
        return tuple(name for names in self.classes.values() for name in names)

    def linear(self) -> "ComposedModel":
        """The same network under a linear head: what each class's own covariance adds is left out (``heads.head``)."""
        if self.head.factors is None:
            return self
        head, about = self.head.head().linear(), {"architecture": self.architecture, "streams": self.streams}
        return ComposedModel(self.network, head, self.classes, self.preprocessing, self.recipe, self.before, **about)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of normalised images (B, channels, size, size)."""
        return self.head(self.network(images).to(self.head.weight.dtype))

    def logits(self, images: Pixels) -> Tensor:
        """Logits (N, C), on the CPU, of uint8 images (N, channels, R, R) as a stream holds them.

        Raises:
            DivergenceError: one is no number (NaN): weights so large that features overflow.
        """
        found = outputs(self, images, self.preprocessing, self.head.weight.device)
        if torch.isnan(found).any():
            raise DivergenceError(
                f"model {self.recipe.get('name', 'merged')!r}: its logits are no numbers (NaN), expected finite ones: "
                "its weights are too large; use smaller coefficients (--scale, --weights)"
            )
        return found

    def predict(self, paths: Sequence[str | Path]) -> list[str]:
        """Class names of image files.

        Raises:
            InputError: a file is missing or not an image.
        """
        return [self.labels[int(i)] for i in self.probabilities(paths).argmax(1)]

    def probabilities(self, paths: Sequence[str | Path]) -> Tensor:
        """Softmax (N, C) of image files.

        Raises:
            InputError: no file, or one that is missing or not an image.
        """
        rows: list[Tensor] = []
        for _, row in self.read_and_answer(paths):
            if isinstance(row, InputError):
                raise row
            rows.append(row)
        return torch.stack(rows)

    def read_and_answer(
        self, paths: Sequence[str | Path], progress: Progress = silent
    ) -> Iterator[tuple[str | Path, Tensor | InputError]]:
        """Each image file with its softmax (C,), or with what is wrong with it; decoded a batch at a time.

        Raises:
            InputError: no file is named.
        """
        if not paths:
            raise InputError("no image named: expected one or more files")
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            images = _decoded(batch, self.preprocessing, self._bits())
            good = [image for image in images if isinstance(image, Tensor)]
            rows = iter(torch.softmax(self.logits(torch.stack(good)), 1) if good else ())
            for path, image in zip(batch, images, strict=True):
                yield path, image if isinstance(image, InputError) else next(rows)
            progress("images", start + len(batch), len(paths))

    def _bits(self) -> int | None:
        """Of grey values of more than 8 bits in what its tasks were learned from, where that is one number."""
        found = {(stream.get("load") or {}).get("bits") for stream in self.streams.values()}
        return found.pop() if len(found) == 1 else None

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` (see the module's docstring) into a new or empty folder.

        Raises:
            InputError: the folder exists and is not empty, or a weight is not finite; nothing was written.
        """
        folder = Path(folder)
        state, place = self.state_dict(), partial(kept, folder=folder)
        refuse_full(folder)
        for name, value in state.items():
            if value.is_floating_point() and not finite(value):
                raise InputError(f"model {self.recipe.get('name')!r}: {name} is not finite: nothing was written")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        seen = save(state, folder / WEIGHTS, exact=True)
        base = self.recipe.get("backbone")
        card = {
            "format": FORMAT,
            "architecture": self.architecture,
            "recipe": self.recipe if base is None else {**self.recipe, "backbone": place(base)},
            "classes": self.classes,
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "preprocessing": self.preprocessing.record(),
            "streams": {t: located(stream, place) for t, stream in self.streams.items()},
            "weights": {"sha256": seen.sha256, "size": seen.size},
        }
        write_json(card, folder / CARD)

    @classmethod
    def load(cls, folder: str | Path, backbone: Backbone | None = None) -> "ComposedModel":
        """The inverse of ``save``; no weight but the model's own is read.

        Args:
            folder: of the model.
            backbone: whose network it has; needed only where it was composed on one that was made in Python.

        Raises:
            InputError: no merged model is there, it is damaged, or it does not fit the architecture.
        """
        folder = Path(folder)
        card, place = read_card(folder), partial(absolute, base=folder)
        with reading(folder / CARD):
            preprocessing = Preprocessing.from_record(card["preprocessing"])
            classes = {task: tuple(names) for task, names in card["classes"].items()}
            recipe, seen = card["recipe"], Seen(**card["weights"])
            name = place(recipe["backbone"])
            streams = {t: located(s, place) for t, s in card["streams"].items()}
            architecture = card["architecture"]
        if backbone is None and architecture is None:
            raise InputError(
                f"{folder} was composed on {name!r}, a backbone made in Python: give it, ComposedModel.load(folder, "
                "backbone)"
            )
        state = load(folder / WEIGHTS, seen)
        with reading(folder / CARD):
            network = copy.deepcopy(backbone.model) if backbone is not None else build(architecture)
        with reading(folder / WEIGHTS):
            head = Head.from_tensors({k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")})
            model = cls(
                network,
                head,
                classes,
                preprocessing,
                {**recipe, "backbone": name},
                architecture=architecture,
                streams=streams,
            )
            if len(model.labels) != len(head):
                raise ValueError(f"a head of {len(head)} classes, of which {CARD} names {len(model.labels)}")
        own = model.state_dict()
        wrong = sorted(
            {k for k in own if k not in state or state[k].shape != own[k].shape} | (state.keys() - own.keys())
        )
        if wrong:
            of = backbone.name if backbone is not None else architecture["name"]
            raise InputError(f"{folder / WEIGHTS} does not fit {of}: {wrong[0]} differs; name its own backbone")
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        made = {k: nn.Parameter(v, requires_grad=False) if k in parameters else v for k, v in state.items()}
        model.load_state_dict(made, assign=True)  # a layer of two names is loaded under both
        return model.requires_grad_(False)


def read_card(folder: Path) -> dict[str, Any]:
    """What ``model.json`` says.

    Raises:
        InputError: no merged model is there, or one of another format.
    """
    if not (folder / CARD).is_file():
        raise InputError(f"{folder} is not a composed model: expected {CARD} and {WEIGHTS} in it")
    card = read_json(folder / CARD)
    with reading(folder / CARD):
        found = card["format"]
        if found != FORMAT:
            raise InputError(f"{folder}: model format {found}, this version reads format {FORMAT}: compose it again")
    return card


def _decoded(paths: Sequence[str | Path], preprocessing: Preprocessing, bits: int | None) -> list[Tensor | InputError]:
    """Image files as uint8 (channels, R, R), all at once; one by one where one cannot be read."""

    def each(path: str | Path) -> Tensor | InputError:
        try:
            return decode(path, preprocessing, bits)
        except InputError as error:
            return error

    try:
        return [*decode_all(paths, preprocessing, bits=bits)]
    except InputError:
        return [each(path) for path in paths]
