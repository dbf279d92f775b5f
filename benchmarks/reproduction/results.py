"""The runs behind docs/results.md: resumable, one line of JSON a run.

    python benchmarks/reproduction/results.py main --streams chalk sketches --seeds 0 1 2 --out main.jsonl
    python benchmarks/reproduction/results.py bfloat16 | joint | steps | strengths | ablations | choices | drift ...

A run that is in the output file already is not made again. ``--threads 1`` lets two of these share two cores, each with
its own streams or seeds. ``search``, ``peers`` and ``curvatures`` look at a held-out part of the *training* images,
not at test ones. Photos, settings of one's own in place of the grids below:

    python benchmarks/reproduction/results.py search --streams hf:../shared/data/cifar100 --split-into 10
        --backbone "hf/../shared/data/dinov2-small-saliency?image-size=70" --max-per-class 60 --held-out 0.333
        --settings ita-full,1e-4,6,0.1 iel-full,1e-4,4,1 --out search-photos.jsonl
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from intarsia.adapters.lora import LoRA
from intarsia.backbones.names import BUILTIN
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.editing import Editable, edit_each
from intarsia.evaluation.metrics import Scores, evaluate
from intarsia.machine import code, machine, on_device
from intarsia.merging.model import ComposedModel
from intarsia.merging.recipe import specialize, unlearn
from intarsia.numerics import Precision
from intarsia.regularizers.l2 import L2
from intarsia.study.methods import METHODS
from intarsia.training.recommended import recommended
from intarsia.training.settings import Settings
from workbench import Setting, Workbench

Cell = tuple[Literal["ita", "iel"], Literal["lora", "full", "ia3"]]
Run = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""What is run, and how to measure it."""
CELLS: tuple[Cell, ...] = (
    ("ita", "lora"),
    ("iel", "lora"),
    ("ita", "full"),
    ("iel", "full"),
    ("ita", "ia3"),
    ("iel", "ia3"),
)
SEARCHED: dict[str, list[tuple[float, int, float]]] = {
    "ita-lora": [(3e-3, 4, 0.1), (6e-3, 4, 0.1), (3e-3, 8, 0.1), (3e-3, 4, 0.01)],
    "iel-lora": [(2e-3, 4, 1.0), (4e-3, 4, 1.0), (2e-3, 8, 1.0), (2e-3, 4, 0.1)],
    "ita-full": [(5e-4, 6, 0.1), (1e-3, 6, 0.1), (5e-4, 10, 0.1), (5e-4, 6, 0.01)],
    "iel-full": [(1e-3, 4, 1.0), (5e-4, 4, 1.0), (2e-3, 4, 1.0), (1e-3, 8, 1.0), (1e-3, 4, 0.1)],
    "ita-ia3": [(2e-2, 6, 0.1), (4e-2, 6, 0.1), (2e-2, 10, 0.1)],
    "iel-ia3": [(2e-2, 4, 1.0), (4e-2, 4, 1.0), (2e-2, 8, 1.0)],
}
"""Learning rate, epochs, strength on the Fisher of unit mean."""
PEERS: list[tuple[str, float, dict[str, Any]]] = [
    *(("finetune", lr, {}) for lr in (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)),
    *(("ewc", lr, {"strength": s}) for lr in (3e-5, 1e-4) for s in (1.0, 10.0, 100.0)),
    *(("ewc", 3e-4, {"strength": s}) for s in (100.0, 1000.0)),
    *(("derpp", lr, {"a": 0.5, "b": 0.5}) for lr in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)),
    *(("derpp", 1e-3, {"a": a, "b": b}) for a, b in ((0.1, 0.5), (0.1, 1.0), (0.5, 1.0), (0.5, 2.0), (0.5, 4.0))),
    *(("seed", lr, {"temperature": 3.0}) for lr in (3e-4, 1e-3, 3e-3)),
    *(("seed", 1e-3, {"temperature": t}) for t in (1.0, 10.0)),
    *(("seed", lr, {"adapter": LoRA()}) for lr in (1e-3, 3e-3, 1e-2)),
    *(("tmc", lr, {}) for lr in (1e-5, 1e-4, 3e-4)),
    *(("l2", 3e-3, {"regularizer": L2(s)}) for s in (0.01, 0.1, 1.0)),
    *(("ranpac", 3e-3, {"width": w, "standardize": s}) for w, s in ((2000, False), (5000, False), (5000, True))),
    ("ranpac", 1e-3, {"width": 5000, "standardize": False}),
    ("ranpac", 3e-3, {"width": 5000, "standardize": True, "adapt": False}),
    *(("slca++", 3e-3, {"slow": s, "shared": True}) for s in (0.01, 0.03, 0.1)),
    ("slca++", 1e-3, {"slow": 0.01, "shared": True}),
    ("slca++", 3e-3, {"slow": 0.03, "shared": False}),
    ("slca++", 1e-3, {"slow": 0.01, "shared": True, "head_epochs": 20}),
    *(("slca++", 3e-4, {"slow": s, "shared": True, "head_epochs": 20}) for s in (0.01, 0.03, 0.1)),
    *(("tuna", lr, {"shared": True, "continued": False}) for lr in (1e-3, 3e-3)),
    *(("tuna", lr, {"shared": True, "continued": True}) for lr in (1e-3, 3e-3)),
    ("tuna", 3e-3, {"shared": False, "continued": False}),
    *(("lca", 3e-3, {"part": p, "shared": True}) for p in (0.1, 0.3)),
    *(("lca", lr, {"part": 0.3, "shared": True}) for lr in (1e-3, 6e-3)),
    ("lca", 3e-3, {"part": 0.3, "shared": False}),
    *(("ewc-lora", 3e-3, {"strength": s, "own_classes": False}) for s in (10.0, 100.0)),
    *(("ewc-lora", 1e-3, {"strength": s, "own_classes": False}) for s in (10.0, 100.0)),
    ("ewc-lora", 1e-3, {"strength": 10.0, "own_classes": True}),
]
"""Method, learning rate, its own options."""
SEED_LORA = 3e-3
"""Learning rate of SEED with LoRA, from ``peers``."""
CURVATURES: dict[str, dict[str, Any]] = {
    "diagonal": {},
    "kfac": {"curvature": "kfac"},
    "ekfac": {"curvature": "ekfac"},
    "ekfac of the first task": {"curvature": "ekfac", "curvature_of": "reference"},
}
"""Settings by name."""
HELD_OUT = ("search", "peers", "curvatures")
"""Plans that choose something: they never see test images."""
DECADES = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Results:
    """Which runs to make."""

    plan: tyro.conf.Positional[
        Literal[
            "search",
            "main",
            "bfloat16",
            "joint",
            "steps",
            "strengths",
            "ablations",
            "choices",
            "drift",
            "editing",
            "peers",
            "experts",
            "curvatures",
        ]
    ]
    """The table to fill."""
    streams: tuple[str, ...] = ("chalk", "sketches")
    """Built-in streams."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    cells: tuple[str, ...] = ()
    """Only these cells, written as method-adapter."""
    names: tuple[str, ...] = ()
    """Only runs whose name ends in one of these."""
    tasks: int = 0
    """Only the first so many tasks; 0 for all."""
    max_per_class: int = 0
    """Only the first so many images of each class; 0 for all."""
    split_into: int = 0
    """Cut the classes into so many tasks; 0 for the stream's own."""
    backbone: str = BUILTIN
    """As ``intarsia learn --backbone``."""
    held_out: float = 0.2
    """Part of the training images that plans which choose something are measured on."""
    settings: tuple[str, ...] = ()
    """Of ``search``, in place of its grid: cell,lr,epochs,strength; of ``peers``: method,lr."""
    epochs: int = 0
    """Of the plans ``peers`` and ``experts``, in place of their own; 0 for their own. For dry runs."""
    out: Path = Path("benchmarks/reproduction/results.jsonl")
    """Where a line a run goes."""
    precision: Precision = "fp32"
    """As ``intarsia learn --precision``."""
    threads: int = 2
    """Threads of torch."""
    device: str = "cpu"
    """cpu, cuda, mps, or auto for the best there is."""


class Ledger:
    """Lines of finished runs, found again by what they ran.

    Args:
        path: of the file.
        made_on: the machine, noted in each line.
    """

    def __init__(self, path: Path, made_on: str) -> None:
        self._path, self._made_on = path, made_on
        lines = path.read_text().splitlines() if path.exists() else []
        self._done = {json.dumps(json.loads(line)["run"], sort_keys=True) for line in lines}

    def once(self, run: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a run that is not in the file and append it."""
        key = json.dumps(run, sort_keys=True)
        if key in self._done:
            return
        started = time.perf_counter()
        try:
            result = measure()
        except InputError as error:  # a run that diverges is a result too
            result = {"error": str(error)}
        seconds = round(time.perf_counter() - started, 1)
        line = {"run": run, "result": result, "wall_seconds": seconds, "machine": self._made_on, "code": code()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._done.add(key)
        print(json.dumps({**run, "setting": None, **{k: v for k, v in result.items() if k != "tasks"}}), flush=True)


def cells(chosen: Sequence[str]) -> list[Cell]:
    """The cells named, or all."""
    return [c for c in CELLS if not chosen or "-".join(c) in chosen]


def setting_of(bench: Workbench, cell: Cell) -> Setting:
    """The tool's own settings for a method and adapter, on a backbone."""
    strength, training = recommended(*cell, bench.backbone.sizes)
    return Setting(*cell, strength, replace(training, precision=bench.base.precision))


def parsed(text: str) -> tuple[Cell, float, int, float]:
    """``cell,lr,epochs,strength``."""
    cell, lr, epochs, strength = text.split(",")
    return cells([cell])[0], float(lr), int(epochs), float(strength)


def setting_with(cell: Cell, lr: float, epochs: int, strength: float, precision: Precision = "fp32") -> Setting:
    """The tool's own settings with some in the place of theirs."""
    return Setting(*cell, strength, replace(recommended(*cell)[1], lr=lr, epochs=epochs, precision=precision))


def _frozen(bench: Workbench) -> dict[str, Any]:
    return evaluate(bench.frozen(), bench.stream).record()


def main_table(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """All cells, and the frozen head."""
    yield {"name": "frozen"}, lambda: _frozen(bench)
    for cell in cells(chosen):
        setting = setting_of(bench, cell)
        yield {"name": "-".join(cell), "setting": setting.record()}, lambda s=setting: bench.measure(s, history=True)


def bfloat16(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """The cells with products of a training step in bfloat16."""
    for cell in cells(chosen):
        base = setting_of(bench, cell)
        setting = replace(base, training=replace(base.training, precision="bf16"))
        name = f"{'-'.join(cell)} bfloat16"
        yield {"name": name, "setting": setting.record()}, lambda s=setting: bench.measure(s, history=True)


def joint(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """The same adapter on all images at once, no regularizer: ``bench`` holds the stream as one task."""
    for method, adapter in cells(chosen or ("ita-lora", "ita-full", "ita-ia3")):
        base = setting_of(bench, (method, adapter))
        setting = replace(base, strength=0.0, training=free_of_pulls(base.training))
        yield (
            {"name": f"joint-{adapter}", "setting": setting.record()},
            lambda s=setting: bench.measure(s, history=False),
        )


def steps(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """Every step rule over four decades around the tool's strength."""
    for cell in cells(chosen or ("ita-lora",)):
        base = setting_of(bench, cell)
        for how in ("proximal", "decoupled", "coupled"):
            for factor in DECADES:
                training = replace(base.training, step=how)
                setting = replace(base, strength=base.strength * factor, training=training)
                name = f"{'-'.join(cell)} {how} x{factor:g}"
                yield {"name": name, "setting": setting.record()}, lambda s=setting: bench.measure(s, history=False)


def strengths(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """Alpha and beta: none, and decades around the tool's own."""
    for cell in cells(chosen or ("ita-lora", "iel-lora")):
        base = setting_of(bench, cell)
        for strength in (0.0, *(factor * base.strength for factor in (*DECADES, 1000.0))):
            setting = replace(base, strength=strength)
            name = f"{'-'.join(cell)} strength {strength:g}"
            yield {"name": name, "setting": setting.record()}, lambda s=setting: bench.measure(s, history=False)


def ablations(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """Without the Fisher regularizer, without the head's, without both: in the tool's settings and in the paper's."""
    for cell in cells(chosen or ("ita-full", "iel-full")):
        tool = setting_of(bench, cell)
        papers = replace(
            tool, training=replace(tool.training, center_features=False, drift_penalty=0.0, iel_start="zero")
        )
        for where, base, all_four in (("", tool, True), (" in the paper's way", papers, False)):
            free = replace(base.training, lambda_h=0.0, lambda_0=0.0)
            none = replace(base, strength=0.0, training=free_of_pulls(base.training))
            variants = {"weights and head": base, "none": none}
            if all_four:
                variants |= {"head only": replace(base, strength=0.0), "weights only": replace(base, training=free)}
            for name, setting in variants.items():
                yield (
                    {"name": f"{'-'.join(cell)}{where} regularized: {name}", "setting": setting.record()},
                    lambda s=setting: bench.measure(s, history=False),
                )


def free_of_pulls(training: Settings) -> Settings:
    """Without any pull on head or features."""
    return replace(training, lambda_h=0.0, lambda_0=0.0, center_features=False, drift_penalty=0.0)


def drift(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """Feature centering, feature-drift penalty and IEL's start: each taken away alone, and all together."""
    one_by_one: dict[str, dict[str, Any]] = {
        "all of them": {},
        "not centered": {"center_features": False},
        "no drift penalty": {"drift_penalty": 0.0},
        "neither": {"center_features": False, "drift_penalty": 0.0},
    }
    of_iel: dict[str, dict[str, Any]] = {
        "start at zero": {"iel_start": "zero"},
        "none of the three": {"center_features": False, "drift_penalty": 0.0, "iel_start": "zero"},
    }
    for cell in cells(chosen or ("ita-lora", "iel-lora")):
        base = setting_of(bench, cell)
        for what, change in {**one_by_one, **(of_iel if cell[0] == "iel" else {})}.items():
            setting = replace(base, training=replace(base.training, **{"drift_penalty": 1.0, **change}))
            name = f"{'-'.join(cell)}: {what}"
            yield {"name": name, "setting": setting.record()}, lambda s=setting: bench.measure(s, history=False)


def choices(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """The tool's settings with one choice made otherwise at a time; heads made otherwise are among what is measured."""
    otherwise: dict[str, dict[str, Any]] = {
        "as it is": {},
        "decoupled step": {"step": "decoupled"},
        "Fisher over all others": {"fisher_over": "others"},
    }
    for cell in cells(chosen or ("ita-lora", "iel-lora")):
        base = setting_of(bench, cell)
        for what, change in otherwise.items():
            setting = replace(base, training=replace(base.training, **change))
            name = f"{'-'.join(cell)}: {what}"
            yield {"name": name, "setting": setting.record()}, lambda s=setting: bench.measure(s, history=False)


def editing(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """Specialization and unlearning of the first, a central and the last task."""
    for cell in cells(chosen or ("ita-lora", "iel-lora")):
        setting = setting_of(bench, cell)
        yield {"name": f"{'-'.join(cell)} editing", "setting": setting.record()}, lambda s=setting: _edit(bench, s)


def search(bench: Workbench, chosen: Sequence[str], given: Sequence[str] = ()) -> Iterator[Run]:
    """What the tool's own settings were chosen from; ``bench`` holds the validation part of the training images."""
    yield {"name": "frozen"}, lambda: _frozen(bench)
    grid = [(cell, *one) for cell in cells(chosen) for one in SEARCHED["-".join(cell)]]
    for cell, lr, epochs, strength in [parsed(one) for one in given] or grid:
        setting = setting_with(cell, lr, epochs, strength, bench.base.precision)
        name = f"{'-'.join(cell)} lr {lr:g} epochs {epochs} strength {strength:g}"
        yield {"name": name, "setting": setting.record()}, lambda s=setting: bench.measure(s, history=False)


def peers(bench: Workbench, chosen: Sequence[str], given: Sequence[str] = ()) -> Iterator[Run]:
    """What the settings of the methods compared with were chosen from; ``bench`` holds the validation part."""
    own: list[tuple[str, float, dict[str, Any]]] = [(one.split(",")[0], float(one.split(",")[1]), {}) for one in given]
    for name, lr, options in own or PEERS:
        if not chosen or name in chosen:
            training = _budget(bench, lr)
            yield (
                {"name": name, "lr": lr, **{key: str(value) for key, value in options.items()}},
                lambda n=name, t=training, o=options: _peer(bench, n, t, o),
            )


def experts(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """SEED with experts of LoRA, what ITA and IEL are compared with: all else as in ``compare``."""
    training = _budget(bench, SEED_LORA)
    yield (
        {"name": "seed-lora", "lr": training.lr},
        lambda: _peer(bench, "seed", training, {"adapter": LoRA()}),
    )


def _budget(bench: Workbench, lr: float) -> Settings:
    """What every method compared is trained with, but for its learning rate."""
    base = bench.base
    return Settings(
        lr=lr,
        epochs=base.epochs,
        batch_size=32,
        normalize_fisher=True,
        precision=base.precision,
        seed=base.seed,
    )


def curvatures(bench: Workbench, chosen: Sequence[str]) -> Iterator[Run]:
    """Every curvature over six decades of strength, and none: what it costs is measured in the same run."""
    for cell in cells(chosen or ("ita-lora", "iel-lora", "ita-full", "iel-full")):
        base = setting_of(bench, cell)
        none = replace(base, strength=0.0)
        yield {"name": f"{'-'.join(cell)} none", "setting": none.record()}, lambda s=none: _curved(bench, s)
        for strength in (*DECADES, 1000.0):
            for what, change in CURVATURES.items():
                setting = replace(base, strength=strength, training=replace(base.training, **change))
                name = f"{'-'.join(cell)} {strength:g} {what}"
                yield {"name": name, "setting": setting.record()}, lambda s=setting: _curved(bench, s)


def _curved(bench: Workbench, setting: Setting) -> dict[str, Any]:
    there = bench.prepared_as(setting.training)
    prepared = [one.prepared for one in there.prepared_tasks]
    if there.backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = there.measure(setting, history=False)
    curvature = prepared[0].fisher.tensors().values()
    return {
        **found,
        "curvature_seconds": sum(p.seconds["fisher"] for p in prepared) / len(prepared),
        "curvature_mib": sum(value.numel() * value.element_size() for value in curvature) / 2**20,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if there.backbone.device.type == "cuda" else None,
    }


def _peer(bench: Workbench, name: str, settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    scores, baseline = Scores(bench.stream), replace(METHODS[name].baseline, **options)  # pyright: ignore
    for result in baseline.train(bench.backbone, bench.stream, settings):
        scores.add(result.model)
    return scores.evaluation().record()


def _edit(bench: Workbench, setting: Setting) -> dict[str, Any]:
    learned = bench.learn(setting)
    names, scale = [m.card.task for m in learned], setting.training.mean_scale

    def edited(target: str) -> dict[str, Callable[[], ComposedModel]]:
        recipes = {
            "drop": unlearn(names, target, mean_scale=scale),
            "negate 1/T": unlearn(names, target, mode="negate", mean_scale=scale),
            "negate 0.5": unlearn(names, target, mode="negate", scale=0.5, mean_scale=scale),
            "negate 1": unlearn(names, target, mode="negate", scale=1.0, mean_scale=scale),
            "specialize, own classes": specialize(names, [target]),
            "specialize, all classes": specialize(names, [target], all_classes=True),
        }
        return {how: partial(bench.compose, setting, learned, recipe) for how, recipe in recipes.items()}

    modules = Editable(bench.compose(setting, learned), edited)
    return {"rows": edit_each(modules, bench.stream, (names[0], names[len(names) // 2], names[-1]))}


GIVEN = ("search", "peers")
"""Plans that take settings in place of their own."""
PLANS: dict[str, Callable[..., Iterator[Run]]] = {
    "search": search,
    "main": main_table,
    "bfloat16": bfloat16,
    "joint": joint,
    "steps": steps,
    "strengths": strengths,
    "ablations": ablations,
    "choices": choices,
    "drift": drift,
    "editing": editing,
    "peers": peers,
    "experts": experts,
    "curvatures": curvatures,
}


def run(chosen: Results) -> None:
    """Make the runs that are missing."""
    if chosen.settings and chosen.plan not in GIVEN:
        raise SystemExit(f"--settings: {chosen.plan} has its own; {' and '.join(GIVEN)} take others")
    torch.set_num_threads(chosen.threads)
    device = on_device(chosen.device)
    ledger = Ledger(chosen.out, machine(device))
    for stream in chosen.streams:
        for seed in chosen.seeds:
            few = chosen.max_per_class or None
            loaded = TaskStream.load(
                stream, tasks=1 if chosen.plan == "joint" else chosen.split_into or None, max_per_class=few
            )
            loaded = loaded.validation(chosen.held_out, 0) if chosen.plan in HELD_OUT else loaded
            loaded = loaded.subset(range(chosen.tasks)) if chosen.tasks else loaded
            part = {
                name: n for name in ("tasks", "max_per_class", "split_into", "epochs") if (n := getattr(chosen, name))
            }
            part |= {"backbone": chosen.backbone} if chosen.backbone != BUILTIN else {}
            part |= {"held_out": chosen.held_out} if chosen.held_out != 0.2 else {}
            part |= {"precision": chosen.precision} if chosen.precision != "fp32" else {}
            training = replace(recommended("ita", "lora")[1], precision=chosen.precision)
            training = replace(training, epochs=chosen.epochs) if chosen.epochs else training
            bench = Workbench(loaded, seed, training, device, chosen.backbone)
            given = (chosen.settings,) if chosen.settings else ()
            made = PLANS[chosen.plan](bench, chosen.cells, *given)
            for what, measure in made:
                if chosen.names and not what["name"].endswith(chosen.names):
                    continue
                ledger.once({"stream": stream, "seed": seed, **part, **what}, measure)


if __name__ == "__main__":
    run(tyro.cli(Results))
