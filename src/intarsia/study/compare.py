"""Methods side by side: the same stream, backbone and budget, a process for every run, a table at the end.

A run that is in the comparison's folder already is not made again, if its settings, code, images, weights and machine
are the same (``folder``).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

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
from intarsia.study.folder import TABLE, TEXT, Folder
from intarsia.study.methods import METHODS, STANDARD
from intarsia.study.runs import Cells, Runs
from intarsia.study.summary import markdown, summary

WAKES = 0.5
"""Seconds between two looks for a signal."""
Run = tuple[str, int]
"""A method's name, and a seed."""


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
    say: Callable[[str], None],
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
            ``bench.threads`` is None. They read images and write to ``out`` themselves; a run whose worker dies is made
            again.
        again: set aside all that is in the folder, and make every run anew.
        say: told what is run.
        watched: gives what is told how many images are hashed; closed before a run draws its own.

    Returns:
        A row per method, in the order asked for: means over seeds, and the standard deviations under ``spread``.

    Raises:
        InputError: an unknown method, one named twice, a count below one, a pool or another comparison in the folder,
            or what the methods raise.
    """
    _check(bench, methods, seeds, jobs)
    bench, engine = (bench, None) if engine is None else on_ray(bench, engine)
    with watched() as progress:
        folder, made, files = _opened(bench, seeds, out, again, say, progress)
    with one_writer(folder.path):
        folder.claim(bench, again=again)
        folder.keep_hashes(files)
        asked, kept = [(name, seed) for seed in range(seeds) for name in methods], Runs(bench, folder, made, say)
        there = {run: record for run in asked if (record := kept.found(*run)) is not None}
        for name, seed in there:
            say(f"{name}, seed {seed}: there already")
        if missing := [run for run in asked if run not in there]:
            with _cells(bench, engine, bars=jobs == 1) as cells:
                there |= _made(kept, missing, cells, jobs if engine is None else engine.workers or len(missing))
        runs = [there[run] for run in asked]
        rows = [summary(name, runs[place :: len(methods)]) for place, name in enumerate(methods)]
        machines = list(dict.fromkeys(run.get("machine", "not noted") for run in runs))
        record = {"bench": bench.record(), "machines": machines, "code": code(), "rows": rows}
        write_json(record, folder.path / TABLE)
        write(markdown(rows).encode(), folder.path / TEXT)
    return rows


@contextmanager
def _cells(bench: Bench, engine: Ray | None, *, bars: bool) -> Iterator[Cells]:
    """Where runs are made, while the block runs."""
    if engine is None:
        yield Processes(bench, bars)
        return
    with engine.started() as ray:
        yield RayCells(ray, bench, engine.needs)


def _made(kept: Runs, missing: Sequence[Run], cells: Cells, jobs: int) -> dict[Run, dict[str, Any]]:
    """Runs made, so many at once; if one fails, all end."""
    with ThreadPoolExecutor(jobs) as workers:
        try:
            waiting = {run: workers.submit(kept.make, *run, cells) for run in missing}
            return {run: _result(future) for run, future in waiting.items()}
        except BaseException as stop:
            workers.shutdown(wait=False, cancel_futures=True)
            cells.stop()
            if isinstance(stop, KeyboardInterrupt):
                where = kept.folder.path
                stop.args = (f"runs that ended are in {where}; the same command goes on from there",)
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
    say: Callable[[str], None],
    watched: Watched = unwatched,
) -> list[dict[str, Any]]:
    """What ``compare`` would do and cost; nothing is written. The arguments are those of ``compare``.

    Returns:
        A row per method: ``runs`` to make, runs that are ``there``, and the ``minutes`` of those to make, as long as
        the runs that are there, or else scaled up from a few images.
    """
    _check(bench, methods, seeds, jobs)
    bench = bench if engine is None else on_ray(bench, engine)[0]
    rows = list[dict[str, Any]]()
    with watched() as progress:
        folder, made, _ = _opened(bench, seeds, out, again, say, progress)
        runs = Runs(bench, folder, made, say)
        for number, name in enumerate(methods, start=1):
            found = {seed: None if again else runs.found(name, seed) for seed in range(seeds)}
            there = [record for record in found.values() if record is not None]
            missing = [seed for seed, record in found.items() if record is None]
            minutes = expected(bench, name, missing, there)
            rows.append({"method": name, "runs": len(missing), "there": len(there), "minutes": minutes})
            progress("timing methods", number, len(methods))
    return rows


def _check(bench: Bench, methods: Sequence[str], seeds: int, jobs: int) -> None:
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


def _opened(
    bench: Bench, seeds: int, out: str | Path | None, again: bool, say: Callable[[str], None], progress: Progress
) -> tuple[Folder, dict[int, dict[str, Any]], FileHashes]:
    """The folder, what decides about the runs of each seed, hashes of files; what is wrong is said before any run."""
    first, theta0 = bench.stream(0), bench.theta0()
    folder = Folder(Path(out) if out is not None else Path(f"runs/compare-{first.name}"), say)
    folder.check(bench, again=again)
    for note in notes_on(first, theta0.preprocessing):
        say(f"{first.name}: {note}")
    files = folder.hashes()
    made = {
        seed: made_with(bench, theta0, first if seed == 0 else bench.stream(seed), files, progress)
        for seed in range(seeds)
    }
    return folder, made, files


def _result(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """Of a run, in short waits: a signal that comes just before one, or to another thread, does not end it."""
    while not future.done():
        wait([future], WAKES)
    return future.result()
