"""The machine: its device, what it is called, and its memory."""

import ctypes
import hashlib
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from intarsia.errors import InputError


def machine(device: torch.device) -> str:
    """What a run is made on: the kind of processor, torch's threads, and the card if there is one."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {card}"


def peak_memory() -> int:
    """Of this process so far, resident, in MiB.

    Linux counts it from the program's start under VmHWM; ``getrusage`` there begins with what the parent held. Where
    the system counts neither (Windows), 0.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) // 1024
    try:
        import resource  # noqa: PLC0415  not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the C library can: holes between tensors do not add up over tasks."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def on_device(name: str) -> torch.device:
    """The device called ``name``; the best there is for ``auto``.

    Raises:
        InputError: there is no such device, here or anywhere.
    """
    here = ["cpu"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        here += ["cuda" if count == 1 else f"cuda:0 to cuda:{count - 1}"]
    if torch.backends.mps.is_available():
        here += ["mps"]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else here[-1])
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # a device may have a name, and not be there, or hold no numbers (meta)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise InputError(
            f"device {name!r}: this machine has no such device, or torch cannot use it; expected auto or "
            f"{' or '.join(here)}"
        ) from error
    return device


@cache
def code() -> dict[str, str]:
    """What code runs: the package's version, a hash of its sources, and the commit of its checkout if it has one."""
    package = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    told = {"version": version("intarsia"), "sources": found.hexdigest()[:16]}
    git = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # installed, or no git
        return told
    return {**told, "commit": commit}
