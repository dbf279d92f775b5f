"""The machine: its device, what it is called, and its memory."""

import ctypes
import platform
import re
import resource
import sys
from pathlib import Path

import torch

from intarsia.errors import InputError


def machine(device: torch.device) -> str:
    """What a run is made on: the kind of processor, torch's threads, and the card if there is one."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {card}"


def peak_memory() -> int:
    """Of this process so far, resident, in MiB.

    Linux counts it from the program's start under VmHWM; ``getrusage`` there begins with what the parent held.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the C library can: holes between tensors do not add up over tasks."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def on_device(name: str) -> torch.device:
    """The device called ``name``; the best there is for ``auto``."""
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise InputError(f"unknown device {name!r}: expected auto, cpu, cuda or mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
