"""Verbs on one pool: every one has a twin in Python and prints a table, or JSON with ``--json``."""

from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from intarsia import backbone, builtin, tables
from intarsia.adapters import Adapter
from intarsia.backbone import BUILTIN, TARGETS, Backbone
from intarsia.checkpoint import Checkpoint, stopping
from intarsia.composed_model import ComposedModel
from intarsia.config import AdapterKind, Method, Training, build_adapter, build_regularizer, recommended
from intarsia.console import OUT, LearningBars, bar, bars, facts, table
from intarsia.errors import InputError
from intarsia.estimate import estimate
from intarsia.evaluation import evaluate, recorded_stream, reloaded, target_and_control
from intarsia.learner import learn
from intarsia.options import Json, Selection, Source, on_device, open_pool
from intarsia.pool import INDEX, Pool
from intarsia.presets import preset
from intarsia.regularizers import IEL, ITA
from intarsia.run import Run
from intarsia.stream import TaskStream
from intarsia.verification import remedy, repair, unnamed, verify


@dataclass(frozen=True)
class Learn:
    """Learn a stream of tasks, each as a module of a pool, and evaluate their mean."""

    out: Path = Path("runs/sketches")
    """Folder of the pool: new or empty, or with --add an existing pool."""
    add: bool = False
    """Add the stream's tasks to the pool in --out, with the pool's own settings unless told otherwise."""
    resume: bool = False
    """Go on with the run in --out that was stopped, from its last epoch border, as it was."""
    backbone: str = BUILTIN
    """vit_sketch (built in), timm/<name> or timm/<name>@<weights.safetensors>."""
    targets: tuple[str, ...] = TARGETS
    """Patterns of the linear layers whose weights are tuned."""
    preset: str | None = None
    """A cell of the paper's table, by name (see ``intarsia presets``): sets everything but --data and --out; flags
    still win, and with them it is another run than the paper's."""
    paper: bool = False
    """Start from the paper's settings instead of the tool's own; flags still win."""
    method: Method = "ita"
    """Train each module alone (ita) or through the composed model (iel)."""
    adapter: AdapterKind = "lora"
    """What a task vector is made of."""
    rank: int = 16
    """LoRA's rank (three times that on a fused qkv)."""
    alpha: float | None = None
    """Strength of ITA's regularizer; if not given, the tool's own for the adapter."""
    beta: float | None = None
    """Strength of IEL's regularizer; if not given, the tool's own for the adapter."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    training: OmitArgPrefixes[Training] = field(default_factory=Training)
    keep_fishers: bool = False
    """Keep every task's own Fisher in its module."""
    dry_run: bool = False
    """Say what the run will cost, from a few timed batches; nothing is written."""
    checkpoint: bool = True
    """Keep what is trained at every epoch border; else a run that is stopped goes on from its last whole task."""
    evaluate: bool = True
    """Measure the mean of the modules on the test images at the end."""
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Learn and evaluate."""
        regularizer = self._regularizer()
        if self.preset is not None and self.source.data is None:
            wanted = preset(self.preset).data
            raise InputError(
                f"preset {self.preset}: name {wanted.title}'s images with --data folder:<dir>, "
                f"{wanted.classes} classes under train/ and test/"
            )
        stream = self._stream()
        theta0 = Backbone.load(self.backbone, targets=self.targets).to(on_device(self.device))
        adapter: Adapter = build_adapter(self.adapter, self.rank)
        if self.dry_run:
            cost = estimate(Run(theta0, adapter, regularizer, self.training, stream), keep_fishers=self.keep_fishers)
            if not self.json:
                facts(cost.record())
            return cost.record()
        with bars() as progress, stopping(self.out):
            pool = learn(
                theta0,
                stream,
                out=self.out,
                adapter=adapter,
                regularizer=regularizer,
                training=self.training,
                add=self.add,
                resume=self.resume,
                keep_fishers=self.keep_fishers,
                checkpoints=self.checkpoint,
                progress=LearningBars(progress, [task.name for task in stream]),
            )
        if not self.evaluate:
            return {"pool": str(self.out), "tasks": list(pool.tasks)}
        whole = tuple(task.name for task in stream) == pool.tasks
        return _evaluated(pool, pool.mean(), stream if whole else recorded_stream(pool), self.json)

    def _stream(self) -> TaskStream:
        """What is learned: as named, or when a run is resumed, as it was."""
        checkpoint = Checkpoint.of(self.out)
        if not self.resume or self.source != Source():
            return self.source.load("sketches", self.training.seed)
        return reloaded(checkpoint.asked()["stream"]) if checkpoint.exists else recorded_stream(Pool.open(self.out))

    def _regularizer(self) -> ITA | IEL:
        name, strength = ("alpha", self.alpha) if self.method == "ita" else ("beta", self.beta)
        other = "beta" if name == "alpha" else "alpha"
        if getattr(self, other) is not None:
            raise InputError(f"--{other} with --method {self.method}: its strength is --{name}")
        if strength is None:
            strength, _ = recommended(self.method, self.adapter)
        return build_regularizer(self.method, strength)


@dataclass(frozen=True)
class Ls:
    """List the modules of a pool, or what is built in."""

    pool: Positional[Path | None] = None
    """Folder of the pool."""
    builtin: bool = False
    """List the built-in streams and backbone, with source and licence."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """List."""
        if self.builtin or self.pool is None:
            if not self.builtin:
                raise InputError("ls: expected a pool's folder, or --builtin")
            return self._builtin()
        pool = Pool.open(self.pool)
        cards = [pool.card(t) for t in pool.tasks]
        if not self.json:
            tables.modules(pool, cards)
        return {**pool.index.record(), "modules": [c.record() for c in cards]}

    def _builtin(self) -> dict[str, Any]:
        about = [*builtin.describe(), backbone.describe()]
        if not self.json:
            for entry in about:
                facts(entry)
                OUT.print()
        return {"builtin": about}


@dataclass(frozen=True)
class Verify:
    """Check every file of a pool; name what is damaged, and what is lost with it."""

    pool: Positional[Path]
    """Folder of the pool."""
    repair: bool = False
    """Drop the modules that are damaged; the others stay usable."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Verify; damage that is not repaired is an error."""
        pool = Pool.open(self.pool)
        with bar("files") as progress:
            damaged = verify(pool, progress)
        tasks = repair(pool, damaged).tasks if damaged and self.repair else pool.tasks
        found = {"files": len(pool.index.files), "damaged": [asdict(d) for d in damaged], "modules": list(tasks)}
        found["unnamed"] = unnamed(pool)
        if not self.json:
            tables.verification(found)
        if damaged and not self.repair:
            if self.json:
                print(dumps(found, indent=1))
            raise InputError(f"{len(damaged)} of {found['files']} files are damaged: {remedy(damaged)}")
        return found


@dataclass(frozen=True)
class Evaluate:
    """Measure a composition of a pool's modules on the test images."""

    pool: Positional[Path]
    """Folder of the pool."""
    selection: OmitArgPrefixes[Selection] = field(default_factory=Selection)
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Compose and measure."""
        pool = open_pool(self.pool, self.device)
        return _evaluated(pool, self.selection.compose(pool), self.source.of(pool), self.json)


@dataclass(frozen=True)
class Predict:
    """Name the class of image files."""

    model: Positional[Path]
    """Folder of a pool (its mean answers), or of a composed model."""
    images: Positional[tuple[Path, ...]]
    """Image files."""
    keep: tuple[str, ...] = ()
    """Specialize to these tasks of the pool."""
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Predict."""
        if (self.model / INDEX).exists() or not (self.model / "model.json").exists():
            pool = open_pool(self.model, self.device)
            model = Selection(keep=self.keep).compose(pool)
        elif self.keep:
            raise InputError("--keep with a composed model: its tasks are fixed; name the pool instead")
        else:
            model = ComposedModel.load(self.model).to(on_device(self.device))
        best = model.probabilities(self.images).max(1)
        rows = [
            {"image": str(path), "class": model.labels[int(i)], "probability": round(float(p), 4)}
            for path, i, p in zip(self.images, best.indices, best.values, strict=True)
        ]
        if not self.json:
            cells = [(r["image"], r["class"], f"{r['probability']:.2f}") for r in rows]
            table("", ("image", "class", "probability"), cells)
        return {"predictions": rows}


@dataclass(frozen=True)
class Compose:
    """Merge modules into one ordinary model and write it."""

    pool: Positional[Path]
    """Folder of the pool."""
    out: Path
    """New folder for model.safetensors and model.json."""
    selection: OmitArgPrefixes[Selection] = field(default_factory=Selection)
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Compose and write."""
        pool = Pool.open(self.pool)
        model = self.selection.compose(pool)
        model.save(self.out)
        result = {"out": str(self.out), "recipe": model.recipe, "classes": len(model.labels)}
        if not self.json:
            facts({"written": self.out, "recipe": model.recipe["name"], "classes": len(model.labels)})
        return result


@dataclass(frozen=True)
class Unlearn:
    """Take one task out of the composed model; say what it cost, and what still carries its influence."""

    pool: Positional[Path]
    """Folder of the pool; it is not changed."""
    task: Positional[str]
    """The task to unlearn."""
    mode: Literal["drop", "negate"] = "drop"
    """drop: the mean of the others, its classes gone. negate: subtract its vector, all heads kept."""
    scale: float | None = None
    """Of negate: how much of the vector to subtract; its share in the mean (1/T) if not given."""
    out: Path | None = None
    """New folder to write the resulting model to."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Unlearn, measure, write."""
        pool = open_pool(self.pool, self.device)
        model = pool.unlearn(self.task, mode=self.mode, scale=self.scale)
        stream = self.source.of(pool)
        before = target_and_control(pool.mean(), stream, self.task)
        after = target_and_control(model, stream, self.task)
        if self.out is not None:
            model.save(self.out)
        influence = pool.influenced_by(self.task)
        result = {
            "task": self.task,
            "mode": self.mode,
            "recipe": model.recipe,
            "before": {"target_accuracy": before[0], "control_accuracy": before[1]},
            "after": {"target_accuracy": after[0], "control_accuracy": after[1]},
            "influenced": influence,
            "out": None if self.out is None else str(self.out),
        }
        if not self.json:
            rows = [("all modules", *before), (model.recipe["name"], *after)]
            table("", ("model", f"{self.task} %", "other tasks %"), rows)
            for other, ways in influence.items():
                OUT.print(f"still influenced by {self.task}: {other} (its {', '.join(ways)})", markup=False)
        return result


def _evaluated(pool: Pool, model: ComposedModel, stream: TaskStream, as_json: bool) -> dict[str, Any]:
    """Measure a composition beside the frozen head over the same tasks, and print it."""
    with bar("evaluating") as progress:
        found = evaluate(model, stream, progress=progress)
        frozen = evaluate(pool.frozen(tuple(model.classes)), stream)
    if not as_json:
        tables.evaluation(f"{pool.path}: {model.recipe['name']}", found, frozen)
    return {
        "pool": str(pool.path),
        "recipe": model.recipe,
        **found.record(),
        "frozen_head_accuracy": frozen.final_accuracy,
        "frozen_head_task_il_accuracy": frozen.task_il_accuracy,
    }
