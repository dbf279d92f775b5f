"""Methods side by side: the same stream, backbone and budget, a process for every run, a table at the end.

A run that is in the comparison's folder already is not made again, if its settings, code, images, weights and machine
are the same (``folder``).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from intarsia.backbones.backbone import Backbone
from intarsia.data.files import FileHashes
from intarsia.data.fingerprint import notes_on
from intarsia.engines.ray import Ray
from intarsia.errors import InputError
from intarsia.machine import code
from intarsia.progress import Progress, silent
from intarsia.store.files import write, write_json
from intarsia.store.lock import one_writer
from intarsia.study.bench import Bench, made_with
from intarsia.study.cells.on_ray import RayCells, on_ray
from intarsia.study.cells.process import Processes
from intarsia.study.cost import expected
from intarsia.study.folder import SEARCH, TABLE, TEXT, Folder
from intarsia.study.methods import METHODS, STANDARD
from intarsia.study.runs import Cells, Runs, records, training_of
from intarsia.study.summary import markdown, summary
from intarsia.training.recommended import suited

HELD_OUT = 0.2
"""Part of the training images on which learning rates are chosen."""

Watched = Callable[[], AbstractContextManager[Progress]]
"""While its block runs, what it gives shows how far the work is."""


def unwatched() -> AbstractContextManager[Progress]:
    """Nobody looks."""
    return nullcontext(silent)


def compare(
    bench: Bench,
    methods: Sequence[str] = STANDARD,
    *,
    seeds: int = 1,
    out: str | Path | None = None,
    jobs: int = 1,
    engine: Ray | None = None,
    again: bool = False,
    search: Sequence[float] = (),
    edits: bool = True,
    say: Callable[[str], None] = print,
    watched: Watched = unwatched,
) -> list[dict[str, Any]]:
    """Run every method for every seed and summarise.

    Args:
        bench: stream, backbone and budget.
        methods: of ``METHODS``.
        seeds: runs of each, with seeds 0, 1, ...
        out: folder of the comparison, of this one alone; ``runs/compare-<stream>`` if None. Runs that are in it are not
            made again if everything that decides about their numbers is as it was; else they are set aside in it.
        jobs: runs at once; give each its share of the cores with ``bench.threads``.
        engine: Ray, whose workers make the runs, ``engine.workers`` at once in place of ``jobs``, with a thread each if
            ``bench.threads`` is None. They read images and write to ``out`` themselves; a run whose worker dies
            is tried again.
        again: set aside all that is in the folder, and make every run anew.
        search: choose each method's learning rate first, among its own times each of these: by seed 0 on a fifth of
            the training images, held out.
        edits: with seed 0, specialize to every task and unlearn it, and measure.
        say: told what is run.
        watched: gives what is told how many images are hashed; closed before a run draws its own.

    Returns:
        A row per method, in the order asked for: means over seeds, and the standard deviations under ``spread``.

    Raises:
        InputError: an unknown method, one named twice, a count below one, a pool or another comparison in the folder,
            or what the methods raise.

    Example:
        >>> rows = compare(Bench(Source(data="chalk", max_per_class=8)), ["frozen", "ita"], out="runs/compared")
    """
    _check(bench, methods, seeds, jobs, search)
    bench, engine = (bench, None) if engine is None else on_ray(bench, engine)
    at_once = jobs if engine is None else engine.workers
    with watched() as progress:
        bench, folder, made, files = _opened(bench, methods, seeds, out, again, say, progress)
    with one_writer(folder.path), ExitStack() as stack, _stopped(folder):
        folder.claim(bench, again=again)
        folder.keep_hashes(files)
        kept = Runs(bench, folder, made, say, edits)
        cells = cache(lambda: stack.enter_context(_cells(engine, bars=jobs == 1)))
        if search:
            trials = _trials(kept, methods, search, files, watched)
            usual = _usual(bench, methods)
            bench = replace(bench, rates=_chosen(trials, usual, folder, cells, at_once))
            kept = replace(kept, bench=bench)
        runs = records([(kept, name, seed) for seed in range(seeds) for name in methods], cells, at_once, Runs.make)
        rows = [summary(name, runs[place :: len(methods)]) for place, name in enumerate(methods)]
        machines = list(dict.fromkeys(run.get("machine", "not noted") for run in runs))
        record = {"bench": bench.record(), "machines": machines, "code": code(), "rows": rows}
        write_json(record, folder.path / TABLE)
        write(markdown(rows).encode(), folder.path / TEXT)
    return rows


@contextmanager
def _cells(engine: Ray | None, *, bars: bool) -> Iterator[Cells]:
    """Where runs are made, while the block runs."""
    if engine is None:
        yield Processes(bars)
        return
    with engine.started() as ray:
        yield RayCells(ray, engine.needs)


@contextmanager
def _stopped(folder: Folder) -> Iterator[None]:
    """Where the block is interrupted, say how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (f"runs that ended are in {folder.path}; the same command goes on from there",)
        raise


def planned(
    bench: Bench,
    methods: Sequence[str] = STANDARD,
    *,
    seeds: int = 1,
    out: str | Path | None = None,
    jobs: int = 1,
    engine: Ray | None = None,
    again: bool = False,
    search: Sequence[float] = (),
    edits: bool = True,
    say: Callable[[str], None],
    watched: Watched = unwatched,
) -> list[dict[str, Any]]:
    """What ``compare`` would do and cost; nothing is written. The arguments are those of ``compare``.

    Returns:
        A row per method: ``runs`` to make, those of a search included, runs that are ``there``, and the ``minutes`` of
        those to make, as long as the runs that are there, or else scaled up from a few images.
    """
    _check(bench, methods, seeds, jobs, search)
    bench = bench if engine is None else on_ray(bench, engine)[0]
    rows = list[dict[str, Any]]()
    with watched() as progress:
        bench, folder, made, _ = _opened(bench, methods, seeds, out, again, say, progress)
        runs = Runs(bench, folder, made, say, edits)
        for number, name in enumerate(methods, start=1):
            found = {seed: None if again else runs.found(name, seed) for seed in range(seeds)}
            there = [record for record in found.values() if record is not None]
            missing = [seed for seed, record in found.items() if record is None]
            tried = len(dict.fromkeys(search)) if METHODS[name].settings.lr > 0 else 0
            minutes = expected(bench, name, missing, there, searched=tried * (1 - HELD_OUT), edits=edits)
            rows.append({"method": name, "runs": len(missing) + tried, "there": len(there), "minutes": minutes})
            progress("timing methods", number, len(methods))
    return rows


def _check(bench: Bench, methods: Sequence[str], seeds: int, jobs: int, search: Sequence[float] = ()) -> None:
    for place, name in enumerate(methods):
        if name not in METHODS or name in methods[:place]:
            raise InputError(f"method {name!r}: expected some of {', '.join(METHODS)}, each once")
    if not methods:
        raise InputError(f"no method is named: expected some of {', '.join(METHODS)} (--methods)")
    threads = 1 if bench.threads is None else bench.threads
    counts = {"seeds": seeds, "jobs": jobs, "threads": threads, "epochs": bench.epochs, "batch-size": bench.batch_size}
    for option, count in counts.items():
        if count < 1:
            raise InputError(f"--{option} {count}: expected 1 or more")
    for name, lr in bench.rates.items():
        if name not in methods or not METHODS[name].settings.lr:
            learning = [method for method in methods if METHODS[method].settings.lr]
            raise InputError(
                f"--lr {name}={lr:g}: expected one of the methods that are compared and learn: "
                f"{', '.join(learning) or 'there is none'}"
            )
        if not 0 < lr < float("inf"):
            raise InputError(f"--lr {name}={lr:g}: expected a learning rate above 0")
    if bench.rates and search:
        raise InputError("--search chooses learning rates by itself: leave out --lr")
    for factor in search:
        if not 0 < factor < float("inf"):
            raise InputError(f"--search {factor}: expected factors of the methods' learning rates, above 0")
    if search and bench.validation:
        raise InputError("--search holds images out by itself: leave out --validation")


def _opened(
    bench: Bench,
    methods: Sequence[str],
    seeds: int,
    out: str | Path | None,
    again: bool,
    say: Callable[[str], None],
    progress: Progress,
) -> tuple[Bench, Folder, dict[int, dict[str, Any]], FileHashes]:
    """The bench, the folder, what decides about the runs of each seed, hashes of files; wrong input is refused.

    The bench has the learning rates asked for, and those that another backbone changes.
    """
    first, theta0 = bench.stream(0), bench.theta0()
    folder = Folder(Path(out) if out is not None else Path(f"runs/compare-{first.name}"), say)
    folder.check(bench, again=again)
    for note in notes_on(first, theta0):
        say(note)
    files = folder.hashes()
    made = {
        seed: made_with(bench, theta0, first if seed == 0 else bench.stream(seed), files, progress)
        for seed in range(seeds)
    }
    return replace(bench, rates={**_suited(methods, theta0), **bench.rates}), folder, made, files


def _suited(methods: Sequence[str], theta0: Backbone) -> dict[str, float]:
    """Learning rates of methods that another backbone than the built-in one changes."""
    own, sizes = {name: METHODS[name].settings.lr for name in methods}, theta0.sizes
    trained = {name: getattr(METHODS[name].baseline, "adapter", None) for name in methods}
    found = {name: suited(lr, getattr(trained[name], "kind", ""), sizes) for name, lr in own.items()}
    return {name: lr for name, lr in found.items() if lr != own[name]}


def _usual(bench: Bench, methods: Sequence[str]) -> dict[str, float]:
    """Learning rates that are taken where none is searched."""
    return {name: training_of(bench, name, 0).lr for name in methods}


def _trials(
    runs: Runs, methods: Sequence[str], factors: Sequence[float], files: FileHashes, watched: Watched
) -> list[Runs]:
    """For each factor, the runs whose learning rates are so many times the methods' own; images are held out."""
    bench, folder, usual = replace(runs.bench, validation=HELD_OUT), runs.folder, _usual(runs.bench, methods)
    with watched() as progress:
        made = {0: made_with(bench, bench.theta0(), bench.stream(0), files, progress)}
    found = list[Runs]()
    for factor in dict.fromkeys(factors):
        rates = {name: own * factor for name, own in usual.items()}
        own = Folder(folder.path / SEARCH / f"{factor:g}", folder.say)
        own.claim(bench, again=False)
        found.append(replace(runs, bench=replace(bench, rates=rates), folder=own, made=made, edits=False))
    return found


def _chosen(
    trials: Sequence[Runs], usual: Mapping[str, float], folder: Folder, cells: Callable[[], Cells], jobs: int | None
) -> dict[str, float]:
    """Each method's best learning rate; all that were tried are written down."""
    tried = [(runs, name) for runs in trials for name in usual if runs.bench.rates[name] > 0]
    found = records([(runs, name, 0) for runs, name in tried], cells, jobs, Runs.tried)
    table = {name: dict[float, float | None]() for _, name in tried}
    for (runs, name), record in zip(tried, found, strict=True):
        table[name][runs.bench.rates[name]] = record["final_accuracy"]
    best = {name: _best(rates, usual[name]) for name, rates in table.items()}
    record = {
        name: {"chosen": best[name], "tried": [{"lr": lr, "accuracy": a} for lr, a in rates.items()]}
        for name, rates in table.items()
    }
    write_json({"held_out": HELD_OUT, "methods": record}, folder.path / f"{SEARCH}.json")
    for name, lr in best.items():
        of = ", ".join(f"{lr:g} {'diverged' if a is None else f'{a:.1f}'}" for lr, a in table[name].items())
        folder.say(f"{name}: learning rate {lr:g} (on held-out training images, %: {of})")
    return best


def _best(accuracies: Mapping[float, float | None], own: float) -> float:
    """The learning rate of the highest accuracy; among equal ones that nearest to the method's own."""
    return max(accuracies, key=lambda lr: (-1.0 if (a := accuracies[lr]) is None else a, -abs(math.log(lr / own))))
