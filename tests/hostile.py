"""Pools that are damaged or that lie: what a disk, or a stranger, makes of one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from cases import edit
from intarsia.store import files as storage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


HARM: dict[str, Callable[[Path], object]] = {
    "a bit flipped": flip,
    "cut short": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a byte longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": lambda path: path.unlink(),
}


def renamed(record: dict[str, Any], to: str) -> None:
    task, record["tasks"][0] = record["tasks"][0], to
    record["files"] = {
        name.replace(f"modules/{task}/", f"modules/{to}/"): seen for name, seen in record["files"].items()
    }


def fisher_of(record: dict[str, Any]) -> str:
    return f"fisher-{len(record['tasks'])}.safetensors"


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a task named ../a": lambda r: renamed(r, "../a"),
    "a task named /etc": lambda r: renamed(r, "/etc"),
    "a task named with a backslash": lambda r: renamed(r, "a\\b"),
    "a task named with a line break": lambda r: renamed(r, "a\nb"),
    "a task named with a right-to-left mark": lambda r: renamed(r, "a\u202eb"),
    "a task named with 300 characters": lambda r: renamed(r, "a" * 300),
    "a task named .hidden": lambda r: renamed(r, ".hidden"),
    "a task that is a number": lambda r: r["tasks"].__setitem__(0, 5),
    "tasks that are a text": lambda r: r.update(tasks="a"),
    "a task named twice": lambda r: r["tasks"].append(r["tasks"][0]),
    "a file outside the pool": lambda r: r["files"].update({"../x": r["files"][fisher_of(r)]}),
    "a file that is not named": lambda r: r["files"].pop(fisher_of(r)),
    "a hash that is none": lambda r: r["files"].update({fisher_of(r): {"sha256": "x", "size": 1}}),
    "files in a list": lambda r: r.update(files=[1]),
    "a class renamed to ../x": lambda r: r.update(renamed={r["tasks"][0]: {"a": "../x"}}),
    "names in a list": lambda r: r.update(renamed=[["a", "b"]]),
    "rank 0": lambda r: r["adapter"].update(rank=0),
    "an unknown adapter": lambda r: r["adapter"].update(kind="pickle"),
    "a backbone in a list": lambda r: r.update(backbone=[]),
    "a backbone whose name is a number": lambda r: r["backbone"].update(name=3),
}


def rehashed(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in a pool's file, and their hash in its index: what a liar would do."""
    (folder / name).write_bytes(data)
    seen = storage.Seen.of(data)
    edit(folder / "pool.json", lambda r: r["files"].update({name: {"sha256": seen.sha256, "size": seen.size}}))


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    return safetensors.torch.save(tensors)


def header(shape: list[int], end: int) -> bytes:
    """A file of one tensor that says of itself what is not so."""
    text = json.dumps({"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}})
    return len(text).to_bytes(8, "little") + text.encode() + bytes(64)


PROJ = "blocks.0.attn.proj.weight.B"
FORGED: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "numbers that are not numbers": ("head", lambda p: changed(p, lambda t: t["weight"].fill_(float("nan")))),
    "infinite numbers": (
        "vector",
        lambda p: changed(p, lambda t: t[PROJ].fill_(float("inf"))),
    ),
    "more classes than the card has": ("head", lambda p: changed(p, lambda t: t.update(bias=torch.zeros(3)))),
    "features of another width": ("drift", lambda p: changed(p, lambda t: t.update(matrix=torch.zeros(2, 2)))),
    "a tensor less": ("statistics", lambda p: changed(p, lambda t: t.pop("centres"))),
    "a tensor of 400 GB in a file of 100 bytes": ("head", lambda p: header([99999999999], 399999999996)),
    "a shape whose product overflows": ("head", lambda p: header([2**32, 2**32, 2**32], 64)),
    "a header longer than any file": ("head", lambda p: (2**63).to_bytes(8, "little") + bytes(64)),
    "no header": ("head", lambda p: b"abc"),
    "a pickle": ("head", lambda p: b"\x80\x04cos\nsystem\n(S'echo'\ntR."),
}
