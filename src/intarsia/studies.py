"""Verbs that set methods side by side, or a run beside the paper, and the page about either."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from intarsia import tables
from intarsia.compare import STANDARD, Bench, compare
from intarsia.console import ERR, bar, facts
from intarsia.errors import InputError
from intarsia.evaluation import evaluate
from intarsia.options import Json, Source, open_pool
from intarsia.presets import PRESETS, preset_of, verify


@dataclass(frozen=True)
class Compare:
    """Run methods on one stream with one budget, and put them side by side."""

    methods: str = ",".join(STANDARD)
    """Which, with commas between: frozen, joint, finetune, ewc, l2, derpp, tmc, seed, ita, ita-full, ita-ia3, iel,
    iel-full, iel-ia3."""
    seeds: int = 1
    """Runs of each method, with seeds 0, 1, ..."""
    out: Path = Path("runs/compare")
    """Folder of the comparison; runs that are in it already, with the same settings, are not made again."""
    bench: OmitArgPrefixes[Bench] = field(default_factory=Bench)
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Compare."""
        names = [name.strip() for name in self.methods.split(",") if name.strip()]
        rows = compare(
            self.bench, names, seeds=self.seeds, out=self.out, say=lambda what: ERR.print(what, markup=False)
        )
        if not self.json:
            tables.comparison(rows)
        return {"rows": rows}


@dataclass(frozen=True)
class Presets:
    """List the cells of the paper's table, or compare a run with the one it was learned with."""

    action: Positional[Literal["list", "verify"]] = "list"
    """What to do."""
    pool: Positional[Path | None] = None
    """Folder of the pool to verify."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """List or verify."""
        if self.action == "list":
            records = [p.record() for p in PRESETS.values()]
            if not self.json:
                tables.presets(list(PRESETS.values()))
            return {"presets": records}
        if self.pool is None:
            raise InputError("presets verify: expected a pool's folder")
        pool = open_pool(self.pool, self.device)
        cell = preset_of(pool)
        found = verify(cell, evaluate(pool.mean(), self.source.of(pool), history=False))
        if not self.json:
            facts(found)
        return found


@dataclass(frozen=True)
class Report:
    """Write one page about a pool or a comparison: what was run, tables, figures, a card for every task."""

    what: Positional[Path]
    """Folder of the pool, or of the comparison."""
    out: Path | None = None
    """New file for the page; <folder>-report.html beside the folder if not given."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Measure, draw and write."""
        out = self.out or self.what.with_name(f"{self.what.resolve().name}-report.html")
        if out.exists():
            raise InputError(f"{out} exists: name another file with --out, nothing was written")
        from intarsia import report  # noqa: PLC0415  its figures' library takes as long to load as all verbs together

        if (self.what / "comparison.json").exists():
            html = report.report_comparison(self.what)
        else:
            pool = open_pool(self.what, self.device)
            with bar("measuring") as progress:
                html = report.report_pool(pool, self.source.of(pool), progress=progress)
        report.write_report(out, html)
        if not self.json:
            facts({"written": out})
        return {"out": str(out)}
