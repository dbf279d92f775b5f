"""Coverage-guided fuzzing of everything that reads what a user, or a stranger, gives.

    pip install atheris
    python benchmarks/robustness/fuzz.py index -atheris_runs=1000000 -max_len=8192

Targets: ``index`` (pool.json), ``card`` (card.json), ``tensors`` (safetensors, and the texts beside them), ``weights``
(``--weights``), ``split`` (``--split``). What comes after the target is libFuzzer's. A crash is any error but those
that are promised, and libFuzzer writes the input that made it; a hang is an input that takes longer than ``-timeout``.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")
with atheris.instrument_imports(include=["intarsia", "json"]):
    from safetensors import SafetensorError

    from intarsia.adapters.lora import LoRA
    from intarsia.cli.options import parse_weights
    from intarsia.curvature.fisher import DiagonalFisher
    from intarsia.data.splits import check_tasks, grouped, read_split
    from intarsia.errors import InputError
    from intarsia.pool import Pool
    from intarsia.store.card import Card
    from intarsia.store.files import parse_metadata, parse_tensors
    from intarsia.store.index import Index
    from intarsia.strict_json import parse_json

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
cases: Any = import_module("cases")  # the tests' small network
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
    parse_weights(data.decode("utf-8", "surrogateescape").split("\0"))


def split(data: bytes) -> None:
    """``--split``."""
    path = Path(tempfile.gettempdir()) / f"intarsia-fuzz-{id(split)}.json"
    path.write_bytes(data)
    check_tasks([*grouped("photos", ["fox", "elk", "dog"], split=read_split(path)).items()])


TARGETS: dict[str, tuple[Callable[[bytes], None], str | bytes, tuple[type[Exception], ...]]] = {
    "index": (index, "pool.json", DAMAGED),
    "card": (card, "modules/task01/card.json", DAMAGED),
    "tensors": (tensors, "**/*.safetensors", DAMAGED),
    "weights": (weights, b"birds=.7\0cars=.3", ()),
    "split": (split, b'{"wild": ["fox", "elk"], "tame": ["dog"]}', ()),
}
"""Name -> what reads, what it begins with (bytes, or files of a pool), and the errors that its caller makes one of."""


def tiny_pool(folder: Path) -> Path:
    """A pool of one module that nobody trained."""
    theta0, adapter = cases.backbone(), LoRA(2)
    made = cases.module("task01", ["a", "b"], adapter, theta0, 1)
    fisher = DiagonalFisher({name: weight.square() for name, weight in theta0.trainable.items()}, 5)
    pool = Pool.create(folder, theta0, adapter, {"method": "ita"})
    pool.add(made, fisher, made.reference)
    return pool.path


def main() -> None:
    """Fuzz one target."""
    if sys.argv[1:2] == [] or sys.argv[1] not in TARGETS:
        raise SystemExit(f"expected one of {', '.join(TARGETS)}, then libFuzzer's own flags")
    target, start, allowed = TARGETS[sys.argv[1]]

    def once(data: bytes) -> None:
        with suppress(InputError, *allowed):
            target(data)

    with tempfile.TemporaryDirectory() as folder:
        pool, corpus = tiny_pool(Path(folder) / "pool"), Path(folder) / "corpus"
        corpus.mkdir()
        seeds = [start] if isinstance(start, bytes) else [path.read_bytes() for path in sorted(pool.glob(start))]
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
