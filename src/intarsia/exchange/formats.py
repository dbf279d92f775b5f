"""A composed model, written for another library: which formats there are, and that each is checked as it is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from intarsia.errors import InputError
from intarsia.exchange.checks import Difference, logit_difference, noise, probability_difference, refuse_other
from intarsia.exchange.extras import new_folder, quiet
from intarsia.exchange.graphs import read_onnx, read_torch, write_onnx, write_torch
from intarsia.exchange.libraries import read_timm, read_transformers, write_timm, write_transformers
from intarsia.merging.model import ComposedModel

Answers = Callable[[Sequence[Path]], Tensor]


@dataclass(frozen=True)
class Format:
    """How a model is written, and read again by the library it is written for.

    Args:
        write: into a folder that is there and empty.
        read: the folder, and ours -> normalised images to logits, and image files to probabilities, if it has a
            preprocessing that runs.
        linear: whether the library's own classifier is written, which is linear: ``ComposedModel.linear``.
    """

    write: Callable[[ComposedModel, Path], None]
    read: Callable[[Path, ComposedModel], tuple[Callable[[Tensor], Tensor], Answers | None]]
    linear: bool = False


FORMATS = {
    "transformers": Format(write_transformers, read_transformers, linear=True),
    "timm": Format(write_timm, read_timm, linear=True),
    "onnx": Format(write_onnx, read_onnx),
    "torch": Format(write_torch, read_torch),
}


def export_model(model: ComposedModel, format_: str, folder: str | Path) -> Difference:
    """Write a model for another library, read it with that library, and compare both on a few images.

    Args:
        model: on the CPU.
        format_: one of ``FORMATS``.
        folder: new or empty.

    Returns:
        How far it is from ours, for timm and transformers from our linear one: rounding.

    Raises:
        InputError: an unknown format, a folder that is in use, a library that is not installed, a network that the
            format cannot hold, or a model that is not ours when it is read again; nothing was written.

    Example:
        >>> export_model(pool.mean(), "onnx", "out").logits < 1e-5
        True
    """
    if format_ not in FORMATS:
        raise InputError(f"format {format_!r}: expected one of {', '.join(FORMATS)}")
    chosen = FORMATS[format_]
    model = model.linear() if chosen.linear else model
    with new_folder(Path(folder)) as fresh, quiet():
        chosen.write(model, fresh)
        theirs, answers = chosen.read(fresh, model)
        difference = logit_difference(model, theirs, noise(model.preprocessing))
        refuse_other(difference, f"--format {format_}")
        if answers is None:
            return Difference(difference)
        return Difference(difference, *probability_difference(model, answers, model.preprocessing.channels == 3))
