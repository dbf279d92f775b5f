"""What each phase of learning costs against its floor.

    python benchmarks/performance/phases.py                          # the built-in backbone, T = 10: a table
    python benchmarks/performance/phases.py --backbone vit_tiny      # 192 wide, 12 deep, 64 px
    python benchmarks/performance/phases.py --json
    python benchmarks/performance/phases.py --scale --figure docs/scale.png

Units of account, measured in the same run, alternating with what they judge, medians: **F**, a plain no-grad forward of
the bare backbone over the same images at the same batch size; **B**, forward and backward of it with frozen weights,
gradients flowing to its input; **P**, a training step of what a user would take instead: PEFT's LoRA or (IA)3 of the
same rank and targets, or plain full fine-tuning of the same weights, AdamW, no regularizer, no augmentation.
"""

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import tyro
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from scale import Scale
from scale import main as scale_up
from scene import Network, Scene, network, tasks
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia import IA3, IEL, ITA, Backbone, Full, LoRA, TaskVector, evaluate, learn
from intarsia.adapters import Adapter
from intarsia.curvature import CURVATURES
from intarsia.curvature.choices import Estimator
from intarsia.curvature.fisher import DiagonalFisher, diagonal_fisher
from intarsia.machine import peak_memory
from intarsia.pool import Pool
from intarsia.training.fine_tuning import Configuration, fine_tune
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState
from intarsia.training.task import prepare
from watch import Batches, Stopwatch, Told, forward, normalised, wait

STEPS: dict[str, tuple[Adapter, ITA | IEL]] = {
    "ita_lora": (LoRA(16), ITA(0.1)),
    "iel_lora": (LoRA(16), IEL(1.0)),
    "full": (Full(), ITA(0.1)),
    "ia3": (IA3(), ITA(0.1)),
}
ESTIMATORS: tuple[Estimator, ...] = ("rademacher", "mc")
FEW = 128
"""Images on which the exact Fisher is timed."""


@dataclass(frozen=True)
class Phases:
    """What to measure."""

    backbone: Network = "vit_sketch"
    """The built-in one, or 192 wide, 12 deep, 64 px, random weights."""
    images: int = 1000
    """Of the task."""
    classes: int = 10
    """Of a task."""
    tasks: int = 10
    """T: the task measured is the last of so many."""
    batch: int = 64
    """Batch size of everything."""
    rounds: int = 5
    """Times everything is measured; medians are printed."""
    error_images: int = 2000
    """Images on which the random Fisher is compared with the exact one; 0 to leave it out."""
    memory_tasks: tuple[int, ...] = (2, 50)
    """Numbers of tasks between which peak memory is compared, each in a process of its own; none to leave it out."""
    scale: bool = False
    """Show instead how the cost of a task grows with tasks, classes, width and depth (see scale.py)."""
    figure: Path | None = None
    """With --scale: write a picture here (PNG)."""
    json: bool = False
    """Print JSON at the end."""
    rows: Path | None = None
    """Add what is found, as it is known, to this file, a line of JSON per row."""
    threads: int = 0
    """Threads of torch; 0 for its own choice."""
    peak: Literal["", "ita", "iel"] = ""
    """Internal: learn --tasks tasks with this method and print the peak memory in MiB."""


def measure(chosen: Phases, backbone: Backbone, scene: Scene, told: Told) -> dict[str, float]:
    """Median seconds of every phase and floor; those of every round are told."""
    watch, task = Stopwatch(), scene.stream[0]
    training = Settings(epochs=1, batch_size=chosen.batch, normalize_fisher=True)
    labels = task.train.labels
    images = normalised(backbone, task.train.tensor(backbone.preprocessing), chosen.batch)
    few = normalised(backbone, task.train.tensor(backbone.preprocessing)[:: max(1, len(labels) // FEW)], chosen.batch)
    test = torch.cat([t.test.tensor(backbone.preprocessing) for t in scene.test])
    test = normalised(backbone, test, chosen.batch)
    width = backbone.features(images[0]).shape[1]
    rivals = {name: Rival.of(backbone, adapter, width, chosen.classes) for name, (adapter, _) in STEPS.items()}
    for number in range(1, chosen.rounds + 1):
        watch.time("F", lambda: forward(backbone, images))
        watch.time("B", lambda: _backward(backbone, images))
        before = scene.state()
        prepared, state = prepare(backbone, task, before, training)
        for phase, seconds in prepared.seconds.items():
            watch.add(phase, seconds)
        for name, (adapter, regularizer) in STEPS.items():
            watch.time(f"P {name}", lambda name=name: rivals[name].epoch(images, labels))
            configuration = Configuration(adapter, regularizer, training, scene.stream.augmentation)
            known = _of_rows(state, backbone) if isinstance(adapter, IA3) else state
            seconds = fine_tune(backbone, prepared, known, before.fisher, configuration).seconds
            watch.add(f"step {name}", seconds["training"])
            watch.add("drift", seconds["drift"])
        watch.time("F few", lambda: forward(backbone, few))
        watch.time("B few", lambda: _backward(backbone, few))
        assert state.reference is not None
        own = state.reference[prepared.rows]
        watch.time("fisher exact", lambda own=own: diagonal_fisher(backbone, own, few, estimator="exact"))
        for kind, estimate in CURVATURES.items():
            heads = own if kind == "diagonal" else None
            made = watch.time(f"curvature {kind}", lambda e=estimate, h=heads: e(backbone, h, few))
            for name, adapter in (("lora", LoRA(16)), ("full", Full())):
                with backbone.attach(adapter) as attached:
                    penalty = ITA(0.1).bind(made.mean(unit=True))
                    watch.time(f"first {kind} {name}", lambda p=penalty, a=attached: p.step(a))
                    watch.time(f"proximal {kind} {name}", lambda p=penalty, a=attached: p.step(a))
            watch.add(f"mib {kind}", sum(value.numel() * 4 for value in made.tensors().values()) / 2**20)
        watch.time("read and add", lambda: _read_and_add(scene.pool, backbone))
        model = watch.time("composition", scene.pool.mean)
        watch.time("F test", lambda: forward(backbone, test))
        watch.time("evaluation", lambda model=model: evaluate(model, scene.test, history=False))
        told.row({"round": number, "of": chosen.rounds, **watch.latest()})
    return watch.medians()


def ratios(seconds: Mapping[str, float], classes: int) -> dict[str, tuple[float, float, str]]:
    """Phase -> seconds, ratio to its floor, the floor's formula."""
    exact = seconds["F few"] + 2 * classes * (seconds["B few"] - seconds["F few"])
    pretuning = seconds["features"] + seconds["statistics"] + seconds["heads"]
    rows = {
        "pretuning": (pretuning, seconds["F"], "F"),
        "fisher": (seconds["fisher"], seconds["B"], "B"),
        "fisher_exact": (seconds["fisher exact"], exact, f"F + 2 x {classes} (B - F)"),
        **{f"step_{name}": (seconds[f"step {name}"], seconds[f"P {name}"], "P") for name in STEPS},
        **{f"curvature_{k}": (seconds[f"curvature {k}"], seconds["B few"], "B") for k in CURVATURES},
        "drift": (seconds["drift"], 4 * seconds["F"], "4 F"),  # of the third task on
        "composition": (seconds["composition"], seconds["read and add"], "read modules, add"),
        "evaluation": (seconds["evaluation"], seconds["F test"], "F"),
    }
    return {name: (cost, cost / floor, formula) for name, (cost, floor, formula) in rows.items()}


@dataclass(frozen=True)
class Rival:
    """What a user would train instead: PEFT's adapter, or the trainable weights themselves, and a linear head."""

    model: nn.Module
    head: nn.Linear
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, backbone: Backbone, adapter: Adapter, width: int, classes: int) -> "Rival":
        """The counterpart of an adapter."""
        from peft import IA3Config, LoraConfig, get_peft_model  # noqa: PLC0415  only beside an imported intarsia

        model, paths = copy.deepcopy(backbone.model), list(backbone.targets.values())
        match adapter:
            case LoRA():
                ranks = {path: 3 * adapter.rank for path in paths if path.endswith("qkv")}
                config = LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, target_modules=paths, rank_pattern=ranks)
                model = cast(nn.Module, get_peft_model(model, config))  # pyright: ignore[reportArgumentType]
            case IA3():
                config = IA3Config(target_modules=paths, feedforward_modules=[])
                model = cast(nn.Module, get_peft_model(model, config))  # pyright: ignore[reportArgumentType]
            case _:
                for path in paths:
                    model.get_submodule(path).get_parameter("weight").requires_grad_(True)
        head = nn.Linear(width, classes).to(backbone.device)
        trained = [p for p in model.parameters() if p.requires_grad]
        return cls(model, head, torch.optim.AdamW([*trained, *head.parameters()], lr=1e-4, foreach=True))

    def epoch(self, batches: Batches, labels: Tensor) -> None:
        """One pass."""
        for x, y in zip(batches, labels.split(len(batches[0])), strict=True):
            self.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(self.head(self.model(x)), y.to(x.device)).backward()
            self.optimizer.step()
        wait(batches[0])


def fisher_errors(backbone: Backbone, classes: int, images: int, batch: int, told: Told) -> dict[str, float]:
    """Relative L2 error, in percent, of the random Fishers against the exact one, by estimator and number of probes."""
    stream = tasks(0, 1, classes, -(-images // classes))
    task = stream[0]
    batches = normalised(backbone, task.train.tensor(backbone.preprocessing), batch)
    _, state = prepare(backbone, task, LearnerState(), Settings(batch_size=batch))
    assert state.reference is not None
    exact = diagonal_fisher(backbone, state.reference, batches, estimator="exact")
    found: dict[str, float] = {}
    for how in ESTIMATORS:
        for probes in (1, 2, 4):
            random = torch.Generator().manual_seed(probes)
            made = diagonal_fisher(backbone, state.reference, batches, estimator=how, probes=probes, generator=random)
            found[f"{how} {probes}"] = 100 * _distance(made, exact)
            told.row({"fisher": how, "probes": probes, "error_percent": found[f"{how} {probes}"]})
    return found


def peak_of(method: str, chosen: Phases) -> int:
    """Learn T small tasks in this process; peak resident memory in MiB."""
    backbone = network(chosen.backbone)
    stream = tasks(0, chosen.tasks, chosen.classes, 13)
    regularizer = ITA(0.1) if method == "ita" else IEL(1.0)
    training = Settings(epochs=1, batch_size=chosen.batch, lr=1e-4, normalize_fisher=True)
    with tempfile.TemporaryDirectory() as folder:
        learn(backbone, stream, out=folder, adapter=LoRA(16), regularizer=regularizer, training=training)
    return peak_memory()


def memory_growth(chosen: Phases, told: Told) -> dict[str, dict[str, float]]:
    """Method -> peak memory in MiB by number of tasks, each in a process of its own, and the growth in percent."""
    found: dict[str, dict[str, float]] = {}
    for method in ("ita", "iel"):
        peaks: dict[str, float] = {}
        for count in chosen.memory_tasks:
            command = [sys.executable, __file__, "--backbone", chosen.backbone, "--classes", str(chosen.classes)]
            command += ["--batch", str(chosen.batch), "--tasks", str(count), "--peak", method]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[str(count)] = float(done.stdout.split()[-1])
            told.row({"memory": method, "tasks": count, "peak_mib": peaks[str(count)]})
        first, *_, last = peaks.values()
        found[method] = {**peaks, "growth": 100 * (last / first - 1)}
    return found


def report(chosen: Phases) -> dict[str, Any]:
    """Measure one configuration."""
    backbone, told = network(chosen.backbone), Told(chosen.rows)
    told.step(f"learning {chosen.tasks - 1} tasks before the one that is measured")
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.of(
            backbone, Path(folder) / "pool", tasks_in_all=chosen.tasks, classes=chosen.classes, images=chosen.images
        )
        seconds = measure(chosen, backbone, scene, told)
    rows = ratios(seconds, chosen.classes)
    for name, (cost, ratio, floor) in rows.items():
        told.row({"phase": name, "seconds": cost, "ratio": ratio, "floor": floor})
    found: dict[str, Any] = {
        "configuration": asdict(chosen),
        "machine": f"{torch.get_num_threads()} threads, {backbone.device.type}, torch {torch.__version__}",
        "ratios": {name: round(ratio, 3) for name, (_, ratio, _) in rows.items()},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "floors": {name: floor for name, (_, _, floor) in rows.items()},
    }
    if chosen.error_images:
        errors = fisher_errors(backbone, chosen.classes, chosen.error_images, chosen.batch, told)
        found |= {"fisher_error": round(errors[f"{Settings().fisher} 1"], 2), "fisher_errors": errors}
    if chosen.memory_tasks:
        growth = memory_growth(chosen, told)
        found |= {"memory_growth_T": round(max(g["growth"] for g in growth.values()), 2), "memory": growth}
    if not chosen.json:
        show(found, rows)
    return found


def show(found: Mapping[str, Any], rows: Mapping[str, tuple[float, float, str]]) -> None:
    """As a table."""
    grid = Table("phase", "seconds", "ratio", "floor", title=f"Phases and floors: {found['machine']}")
    for name, (seconds, ratio, floor) in rows.items():
        grid.add_row(name, f"{seconds:.3f}", f"{ratio:.2f}", floor)
    console = Console()
    console.print(grid)
    costs = Table(
        "curvature", "seconds", "x B", "MiB", *(f"{s}, {a}" for a in ("lora", "full") for s in ("first step", "step"))
    )
    for kind in CURVATURES:
        steps = (f"{found['seconds'][f'{s} {kind} {a}']:.3f}" for a in ("lora", "full") for s in ("first", "proximal"))
        seconds, ratio, _ = rows[f"curvature_{kind}"]
        costs.add_row(kind, f"{seconds:.3f}", f"{ratio:.2f}", f"{found['seconds'][f'mib {kind}']:.1f}", *steps)
    console.print(costs)
    for name in ("fisher_errors", "memory"):
        if name in found:
            console.print(name, found[name])


def _of_rows(state: LearnerState, backbone: Backbone) -> LearnerState:
    """With sums of task vectors that are a factor per row, as (IA)3 composes with; those of the pool are LoRA's."""
    total = TaskVector({name: w / 100 for name, w in backbone.trainable.items()})
    return replace(state, total=total, earlier=total)


def _backward(backbone: Backbone, batches: Batches) -> None:
    for x in batches:
        out = backbone.model(x.detach().requires_grad_())
        out.backward(torch.ones_like(out))
    wait(batches[0])


@torch.no_grad()
def _read_and_add(pool: Pool, backbone: Backbone) -> None:
    total = {name: torch.zeros_like(w) for name, w in backbone.trainable.items()}
    for folder in sorted((pool.path / "modules").iterdir()):
        files = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
        for name, into in total.items():
            into.addmm_(files["vector"][f"{name}.B"], files["vector"][f"{name}.A"])


def _distance(one: DiagonalFisher, other: DiagonalFisher) -> float:
    apart = sum(float((f - other.sums[name]).square().sum()) for name, f in one.sums.items())
    return (apart / sum(float(f.square().sum()) for f in other.sums.values())) ** 0.5


def main(chosen: Phases) -> None:
    """Do what was asked."""
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.peak:
        print(peak_of(chosen.peak, chosen))
        return
    if chosen.scale:
        scale_up(
            Scale(batch=chosen.batch, rounds=chosen.rounds, figure=chosen.figure, json=chosen.json, rows=chosen.rows)
        )
        return
    found = report(chosen)
    if chosen.json:
        print(json.dumps(found, default=str))


if __name__ == "__main__":
    main(tyro.cli(Phases, description=__doc__))
