"""A composed model as a graph that runs without its library: ONNX, and torch.export.

Both take normalised images (B, C, S, S), any B of 1 or more, and give logits (B, classes). How images are prepared, and
the names of the classes, stand in ``classifier.json`` beside the graph, and in the graph's own file.

    onnx   model.onnx: ``onnxruntime.InferenceSession("model.onnx").run(None, {"images": array})``
    torch  model.pt2: ``torch.export.load("model.pt2").module()(images)``; torch's AOTInductor compiles it
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intarsia.errors import InputError, first_line
from intarsia.exchange.checks import noise
from intarsia.exchange.extras import library, quiet
from intarsia.merging.model import ComposedModel
from intarsia.store.files import write_json

ABOUT, ONNX, TORCH = "classifier.json", "model.onnx", "model.pt2"
LARGEST = 1_500_000_000
"""Bytes of weights that an ONNX file holds itself; protobuf's limit is 2 GiB. More stand in a file beside it."""


def about(model: ComposedModel) -> dict[str, Any]:
    """What whoever runs a graph has to know, as JSON."""
    how = model.preprocessing
    return {
        "input": {"name": "images", "shape": ["batch", how.channels, how.size, how.size], "dtype": "float32"},
        "output": {"name": "logits", "shape": ["batch", len(model.labels)], "dtype": "float32"},
        "preprocessing": how.record(),
        "order": "resize (center: the shorter side; squash: both; border: the longer side) to `resize`, crop the "
        "middle to `size`, divide by 255, subtract mean, divide by std",
        "classes": list(model.labels),
        "recipe": {key: value for key, value in model.recipe.items() if key != "backbone"},
    }


def write_onnx(model: ComposedModel, folder: Path) -> None:
    """Write ``model.onnx``, its batch dynamic.

    Raises:
        InputError: the libraries are not installed, or the network cannot be exported.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    images, what = noise(model.preprocessing, 2), about(model)
    batch = torch.export.Dim("batch")
    with _exporting("onnx"):
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: batch}},
        )
        assert program is not None
        for key in ("preprocessing", "order", "classes", "recipe"):
            program.model.metadata_props[key] = json.dumps(what[key])
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        program.save(str(folder / ONNX), external_data=size > LARGEST)
    write_json(what, folder / ABOUT)


def read_onnx(folder: Path, model: ComposedModel) -> tuple[Callable[[Tensor], Tensor], None]:
    """What onnxruntime makes of the file: normalised images -> logits."""
    runtime = library("onnxruntime")
    session = runtime.InferenceSession(str(folder / ONNX), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), None


def write_torch(model: ComposedModel, folder: Path) -> None:
    """Write ``model.pt2`` of ``torch.export``, its batch dynamic.

    Raises:
        InputError: the network cannot be exported.
    """
    what = about(model)
    with _exporting("torch"):
        images = noise(model.preprocessing, 2)
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / TORCH, extra_files={ABOUT: json.dumps(what)})
    write_json(what, folder / ABOUT)


def read_torch(folder: Path, model: ComposedModel) -> tuple[Callable[[Tensor], Tensor], None]:
    """What torch makes of the file: normalised images -> logits."""
    return torch.export.load(folder / TORCH).module(), None


@contextmanager
def _exporting(format_: str) -> Iterator[None]:
    """Exporters report to standard output and by warnings; what they cannot do is one line.

    Raises:
        InputError: the exporter fails.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet(), redirect_stdout(StringIO()):
            yield
    except (InputError, KeyboardInterrupt, MemoryError, OSError):
        raise
    except Exception as error:  # whatever a network's code makes of being traced
        raise InputError(
            f"--format {format_}: the network cannot be exported ({type(error).__name__}: {first_line(error)}): "
            "expected one whose code does not depend on its numbers; use another --format"
        ) from error
    finally:
        logger.setLevel(level)
