"""Verbs that look after a pool: list, verify, rename a class, remove a module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import Any

from intarsia.cli.flags import Inline, Json, Positional
from intarsia.cli.options import Loading, Network
from intarsia.cli.where import is_model
from intarsia.errors import InputError


@dataclass(frozen=True)
class Ls:
    """List the modules of a pool, the classes of a merged model, what a backbone has to train, or what is built in."""

    pool: Positional[Path | None] = None
    """Folder of the pool, or of a merged model."""
    builtin: bool = False
    """List the built-in streams and backbone, with source and licence."""
    backbone: str | None = None
    """List what would be trained of a backbone: its layers, by kind, and how it wants its images; as for learn."""
    loading: Inline[Loading] = field(default_factory=Loading)
    network: Network = field(default_factory=Network)
    json: Json = False

    def run(self) -> dict[str, Any]:
        """List."""
        from intarsia.pool import Pool
        from intarsia.report import tables

        if [self.builtin, self.backbone is not None, self.pool is not None].count(True) != 1:
            raise InputError("ls: expected one of a pool's folder, --backbone <name>, or --builtin")
        if self.pool is None:
            return self._builtin() if self.backbone is None else self._backbone(self.backbone)
        if is_model(self.pool):
            return self._model(self.pool)
        pool = Pool.open(self.pool)
        cards = [pool.card(t) for t in pool.tasks]
        if not self.json:
            tables.modules(pool, cards)
        return {**pool.index.record(), "modules": [c.record() for c in cards]}

    def _model(self, folder: Path) -> dict[str, Any]:
        from intarsia.console import table
        from intarsia.merging.model import read_card

        found = read_card(folder)
        if not self.json:
            recipe = found["recipe"]
            rows = [
                (task, len(names), f"{recipe['weights'].get(task, 0):g}", ", ".join(names))
                for task, names in found["classes"].items()
            ]
            title = f"{folder}: {recipe['name']} on {recipe['backbone']}, {recipe['heads']} heads"
            table(title, ("task", "classes", "weight", "class names"), rows)
        return found

    def _backbone(self, spec: str) -> dict[str, Any]:
        from intarsia.backbones.backbone import Backbone
        from intarsia.backbones.names import TARGETS
        from intarsia.console import facts

        found = Backbone.load(self.loading.spec(spec), targets=self.network.targets or TARGETS).describe()
        if not self.json:
            facts({**found, "trained": {kind: _counted(layers) for kind, layers in found["trained"].items()}})
        return found

    def _builtin(self) -> dict[str, Any]:
        from intarsia.console import OUT, facts
        from intarsia.study.choice import builtin

        about = builtin()
        if not self.json:
            for entry in about:
                facts(entry)
                OUT.print()
        return {"builtin": about}


@dataclass(frozen=True)
class Verify:
    """Check every file of a pool or merged model; name what is damaged, and what is lost with it."""

    pool: Positional[Path]
    """Folder of the pool, or of a merged model."""
    repair: bool = False
    """Drop the modules that are damaged; the others stay usable."""
    backbone: str | None = None
    """Check also that this is the backbone the pool was learned on: timm/<name>@<weights.safetensors>."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Verify; damage that is not repaired is an error."""
        from intarsia.console import shown
        from intarsia.pool import Pool
        from intarsia.report import tables
        from intarsia.store.verify import remedy, repair, unnamed, verify

        if is_model(self.pool):
            return self._model(self.pool)
        pool = Pool.open(self.pool, self.backbone)
        if self.backbone is not None:
            _ = pool.backbone  # loaded, and checked against the pool's
        with shown() as progress:
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

    def _model(self, folder: Path) -> dict[str, Any]:
        """A merged model is whole if it loads; there is nothing to drop."""
        from intarsia.console import facts
        from intarsia.merging.model import ComposedModel

        if self.repair or self.backbone is not None:
            raise InputError(f"{folder} is a merged model: --repair and --backbone are for pools; compose it again")
        model = ComposedModel.load(folder)
        found = {"files": 2, "damaged": [], "classes": len(model.labels), "recipe": model.recipe["name"]}
        if not self.json:
            facts({**found, "damaged": 0})
        return found


@dataclass(frozen=True)
class Rename:
    """Give a class of a pool another name; no module is changed."""

    pool: Positional[Path]
    """Folder of the pool."""
    old: Positional[str]
    """Its name."""
    new: Positional[str]
    """The name that models answer from now on."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Rename."""
        from intarsia.console import facts
        from intarsia.pool import Pool
        from intarsia.store import rewrite

        after = rewrite.rename(Pool.open(self.pool), self.old, self.new)
        if not self.json:
            facts({"renamed": f"{self.old} to {self.new}"})
        return {"pool": str(self.pool), "old": self.old, "new": self.new, "renamed": after.renamed}


@dataclass(frozen=True)
class Remove:
    """Delete a module from a pool for good; say what still carries its influence."""

    pool: Positional[Path]
    """Folder of the pool: it is changed (``unlearn`` leaves it as it is)."""
    task: Positional[str]
    """The task whose module is deleted."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Remove."""
        from intarsia.console import OUT, facts
        from intarsia.pool import Pool
        from intarsia.store import rewrite

        pool = Pool.open(self.pool)
        influence = pool.influenced_by(self.task) if self.task in pool.tasks else {}
        left = rewrite.remove(pool, self.task).tasks
        if not self.json:
            facts({"removed": self.task, "modules left": ", ".join(left)})
            for other, ways in influence.items():
                OUT.print(f"still influenced by {self.task}: {other} (its {', '.join(ways)})")
            OUT.print(f"still has the Fisher of {self.task} in it: what regularizes further tasks")
        return {"pool": str(self.pool), "removed": self.task, "modules": list(left), "influenced": influence}


def _counted(layers: Sequence[str]) -> str:
    """Layers that differ in their block alone, as one: ``blocks.*.attn.q (12)``."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", layer) for layer in layers)
    return " ".join(f"{name} ({count})" for name, count in counts.items())
