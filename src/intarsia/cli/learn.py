"""``intarsia learn``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from intarsia.adapters.protocol import Adapter
from intarsia.adapters.records import AdapterKind, build_adapter
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.builtin import BUILTIN
from intarsia.backbones.names import TARGETS
from intarsia.cli.options import Json
from intarsia.cli.pool import evaluated
from intarsia.console import facts, shown
from intarsia.data.records import reloaded
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.metrics import recorded_stream
from intarsia.machine import on_device
from intarsia.pool import Pool
from intarsia.regularizers.protocol import Regularizer
from intarsia.regularizers.records import Method, build_regularizer
from intarsia.study.choice import Source
from intarsia.study.estimate import estimate
from intarsia.study.paper import preset
from intarsia.training.checkpoint import Checkpoint, stopping
from intarsia.training.fine_tuning import Configuration
from intarsia.training.learner import learn
from intarsia.training.recommended import recommended, resolved
from intarsia.training.settings import Training


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
            settings = resolved(self.training, recommended(self.method, self.adapter)[1])
            configuration = Configuration(adapter, regularizer, settings, stream.augmentation)
            with shown() as progress:
                cost = estimate(theta0, stream, configuration, keep_fishers=self.keep_fishers, progress=progress)
            if not self.json:
                facts(cost.record())
            return cost.record()
        with shown([task.name for task in stream]) as progress, stopping(self.out):
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
                progress=progress,
            )
        if not self.evaluate:
            return {"pool": str(self.out), "tasks": list(pool.tasks)}
        whole = tuple(task.name for task in stream) == pool.tasks
        return evaluated(pool, pool.mean(), stream if whole else recorded_stream(pool), self.json)

    def _stream(self) -> TaskStream:
        """What is learned: as named, or when a run is resumed, as it was."""
        checkpoint = Checkpoint.of(self.out)
        if not self.resume or self.source != Source():
            return self.source.load("sketches", self.training.seed or 0)
        return reloaded(checkpoint.asked()["stream"]) if checkpoint.exists else recorded_stream(Pool.open(self.out))

    def _regularizer(self) -> Regularizer:
        name, strength = ("alpha", self.alpha) if self.method == "ita" else ("beta", self.beta)
        other = "beta" if name == "alpha" else "alpha"
        if getattr(self, other) is not None:
            raise InputError(f"--{other} with --method {self.method}: its strength is --{name}")
        if strength is None:
            strength, _ = recommended(self.method, self.adapter)
        return build_regularizer(self.method, strength)
