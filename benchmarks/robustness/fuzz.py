"""Coverage-guided fuzzing of everything that reads what a user, or a stranger, gives.

    pip install atheris
    python benchmarks/robustness/fuzz.py index -atheris_runs=1000000 -max_len=8192

Targets: ``index`` (pool.json), ``card`` (card.json), ``tensors`` (safetensors, and the texts beside them), ``weights``
(``--weights``), ``split`` (``--split``). What comes after the target is libFuzzer's. A crash is any error but those
that are promised, and libFuzzer writes the input that made it; a hang is an input that takes longer than ``-timeout``.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")
with atheris.instrument_imports(include=["intarsia", "json"]):
    from safetensors import SafetensorError

    from intarsia.cli.options import parse_weights
    from intarsia.data.splits import check_tasks, grouped, read_split
    from intarsia.errors import InputError
    from intarsia.store.card import Card
    from intarsia.store.files import parse_metadata, parse_tensors
    from intarsia.store.index import Index
    from intarsia.strict_json import parse_json

POOL = Path(__file__).parents[2] / "tests" / "pools" / "format-4"
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)
"""What ``storage.reading`` turns into one clear error."""


def index(data: bytes) -> None:
    """``pool.json``."""
    record = parse_json(data)
    record.pop("format")
    Index.from_record(record).check_names()


def card(data: bytes) -> None:
    """``card.json``."""
    Card.from_bytes(data, "task01")


def tensors(data: bytes) -> None:
    """A file of tensors."""
    parse_tensors(data)
    parse_metadata(data)


def weights(data: bytes) -> None:
    """``--weights``."""
    parse_weights(data.decode("utf-8", "surrogateescape"))


def split(data: bytes) -> None:
    """``--split``."""
    path = Path(tempfile.gettempdir()) / f"intarsia-fuzz-{id(split)}.json"
    path.write_bytes(data)
    check_tasks([*grouped("photos", ["fox", "elk", "dog"], split=read_split(path)).items()])


TARGETS: dict[str, tuple[Callable[[bytes], None], Iterable[bytes], tuple[type[Exception], ...]]] = {
    "index": (index, [(POOL / "pool.json").read_bytes()], DAMAGED),
    "card": (card, [(POOL / "modules" / "task01" / "card.json").read_bytes()], DAMAGED),
    "tensors": (tensors, [path.read_bytes() for path in POOL.rglob("*.safetensors")], DAMAGED),
    "weights": (weights, [b"birds=.7,cars=.3"], ()),
    "split": (split, [b'{"wild": ["fox", "elk"], "tame": ["dog"]}'], ()),
}
"""Name -> what reads, what it begins with, and the errors that the reader's caller makes one of."""


def main() -> None:
    """Fuzz one target."""
    if sys.argv[1:2] == [] or sys.argv[1] not in TARGETS:
        raise SystemExit(f"expected one of {', '.join(TARGETS)}, then libFuzzer's own flags")
    target, seeds, allowed = TARGETS[sys.argv[1]]

    def once(data: bytes) -> None:
        with suppress(InputError, *allowed):
            target(data)

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *sys.argv[2:], corpus], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
