"""State on disk: safetensors and JSON, never pickle; written whole or not at all, and checked when it is read.

A file is written beside the one it replaces, flushed to the disk and renamed. A power cut leaves the old one or the
new one; what lies beside is named ``.<name>.new``.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from intarsia.errors import InputError
from intarsia.numerics import finite
from intarsia.strict_json import LARGEST_JSON, parse_json

Known = dict[Path, tuple[int, int, int]]
"""Files whose bytes were what they should be, and their size, time of change in ns and inode then."""


@dataclass(frozen=True)
class Seen:
    """What a file held when it was written: the SHA-256 and number of its bytes (None: not known)."""

    sha256: str
    size: int | None = None

    @classmethod
    def of(cls, data: bytes) -> "Seen":
        """Of a file's bytes."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))

    def check(self, data: bytes) -> None:
        """Refuse other bytes.

        Raises:
            ValueError: what differs.
        """
        if self.size is not None and len(data) != self.size:
            raise ValueError(f"{len(data):,} bytes, expected {self.size:,}")
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise ValueError(f"its bytes have changed: SHA-256 {found[:12]}, expected {self.sha256[:12]}")


def refuse_full(folder: Path) -> None:
    """Refuse to write into a folder that has something in it.

    Raises:
        InputError: it is there, and is no empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder: name another with --out, nothing was written")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file is damaged where reading it fails."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): allow it, and run again") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError, RecursionError) as error:
        raise InputError(f"{path} is missing or damaged ({_why(error)}): restore it") from error


def _why(error: Exception) -> str:
    """An error in words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): what was there is as it was; make room for it, or "
            "allow it, and run again"
        ) from error


def read(path: Path, seen: Seen | None = None, *, largest: int | None = None, known: Known | None = None) -> bytes:
    """The bytes of a file.

    Args:
        path: the file.
        seen: what it held when it was written.
        largest: bytes it may have; as many as it had, if that is known.
        known: while a file is as it stands there, it is not hashed again; this one is put there.

    Raises:
        InputError: it is missing, too large or not what it was.
    """
    with reading(path):
        most = seen.size if seen is not None and seen.size is not None else largest
        there = path.stat()
        if most is not None and (size := there.st_size) > most:
            raise ValueError(f"{size:,} bytes, expected at most {most:,}")
        data = path.read_bytes()
        stands = there.st_size, there.st_mtime_ns, there.st_ino
        if seen is not None and not (known and known.get(path) == stands and len(data) == there.st_size):
            seen.check(data)
        if seen is not None and known is not None:
            known[path] = stands
    return data


def write(data: bytes, path: Path) -> Seen:
    """Put a file in place, whole or not at all; it is on the disk when this returns.

    Raises:
        InputError: the disk is full, or writing is not allowed; the file that was there before still is.
    """
    beside = path.with_name(f".{path.name}.new")
    with writing(path):
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        flush(path.parent)
    return Seen.of(data)


def flush(folder: Path) -> None:
    """Put a folder's list of names on the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, seen: Seen | None = None) -> Any:
    """What a JSON file says.

    Raises:
        InputError: it is missing, larger than 64 MiB, damaged, or has a key twice.
    """
    data = read(path, seen, largest=LARGEST_JSON)
    with reading(path):
        return parse_json(data)


def as_json(record: Any) -> bytes:
    """A record as it stands in a file."""
    return (json.dumps(record, indent=1) + "\n").encode()


def write_json(record: Any, path: Path) -> Seen:
    """Write a record as JSON; see ``write``."""
    return write(as_json(record), path)


def load(path: Path, seen: Seen | None = None) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        InputError: it is missing or damaged, or a number in it is not finite.
    """
    data = read(path, seen)
    with reading(path):
        return parse_tensors(data)


def parse_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors in a safetensors file's bytes.

    Raises:
        SafetensorError: its header and its length do not fit.
        ValueError: a number is not finite.
    """
    tensors = safetensors.torch.load(data)
    for name, value in tensors.items():
        if value.is_floating_point() and not finite(value):
            raise ValueError(f"{name} has numbers that are not finite")
    return tensors


def parse_metadata(data: bytes) -> dict[str, str]:
    """The texts beside the tensors in the bytes of a safetensors file that ``parse_tensors`` takes."""
    length = int.from_bytes(data[:8], "little")
    return parse_json(data[8 : 8 + length]).get("__metadata__", {})


def save(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None, *, exact: bool = False
) -> Seen:
    """Write tensors in single precision, whole numbers as they are; or all as they are (``exact``).

    Tensors that share memory, as the weight of a layer under two names does, are written once per name.
    """
    kept = {name: value.detach().to("cpu") for name, value in tensors.items()}
    single = {n: v.to(torch.float32) if v.is_floating_point() and not exact else v for n, v in kept.items()}
    owners = {v.untyped_storage().data_ptr(): n for n, v in single.items()}
    own = {n: v if owners[v.untyped_storage().data_ptr()] == n else v.clone() for n, v in single.items()}
    return write(safetensors.torch.save({n: v.contiguous() for n, v in own.items()}, metadata), path)
