"""``intarsia import``."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intarsia.cli import plan as plans
from intarsia.cli.flags import Json, Positional
from intarsia.cli.options import Network
from intarsia.errors import InputError
from intarsia.study.choice import Source

if TYPE_CHECKING:
    from intarsia.data.stream import TaskStream
    from intarsia.exchange.peft_in import Adaptation
    from intarsia.pool import Pool


@dataclass(frozen=True)
class Import:
    """Make a LoRA that PEFT wrote a module of a pool; class statistics, head and prototypes are measured on images."""

    adapter: Positional[Path]
    """Folder with adapter_config.json and adapter_model.safetensors."""
    out: Path
    """Folder of the pool, new or empty; with --add an existing pool."""
    source: Source = field(default_factory=Source)
    name: str | None = None
    """Of the task; that of the adapter's folder if not given."""
    add: bool = False
    """Add the module to the pool in --out."""
    backbone: str | None = None
    """What the adapter was trained on, as for learn; if not given, as the pool or the adapter says."""
    network: Network = field(default_factory=Network)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Read, measure and write."""
        from intarsia.console import OUT, facts, shown
        from intarsia.exchange.measured import add_module
        from intarsia.exchange.peft_in import fitted, read_adapter

        if self.source.data is None:
            raise InputError("import: name the images of the adapter's classes with --data")
        adapter = read_adapter(self.adapter)
        pool = self._pool(adapter)
        parameters = fitted(adapter, pool.backbone, pool.adapter, f"adapter {self.adapter}")
        about = {"from": "peft", "base": adapter.base, **adapter.about, "left_out": list(adapter.saved)}
        with shown() as progress:
            made = add_module(
                lambda: self._pool(adapter, pool), self.out, self._stream(pool), parameters, about, progress
            )
        task = made.tasks[-1]
        result = {"pool": str(self.out), "task": task, "classes": list(made.classes[task]), "imported": about}
        if not self.json:
            facts({"written": self.out, "task": task, "classes": ", ".join(result["classes"]), "rank": adapter.rank})
            if adapter.saved:
                OUT.print(f"left out, the head is measured on the images: {', '.join(adapter.saved)}")
        return result

    def _pool(self, adapter: "Adaptation", before: "Pool | None" = None) -> "Pool":
        """The pool to write to; ``before`` is the same, opened earlier, whose backbone is loaded."""
        from intarsia.adapters.lora import LoRA
        from intarsia.backbones.backbone import Backbone
        from intarsia.backbones.names import BUILTIN, TARGETS
        from intarsia.cli.where import Where
        from intarsia.machine import on_device
        from intarsia.pool import Pool
        from intarsia.regularizers.records import build_regularizer, regularizer_record
        from intarsia.training.recommended import resolve

        if self.add:
            if self.network.targets:
                raise InputError("--network.targets with --add: leave it out, the pool has its own")
            if before is not None:
                return Pool.open(self.out, before.backbone)
            return Where(backbone=self.backbone).pool(self.out, self.device)
        chosen = resolve(adapter="lora", rank=adapter.rank)
        regularizer = build_regularizer(chosen.method, chosen.strength)
        record = {**regularizer_record(regularizer), **chosen.settings.record()}
        if before is not None:
            return Pool.create(self.out, before.backbone, LoRA(adapter.rank), record)
        if self.backbone is None and adapter.base is None:
            raise InputError(f"adapter {self.adapter} does not say what it was trained on: name it with --backbone")
        device = on_device(self.device)
        ours = str(adapter.base).startswith(("timm/", BUILTIN))
        spec = self.backbone or (str(adapter.base) if ours else f"hf/{adapter.base}")
        theta0 = Backbone.load(spec, targets=self.network.targets or TARGETS).to(device)
        return Pool.create(self.out, theta0, LoRA(adapter.rank), record)

    def _stream(self, pool: "Pool") -> "TaskStream":
        """The images, as one task of the adapter's name."""
        seed = int(pool.index.settings.get("seed", 0))
        stream = plans.load(plans.with_flags(self.source, {}), seed)
        if len(stream) != 1:
            return stream  # which is refused, with a word of why
        split = {self.name or self.adapter.resolve().name: list(stream[0].classes)}
        given = plans.with_flags(replace(self.source, tasks=None, split=None, only=(), order=None), {})
        return plans.load({**given, "split": split}, seed)
