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
    from intarsia.backbones.backbone import Backbone
    from intarsia.data.stream import TaskStream

SEED = 0
"""Of the images that are held out to test, where there are none."""


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
        from intarsia.exchange.peft.inward import base_of, read_adapter
        from intarsia.exchange.peft.measured import import_peft

        if self.source.data is None:
            raise InputError("import: name the images of the adapter's classes with --data")
        base = None if self.add or self.backbone else base_of(read_adapter(self.adapter), self.adapter)
        theta0 = self._backbone(base)
        stream = self._stream()
        with shown() as progress:
            pool = import_peft(self.adapter, stream, out=self.out, backbone=theta0, add=self.add, progress=progress)
        card = pool.card(pool.tasks[-1])
        about = card.settings["imported"]
        if not self.json:
            facts({"written": self.out, "task": card.task, "classes": ", ".join(card.classes)})
            if about["left_out"]:
                OUT.print(f"left out, the head is measured on the images: {', '.join(about['left_out'])}")
        return {"pool": str(self.out), "task": card.task, "classes": list(card.classes), "imported": about}

    def _backbone(self, base: str | None) -> "Backbone":
        """The pool's, or what the adapter was trained on."""
        from intarsia.backbones.backbone import Backbone
        from intarsia.backbones.names import TARGETS
        from intarsia.cli.where import Where
        from intarsia.machine import on_device

        if self.add:
            if self.network.targets:
                raise InputError("--network.targets with --add: leave it out, the pool has its own")
            return Where(backbone=self.backbone).pool(self.out, self.device).backbone
        device = on_device(self.device)
        return Backbone.load(self.backbone or base or "", targets=self.network.targets or TARGETS).to(device)

    def _stream(self) -> "TaskStream":
        """The images, as one task of the adapter's name."""
        stream = plans.load(plans.with_flags(self.source, {}), SEED)
        if len(stream) != 1:
            return stream  # which is refused, with a word of why
        split = {self.name or self.adapter.resolve().name: list(stream[0].classes)}
        given = plans.with_flags(replace(self.source, tasks=None, split=None, only=(), order=None), {})
        return plans.load({**given, "split": split}, SEED)
