"""Pictures that lie in a page's own text: PNG in base64."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing, unit
from intarsia.data.stream import Task

SAMPLES = 6
"""Classes of a task that are shown."""


def encoded(png: bytes) -> str:
    """A PNG file as text."""
    return base64.b64encode(png).decode()


def picture(pixels: Tensor) -> str:
    """A decoded image (C, H, W), as the network gets it, ``encoded``."""
    values = (unit(pixels) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(buffer, "PNG")
    return encoded(buffer.getvalue())


def samples(task: Task, preprocessing: Preprocessing) -> list[tuple[str, str]]:
    """The first classes of a task by name, each with its first test image as ``picture``."""
    images, labels = task.test.pixels(preprocessing), task.test.labels
    return [(name, picture(images[int((labels == c).nonzero()[0])])) for c, name in enumerate(task.classes[:SAMPLES])]
