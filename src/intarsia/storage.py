"""State on disk: tensors as safetensors, never pickle; a damaged file is named."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intarsia.errors import InputError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file is damaged where reading it fails."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({type(error).__name__}: {error}): restore it") from error


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        InputError: it is missing or damaged.
    """
    with reading(path):
        return load_file(path)


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors in single precision; whole numbers as they are."""
    kept = {k: v.detach().to("cpu") for k, v in tensors.items()}
    plain = {k: (v.to(torch.float32) if v.is_floating_point() else v).contiguous() for k, v in kept.items()}
    save_file(plain, path, metadata)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
