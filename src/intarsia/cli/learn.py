"""``intarsia learn``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intarsia.adapters.choices import AdapterKind
from intarsia.cli import plan as plans
from intarsia.cli.flags import Inline, Json
from intarsia.cli.options import Loading, Network, Rehearsal, Workers
from intarsia.cli.plan import Plan
from intarsia.errors import InputError
from intarsia.regularizers.choices import Method
from intarsia.study.choice import Source
from intarsia.training.recommended import SIZES, Hyperparameters, resolve
from intarsia.training.settings import Training

if TYPE_CHECKING:
    from intarsia.backbones.backbone import Backbone
    from intarsia.data.stream import TaskStream
    from intarsia.training.fine_tuning import Configuration


@dataclass(frozen=True)
class Run(Rehearsal):
    """What is done besides learning."""

    evaluate: bool = True
    """Measure the pool on the test images at the end."""
    keep_fishers: bool | None = None
    """Store every task's own Fisher, for --rule fisher."""
    checkpoint: bool = True
    """Save the training state at every epoch boundary; without it, a stopped run goes on from its last whole task."""


@dataclass(frozen=True)
class Learn:
    """Learn a stream of tasks, each as a module of a pool, and evaluate their mean."""

    source: Source = field(default_factory=Source)
    backbone: str | None = None
    """vit_sketch (built in, the default), timm/<name>, timm/<name>@<weights.safetensors>, timm/local-dir:<folder>, or
    hf/<repository or folder of transformers>."""
    loading: Inline[Loading] = field(default_factory=Loading)
    method: Method | None = None
    """Train each module alone (ita, the default) or through the composed model (iel)."""
    adapter: AdapterKind | None = None
    """What a task vector is made of; lora if not given."""
    rank: int | None = None
    """LoRA's rank (three times that on a fused qkv); 16 if not given."""
    strength: float | None = None
    """Strength of the regularizer (alpha of ITA, beta of IEL); recommended for method and adapter if not given."""
    training: Training = field(default_factory=Training)
    arrivals: Path | None = None
    """A JSON file: groups of tasks, as they come."""
    out: Path | None = None
    """Folder of the pool, new or empty; else runs/<stream>-<method>."""
    add: bool = False
    """Add the stream's tasks to the pool in --out, with the pool's own settings unless told otherwise."""
    resume: bool = False
    """Go on with the run in --out that was stopped, from its last epoch boundary, with its own settings."""
    device: str | None = None
    """cpu, cuda, mps, or auto (the default): the best there is."""
    preset: str | None = None
    """A cell of the paper's table, by name (see `intarsia presets`): sets all but --data and --out."""
    paper: bool = False
    """The paper's settings; flags still win."""
    config: Path | None = None
    """Repeat the run that wrote this config.json, into another --out; flags still win."""
    at: Inline[Workers] = field(default_factory=Workers)
    report_to: tuple[str, ...] = ()
    """trackio, mlflow, wandb or tensorboard."""
    json: Json = False
    network: Network = field(default_factory=Network)
    run_: Run = field(default_factory=Run)

    def plan(self, sizes: Mapping[str, float] = SIZES) -> Plan:
        """What is done, nothing left open but where the images are.

        Args:
            sizes: of the backbone's weights, on which a recommended learning rate depends (``Backbone.sizes``).

        Raises:
            InputError: flags contradict each other, or the run, pool, preset or record to begin with is not there.
        """
        return self._planned(self._base(), sizes)

    def _planned(self, base: Plan | None, sizes: Mapping[str, float]) -> Plan:
        chosen = self._chosen(base, sizes)
        base = base or Plan(chosen)
        kept = self.run_.keep_fishers
        return Plan(
            chosen,
            plans.with_flags(self.source, base.source) | self._groups(),
            self.loading.spec(self.backbone or base.backbone),
            self.network.targets or base.targets,
            base.keep_fishers if kept is None else kept,
            self.add or base.add,
            self.device or base.device,
        )

    def _chosen(self, base: Plan | None, sizes: Mapping[str, float]) -> Hyperparameters:
        """The flags, and the rest as in the plan that is begun with, or as recommended for weights of these sizes."""
        return resolve(
            self._training(),
            method=self.method,
            adapter=self.adapter,
            rank=self.rank,
            strength=self.strength,
            base=None if base is None else base.chosen,
            from_paper=self.paper,
            sizes=sizes,
        )

    def _training(self) -> Training:
        """The settings given; the engine of Ray sets some, and so do arrivals."""
        given = self.training if self.arrivals is None else self.training.over_others("--arrivals")
        if self.at.engine == "local":
            return given
        from intarsia.engines.ray import Ray

        return Ray().training(given)

    def _groups(self) -> dict[str, Any]:
        """Which tasks become known together."""
        if self.arrivals is None:
            return {}
        from intarsia.data.splits import read_arrivals

        if not (groups := read_arrivals(self.arrivals)):
            raise InputError(f"the arrivals '{self.arrivals}' have no group: expected one or more, or leave them out")
        return {"arrivals": groups}

    def _base(self) -> Plan | None:
        """What is begun with where flags say nothing."""
        given = [f"--{name}" for name in ("resume", "add", "config", "preset", "paper") if getattr(self, name)]
        if len(given) > 1:
            why = {"--resume": "it goes on as it was", "--add": "it takes the pool's own settings"}
            raise InputError(
                f"{' and '.join(given)} together: expected one of them, each brings settings of its own"
                f"{f'; {given[0]}: {why[given[0]]}' if given[0] in why else ''}"
            )
        if self.resume:
            if self.arrivals is not None:
                raise InputError(f"--arrivals {self.arrivals}: the run goes on with its own groups: leave it out")
            return plans.of_run(self._folder({}, self.method or "ita"))
        if self.add:
            if self.out is None or self.source.data is None:
                raise InputError("--add: name the pool with --out, and the images of the new tasks with --data")
            return plans.of_pool(self.out)
        if self.preset is not None or self.config is not None:
            name = f"--preset {self.preset}" if self.config is None else f"--config {self.config}"
            base = plans.of_preset(self.preset or "") if self.config is None else plans.read(self.config)
            plans.refuse("--method", self.method, base.chosen.method, name)
            plans.refuse("--adapter", self.adapter, base.chosen.adapter, name)
            return base
        return None

    def _folder(self, source: dict[str, Any], method: str) -> Path:
        named = plans.with_flags(self.source, source)
        return self.out or Path("runs") / f"{plans.stream_name(named)}-{method}"

    def run(self) -> dict[str, Any]:
        """Learn and evaluate."""
        base, engine = self._base(), self.at.chosen()
        plan = self._planned(base, SIZES)
        if self.preset is not None and self.source.data is None:
            from intarsia.study.paper import preset

            wanted = preset(self.preset).data
            raise InputError(
                f"preset {self.preset}: name {wanted.title}'s images with --data folder:<dir>, "
                f"{wanted.classes} classes under train/ and test/"
            )
        if plan.add and self.out is None:
            raise InputError("the run adds to a pool: name it with --out")
        chosen = plan.chosen
        out = self._folder(dict(plan.source), chosen.method)

        from intarsia.adapters.records import build_adapter
        from intarsia.backbones.backbone import Backbone
        from intarsia.console import ERR, OUT, shown
        from intarsia.data.fingerprint import notes_on
        from intarsia.machine import on_device
        from intarsia.parallel import processes
        from intarsia.regularizers.records import build_regularizer
        from intarsia.tracking.reports import report_to
        from intarsia.training.checkpoint import Checkpoint, stopping
        from intarsia.training.fine_tuning import Configuration
        from intarsia.training.learner import learn

        here = processes.start()
        ERR.quiet = OUT.quiet = not here.leads
        device = on_device(plan.device)
        adapter = build_adapter(chosen.adapter, chosen.rank)
        regularizer = build_regularizer(chosen.method, chosen.strength)
        stream = self._stream(plan, out)
        theta0 = Backbone.load(plan.backbone, targets=plan.targets).to(device)
        chosen = self._chosen(base, theta0.sizes)
        plan = replace(plan, chosen=chosen)
        for note in notes_on(stream, theta0) if here.leads else ():
            ERR.print(note)
        if self.run_.dry_run:
            how = Configuration(adapter, regularizer, chosen.settings, stream.augmentation)
            return self._estimate(theta0, stream, how, plan.keep_fishers)
        new = not self.resume or Checkpoint.of(out).exists
        trackers = self.report_to if here.leads else ()
        with report_to(trackers, out, say=ERR.print) as reports:
            with shown([task.name for task in stream]) as progress, stopping(out), processes.together(here):
                pool = learn(
                    theta0,
                    stream,
                    out=out,
                    adapter=adapter,
                    regularizer=regularizer,
                    training=chosen.settings,
                    add=plan.add and not self.resume,
                    resume=self.resume,
                    keep_fishers=plan.keep_fishers,
                    checkpoints=self.run_.checkpoint,
                    engine=engine,
                    progress=progress,
                    tracker=reports,
                )
            if not here.leads:
                return {}
            if new:
                plans.write(replace(plan, device=str(device), backbone=theta0.name), stream, out)
            if not self.run_.evaluate:
                return {"pool": str(out), "tasks": list(pool.tasks)}
            from intarsia.cli.outcome import outcome

            return outcome(pool, stream, as_json=self.json, reports=reports if trackers else None)

    def _stream(self, plan: Plan, out: Path) -> "TaskStream":
        """What is learned: as named, or when a run is resumed, as it was."""
        from intarsia.data.records import reloaded
        from intarsia.evaluation.metrics import recorded_stream
        from intarsia.pool import Pool
        from intarsia.training.checkpoint import Checkpoint

        if not self.resume or self.source.chooses:
            source = dict(plan.source)
            if plan.add and not self.resume and source.get("tasks") and not source.get("only"):
                source.setdefault("first_task", Pool.open(out).next_number())
            return plans.load(source, plan.chosen.settings.seed)
        checkpoint = Checkpoint.of(out)
        if not checkpoint.exists:
            return recorded_stream(Pool.open(out), self.source.cache)
        stream = reloaded(checkpoint.asked()["stream"])
        stream.keep_in(self.source.cache or "auto")
        return stream

    def _estimate(self, theta0: "Backbone", stream: "TaskStream", how: "Configuration", kept: bool) -> dict[str, Any]:
        """What the run will cost."""
        from intarsia.console import facts, shown
        from intarsia.study.estimate import estimate

        with shown() as progress:
            cost = estimate(theta0, stream, how, keep_fishers=kept, progress=progress)
        if not self.json:
            facts(cost.record())
        return cost.record()
