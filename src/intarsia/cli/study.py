"""Verbs that look into a pool or set methods side by side, or a run beside the paper, and the page about either."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intarsia.backbones.names import BUILTIN, TARGETS
from intarsia.cli.flags import Inline, Json, Positional
from intarsia.cli.options import Loading, Network, Rehearsal, Workers, one_by_one, parse_numbers, parse_weights
from intarsia.cli.where import Where, is_model
from intarsia.errors import InputError
from intarsia.study.choice import Source
from intarsia.training.settings import Precision

if TYPE_CHECKING:
    from intarsia.data.stream import TaskStream
    from intarsia.evaluation.kept import Keep
    from intarsia.evaluation.landscape import GapPath, LossPath
    from intarsia.evaluation.theorem import Diagnosis
    from intarsia.pool import Pool


FIGURES = ("gap.png", "cosines.png", "losses.png")


@dataclass(frozen=True)
class Diagnose:
    """Measure the theorem on a pool: Jensen's gap of the composed model, true and predicted by the diagonal Fisher."""

    pool: Positional[Path]
    """Folder of the pool."""
    weights: tuple[str, ...] = ()
    """Coefficients that sum to 1: birds=.7 cars=.3."""
    per_task: int = 200
    """Training images drawn from each task; losses.png and gap.png use 50 at most."""
    beside: tuple[Path, ...] = ()
    """Other pools of the same tasks, to measure and draw beside it."""
    figures: Path | None = None
    """Folder for the measurements, saved one by one, and three figures: gap.png (Jensen's gap, measured and to second
    order, against the scale of the task vectors), cosines.png (between the task vectors) and losses.png (the loss along
    lines of weights, measured and to second order)."""
    source: Source = field(default_factory=Source)
    where: Inline[Where] = field(default_factory=Where)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Diagnose."""
        from intarsia.console import facts, shown
        from intarsia.evaluation.theorem import Diagnosis, diagnose
        from intarsia.report import tables

        weights = parse_weights(self.weights) or None
        paths = (self.pool, *self.beside)
        if len(set(paths)) < len(paths):
            raise InputError(f"--beside names {', '.join(map(str, self.beside))}: expected each pool once")
        pools = [self.where.pool(path, self.device) for path in paths]
        for pool in pools[1:]:
            if pool.tasks != pools[0].tasks:
                raise InputError(f"{pool.path} has tasks {', '.join(pool.tasks)}: expected those of {self.pool}")
        streams = [self.where.stream(self.source, pool, pool.tasks) for pool in pools]
        keeps = [self._keep(path, pool, stream) for path, pool, stream in zip(paths, pools, streams, strict=True)]
        found = list[Diagnosis]()
        for pool, stream, keep in zip(pools, streams, keeps, strict=True):
            with shown() as progress:
                found.append(
                    diagnose(pool, stream, weights=weights, per_task=self.per_task, progress=progress, keep=keep)
                )
        around = {} if self.figures is None else self._draw(pools, streams, found, self.figures, keeps)
        if not self.json:
            for path, diagnosis in zip(paths, found, strict=True):
                tables.diagnosis(diagnosis, str(path) if self.beside else "")
            if self.figures is not None:
                facts({"written": ", ".join(str(self.figures / name) for name in FIGURES)})
        beside = {str(path): d.record() for path, d in zip(self.beside, found[1:], strict=True)}
        return found[0].record() | ({"beside": beside} if beside else {}) | around

    def _keep(self, path: Path, pool: Pool, stream: TaskStream) -> Keep:
        """Beside the figures, where a pool's measurements are kept as they are known."""
        from intarsia.evaluation.kept import Kept, fresh
        from intarsia.store.files import writing

        if self.figures is None:
            return fresh
        with writing(self.figures):  # found before anything is measured
            self.figures.mkdir(parents=True, exist_ok=True)
        place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
        return Kept(self.figures / f"{path.resolve().name}-{place}-measured.json", pool, stream)

    def _draw(
        self,
        pools: list[Pool],
        streams: list[TaskStream],
        found: list[Diagnosis],
        folder: Path,
        keeps: list[Keep],
    ) -> dict[str, Any]:
        """The three figures, written; what was measured for them, by pool."""
        from intarsia.console import shown
        from intarsia.evaluation.landscape import gap_path, loss_paths
        from intarsia.evaluation.theorem import DRAWN
        from intarsia.report import figures
        from intarsia.store.files import write

        short = [pool.path.resolve().name for pool in pools]
        names = short if len(set(short)) == len(short) else [str(pool.path) for pool in pools]
        lines: dict[str, tuple[LossPath, ...]] = {}
        gaps: dict[str, GapPath] = {}
        for name, pool, stream, keep in zip(names, pools, streams, keeps, strict=True):
            with shown() as progress:
                few = min(self.per_task, DRAWN)
                lines[name] = loss_paths(pool, stream, per_task=few, progress=progress, keep=keep)
                gaps[name] = gap_path(pool, stream, per_task=few, progress=progress, keep=keep)
        cosines = figures.alignment(dict(zip(names, found, strict=True)))
        for name, figure in zip(FIGURES, (figures.gaps(gaps), cosines, figures.losses(lines)), strict=True):
            write(figures.png(figure), folder / name)
        return {
            "lines": {name: [asdict(path) for path in paths] for name, paths in lines.items()},
            "gap_by_scale": {name: asdict(path) for name, path in gaps.items()},
        }


@dataclass(frozen=True)
class Compare:
    """Run methods on one stream with one budget, and put them side by side."""

    methods: tuple[str, ...] = ()
    """Which: frozen, joint, finetune, ewc, l2, derpp, tmc, seed, ranpac, slca++, tuna, lca, ewc-lora, ita, ita-full,
    ita-ia3, iel, iel-full, iel-ia3; frozen to seed, ita and iel if none is named."""
    seeds: int = 1
    """Runs of each method, with seeds 0, 1, ..."""
    out: Path | None = None
    """Folder of the comparison, of this one alone; runs/compare-<stream> if not given. Finished
    runs in it are used again if settings, code, images, weights and machine are the same."""
    again: bool = False
    """Set aside what is in the folder, and run everything again."""
    jobs: int = 1
    """Runs at once, without progress bars; on two cores, --jobs 2 --threads 1 is fastest."""
    at: Inline[Workers] = field(default_factory=Workers)
    source: Source = field(default_factory=Source)
    backbone: str = BUILTIN
    """vit_sketch (built in, the default), timm/<name>, timm/<name>@<weights.safetensors>, timm/local-dir:<folder>, or
    hf/<repository or folder of transformers>."""
    loading: Inline[Loading] = field(default_factory=Loading)
    network: Network = field(default_factory=Network)
    epochs: int = 4
    """Passes over each task's images."""
    batch_size: int = 32
    """Images per step."""
    precision: Precision = "fp32"
    """Of products in training, features and Fisher: tf32 and bf16 are faster on a card, bf16 on some processors too."""
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    threads: int | None = None
    """Threads of torch in each run; torch's own choice if not given."""
    validation: float = 0.0
    """Measure on this part of the training images, held out, and never on test images; 0 for the test images."""
    lr: tuple[str, ...] = ()
    """Learning rates of some methods, in place of their own: --lr ita-full=2e-4 seed=3e-4."""
    search: tuple[float, ...] = ()
    """Choose each method's learning rate first, among its own times each of these numbers, on a fifth of the training
    images, held out: --search 0.1 0.3 1 3."""
    edits: bool = True
    """With seed 0, specialize to every task and unlearn it: three more evaluations per task. Runs that are there stay
    as they are."""
    json: Json = False
    run_: Rehearsal = field(default_factory=Rehearsal)

    def run(self) -> dict[str, Any]:
        """Compare."""
        from intarsia.console import ERR, shown
        from intarsia.report import tables
        from intarsia.study.bench import Bench
        from intarsia.study.compare import compare, planned
        from intarsia.study.methods import METHODS, STANDARD

        one_by_one("--methods", self.methods, METHODS)
        engine = self.at.chosen()
        if engine is not None and self.jobs != 1:
            raise InputError(f"--jobs {self.jobs}: with --engine ray, say --workers {self.jobs} in its place")
        own = {f.name: getattr(self, f.name) for f in fields(Bench) if hasattr(self, f.name) and f.name != "backbone"}
        backbone = self.loading.spec(self.backbone)
        rates = parse_numbers("--lr", self.lr)
        bench = Bench(targets=self.network.targets or TARGETS, backbone=backbone, rates=rates, **own)
        how: dict[str, Any] = {
            name: getattr(self, name) for name in ("seeds", "out", "jobs", "again", "search", "edits")
        }
        do = planned if self.run_.dry_run else compare
        rows = do(bench, self.methods or STANDARD, engine=engine, say=ERR.print, watched=shown, **how)
        if not self.json:
            at_once = self.jobs if engine is None else engine.workers or 1
            tables.plan(rows, at_once) if self.run_.dry_run else tables.comparison(rows)
        return {"rows": rows}


@dataclass(frozen=True)
class Presets:
    """List the cells of the paper's table, or compare a run with the one it was learned with."""

    action: Positional[Literal["list", "verify"]] = "list"
    """list the presets, or verify a pool: set its accuracy beside the paper's."""
    pool: Positional[Path | None] = None
    """Folder of the pool to verify."""
    source: Source = field(default_factory=Source)
    where: Inline[Where] = field(default_factory=Where)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """List or verify."""
        from intarsia.console import facts
        from intarsia.evaluation.answers import Answers
        from intarsia.evaluation.metrics import evaluate, own_heads_accuracy
        from intarsia.report import tables
        from intarsia.study.paper import PRESETS, preset_of, verify_preset

        if self.action == "list":
            records = [p.record() for p in PRESETS.values()]
            if not self.json:
                tables.presets(list(PRESETS.values()))
            return {"presets": records}
        if self.pool is None:
            raise InputError("presets verify: expected a pool's folder")
        pool = self.where.pool(self.pool, self.device)
        cell = preset_of(pool)
        stream = self.where.stream(self.source, pool, pool.tasks)
        answers = Answers()  # both heads are on the same features
        own = own_heads_accuracy(pool, stream, answers=answers)
        found = verify_preset(cell, evaluate(pool.mean(), stream, history=False, answers=answers), own)
        if not self.json:
            facts(found)
        return found


@dataclass(frozen=True)
class Report:
    """Write one page about a pool or a comparison: what was run, tables, figures, a card for every task.

    Measurements of a pool are saved beside the page one by one, in <folder>-measured.json: a report that was stopped
    continues from there.
    """

    what: Positional[Path]
    """Folder of the pool, or of the comparison."""
    out: Path | None = None
    """New file for the page; <folder>-report.html beside the folder if not given."""
    edits: bool = False
    """Also specialize a pool to each of its tasks, unlearn each, and measure: three more evaluations per task."""
    per_task: int = 200
    """Training images drawn from each task for the theorem; at most 50 for the lines of weights."""
    source: Source = field(default_factory=Source)
    where: Inline[Where] = field(default_factory=Where)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Measure, draw and write."""
        from intarsia.console import facts, shown
        from intarsia.evaluation.kept import Kept
        from intarsia.store.files import write, writing
        from intarsia.store.index import INDEX

        what, compared = self.what.resolve(), (self.what / "comparison.json").exists()
        out = self.out or what.with_name(f"{what.name}-report.html")
        if out.exists():
            raise InputError(f"{out} exists: name another file with --out, nothing was written")
        if not compared and not (self.what / INDEX).exists() and not is_model(self.what):
            raise InputError(f"{self.what} holds neither a pool (intarsia learn) nor a comparison (intarsia compare)")
        if compared and (self.edits or self.source.chooses or self.where != Where()):
            raise InputError(
                f"{self.what} holds a comparison, all of it measured: --edits, --backbone and the flags that choose "
                "images are for a pool"
            )
        with writing(out):  # found before anything is measured
            out.parent.mkdir(parents=True, exist_ok=True)
            out.touch()
            out.unlink()
        from intarsia.report import page as report

        if compared:
            html = report.report_comparison(self.what)
        else:
            pool = self.where.pool(self.what, self.device)
            with shown() as progress:
                stream = self.where.stream(self.source, pool, pool.tasks)
                kept = Kept(out.with_name(f"{what.name}-measured.json"), pool, stream)
                few = self.per_task
                html = report.report_pool(pool, stream, edited=self.edits, per_task=few, progress=progress, keep=kept)
        write(html.encode(), out)
        if not self.json:
            facts({"written": out})
        return {"out": str(out)}
