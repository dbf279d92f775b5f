"""What ``learn`` does, nothing left open: ``config.json``, which ``learn --config`` takes back.

A plan begins with another one where there is one: a run that was stopped, the pool that tasks are added to, a preset
of the paper, a record of an earlier run. Flags win over it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intarsia.backbones.locations import hub_parts
from intarsia.backbones.names import BUILTIN, TARGETS
from intarsia.data.choices import DEFAULT_STREAM
from intarsia.errors import InputError
from intarsia.study.choice import Source
from intarsia.training.recommended import Hyperparameters

if TYPE_CHECKING:
    from intarsia.data.stream import TaskStream

CONFIG = "config.json"


FORMAT = 2


@dataclass(frozen=True)
class Plan:
    """What ``learn`` does.

    Args:
        chosen: method, adapter, strength, settings.
        source: the fields of ``Source`` that are set; a split as task -> classes, or the file that has it. And
            ``arrivals``: groups of tasks in the order they become known.
        backbone: by name.
        targets: patterns of the layers whose weights are trained.
        keep_fishers: keep every task's own Fisher.
        add: the tasks are added to a pool.
        device: by name.
    """

    chosen: Hyperparameters
    source: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = BUILTIN
    targets: tuple[str, ...] = TARGETS
    keep_fishers: bool = False
    add: bool = False
    device: str = "auto"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **self.chosen.record(),
            "source": dict(self.source),
            "backbone": self.backbone,
            "targets": list(self.targets),
            "keep_fishers": self.keep_fishers,
            "add": self.add,
            "device": self.device,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Plan":
        """The inverse of ``record``."""
        from intarsia.training.settings import Settings

        own = {name: record[name] for name in ("method", "adapter", "rank", "strength")}
        return cls(
            Hyperparameters(**own, settings=Settings.from_record(record["training"])),
            dict(record["source"]),
            record["backbone"],
            tuple(record["targets"]),
            record["keep_fishers"],
            record["add"],
            record["device"],
        )


def of_pool(out: Path) -> Plan:
    """What a pool was begun with; its stream is left open."""
    from intarsia.pool import Pool

    index = Pool.open(out).index
    about = index.backbone
    return Plan(
        Hyperparameters.from_records(index.settings, index.adapter),
        backbone=about["name"],
        targets=tuple(about["targets"]),
    )


def of_run(out: Path) -> Plan:
    """What the run that was stopped was asked for; where none was, what the pool was begun with.

    Raises:
        InputError: it was stopped by another version, whose settings these are not.
    """
    from intarsia.store.files import reading
    from intarsia.store.index import INDEX
    from intarsia.training.checkpoint import ASKED, Checkpoint

    checkpoint = Checkpoint.of(out)
    if not checkpoint.exists and (out / INDEX).exists():
        return of_pool(out)
    asked = checkpoint.asked()
    with reading(checkpoint.folder / ASKED):
        chosen = Hyperparameters.from_records(asked["settings"], asked["adapter"])
        changes = asked["stream"].get("changes", [])
        arrivals = [change["arrivals"] for change in changes if "arrivals" in change]
    return Plan(
        chosen,
        {"arrivals": arrivals[-1]} if arrivals else {},
        backbone=asked["backbone"]["name"],
        targets=tuple(asked["backbone"]["targets"]),
        keep_fishers=asked["keep_fishers"],
        add=bool(asked["before"]),
    )


def of_preset(name: str) -> Plan:
    """A cell of the paper's table."""
    from intarsia.study.paper import BACKBONE, preset
    from intarsia.training.recommended import RANK

    cell = preset(name)
    chosen = Hyperparameters(cell.method, cell.adapter, RANK, cell.strength, cell.training)
    return Plan(chosen, {"tasks": cell.data.tasks}, BACKBONE)


def read(path: Path) -> Plan:
    """The plan that a run wrote.

    Raises:
        InputError: the file is none.
    """
    from intarsia.store.files import read_json, reading

    record = read_json(path)
    with reading(path):
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, expected {FORMAT}")
        return Plan.from_record(record["learn"])


def write(plan: Plan, stream: "TaskStream", folder: Path) -> Path:
    """Put a plan beside the pool it made: ``config.json``, and for tasks that were added ``config-2.json``, ..."""
    from dataclasses import replace
    from importlib.metadata import version

    from intarsia.machine import code, machine, on_device
    from intarsia.store.files import write_json

    whole = replace(plan, source=source_of(stream))
    made = {**code(), "torch": version("torch"), "machine": machine(on_device(plan.device))}
    count = len(list(folder.glob("config*.json")))
    path = folder / (f"config-{count + 1}.json" if count else CONFIG)
    write_json({"format": FORMAT, "learn": whole.record(), "made_with": made}, path)
    return path


def source_of(stream: "TaskStream") -> dict[str, Any]:
    """The fields of ``Source`` that load a stream again."""
    load = dict(stream.origin["load"])
    load["data"] = load.pop("spec")
    load.pop("seed", None)
    chosen = [change["subset"] for change in stream.origin.get("changes", []) if "subset" in change]
    load |= {"only": list(chosen[-1]) if chosen else [], "arrivals": list(map(list, stream.arrivals))}
    return {name: value for name, value in load.items() if value not in (None, [])}


def with_flags(source: Source, base: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``Source`` that are set: those of flags, then the base's."""
    given = {f.name: value for f in fields(source) if (value := getattr(source, f.name)) not in (None, ())}
    other = {"split": "tasks", "tasks": "split"}
    kept = {name: value for name, value in base.items() if other.get(name) not in given}
    return {**kept, **given}


def load(source: Mapping[str, Any], seed: int) -> "TaskStream":
    """The stream of the fields of ``Source`` that are set."""
    from intarsia.data.stream import TaskStream

    values = dict(source)
    only, arrivals, data = values.pop("only", ()), values.pop("arrivals", ()), values.pop("data", DEFAULT_STREAM)
    stream = TaskStream.load(data, seed=seed, **values)
    stream = stream.subset(only) if only else stream
    return stream.arriving(arrivals) if arrivals else stream


def stream_name(source: Mapping[str, Any]) -> str:
    """What a stream is called in the name of a folder: ``chalk``, or a folder's own name."""
    kind, _, place = str(source.get("data", DEFAULT_STREAM)).partition(":")
    if kind == "hf":
        return hub_parts(place).name
    return Path(place).resolve().name if place else kind


def refuse(flag: str, given: object, wanted: object, by: str) -> None:
    """Refuse a flag that contradicts what a plan begins with.

    Raises:
        InputError: it does.
    """
    if given is not None and given != wanted:
        raise InputError(f"{flag} {given} contradicts {by}, which is {wanted}: leave one of them out")
