"""Settings: frozen dataclasses that are the command line's flags and the record beside each result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from intarsia.curvature.choices import CurvatureKind, CurvatureOf, Estimator
from intarsia.errors import InputError
from intarsia.regularizers.choices import Step

Protocol = Literal["recommended", "paper"]
Precision = Literal["fp32", "tf32", "bf16"]
"""As ``numerics.Precision``; there torch is needed."""
LATER: dict[str, Any] = {
    "accumulate": 1,
    "grad_checkpointing": False,
    "class_balanced": False,
    "curvature": "diagonal",
    "curvature_of": "tasks",
    "curvature_images": 256,
    "mean_scale": 1.0,
}
"""What a record need not say: what was done before there was the setting."""
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
"""What ``precision`` was called in older records."""


@dataclass(frozen=True)
class Training:
    """How one module is learned. A field that is None is as recommended for the method and adapter (``resolved``)."""

    protocol: Protocol | None = None
    """What the six steps do where the paper says nothing: as recommended, or as its authors' code does (--paper)."""
    epochs: int | None = None
    """Passes over a task's images."""
    batch_size: int | None = None
    """Images per step."""
    lr: float | None = None
    """AdamW's learning rate, cosine per epoch."""
    warmup: float | None = None
    """Epochs of the learning rate's first rise."""
    weight_decay: float | None = None
    """AdamW's weight decay."""
    precision: Precision | None = None
    """Of the network's products; Fisher, too."""
    accumulate: int | None = None
    """Parts that a batch is computed in."""
    grad_checkpointing: bool | None = None
    """Keep no activations: less memory, more time."""
    compile: bool | None = None
    """Compile the network that is trained, once per task: a minute each, for slightly faster steps; on a CPU it needs a
    C++ compiler."""
    step: Step | None = None
    """The regularizer's step: implicit (proximal), explicit and before AdamW's (decoupled), in the loss (coupled)."""
    normalize_fisher: bool | None = None
    """Divide the Fisher by its mean: one strength suits all backbones."""
    lambda_h: float | None = None
    """Fisher pull of the head to its reference."""
    lambda_0: float | None = None
    """Plain pull of the head to the same."""
    center_features: bool | None = None
    """Put the mean feature of every batch back to where it was at theta0 before the head sees it: a drift that all
    images share is undone in the composed model too, and left in, the first steps would chase nothing else."""
    drift_penalty: float | None = None
    """Weight of that drift in the loss, squared, over the variance of the features: small drifts compose linearly. It
    pays with IEL, whose specialists it keeps; the mean is better without."""
    iel_start: Literal["mean", "zero"] | None = None
    """Where IEL's task vector begins: at the mean of those before it, where IEL's own regularizer is least and the
    composed model stays what it was, or at zero."""
    pretune_epochs: int | None = None
    """Passes that pre-tune a new head."""
    pretune_lr: float | None = None
    """SGD's rate there, and in paper alignment."""
    fisher: Estimator | None = None
    """Fisher estimator."""
    probes: int | None = None
    """Draws per batch of the random Fisher estimators."""
    fisher_over: Literal["earlier", "others"] | None = None
    """Tasks whose Fisher and heads a module knows: those before it, or all others (every task is prepared first)."""
    curvature: CurvatureKind | None = None
    """What measures task vectors."""
    curvature_of: CurvatureOf | None = None
    """Of every task, or of the first alone."""
    curvature_images: int | None = None
    """Images per task; the diagonal takes all."""
    mean_scale: float | None = None
    """Factor of a mean of T vectors, at most T."""
    class_balanced: bool | None = None
    """For uneven classes: all come equally often, and class means of few images are drawn to the others."""
    seed: int | None = None
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "probes", "curvature_images"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise InputError(f"{name.replace('_', '-')} {count}: expected 1 or more")
        for name in (
            "lr",
            "warmup",
            "weight_decay",
            "drift_penalty",
            "lambda_h",
            "lambda_0",
            "pretune_lr",
            "pretune_epochs",
        ):
            if (number := getattr(self, name)) is not None and not 0 <= number < float("inf"):
                raise InputError(f"{name.replace('_', '-')} {number}: expected a finite number, 0 or more")
        if self.mean_scale is not None and not 1 <= self.mean_scale < float("inf"):
            raise InputError(f"mean-scale {self.mean_scale}: expected a finite number, 1 or more")
        if self.center_features and self.batch_size == 1:
            raise InputError(
                "batch-size 1 with feature centering: the mean of one image is the image; use 2, or leave it out "
                "(center_features=False, --training.no-center-features)"
            )

    def over_others(self, by: str) -> Self:
        """The same, where a module is to know the Fishers of all other tasks that are known.

        Args:
            by: what wants that, in words.

        Raises:
            InputError: it is to know those of earlier tasks only.
        """
        if self.fisher_over == "earlier":
            raise InputError(
                f"{by}: every module knows the Fishers of all other tasks that are known: leave fisher-over 'earlier' "
                "out, or say 'others'"
            )
        return replace(self, fisher_over="others")


@dataclass(frozen=True)
class Settings(Training):
    """The same with nothing left open: what a run is made with, and the record beside its result.

    The values here are recommended whatever the method and adapter; ``recommended`` has those that depend on them.
    """

    protocol: Protocol = "recommended"
    epochs: int = 4
    batch_size: int = 32
    lr: float = 3e-3
    warmup: float = 1.0
    weight_decay: float = 0.0
    precision: Precision = "fp32"
    accumulate: int = 1
    grad_checkpointing: bool = False
    compile: bool = False
    step: Step = "proximal"
    normalize_fisher: bool = True
    lambda_h: float = 0.025
    lambda_0: float = 0.001
    center_features: bool = True
    drift_penalty: float = 0.0
    iel_start: Literal["mean", "zero"] = "mean"
    pretune_epochs: int = 3
    pretune_lr: float = 0.01
    fisher: Estimator = "rademacher"
    probes: int = 1
    fisher_over: Literal["earlier", "others"] = "earlier"
    curvature: CurvatureKind = "diagonal"
    curvature_of: CurvatureOf = "tasks"
    curvature_images: int = 256
    mean_scale: float = 1.0
    class_balanced: bool = False
    seed: int = 0

    @property
    def as_the_paper(self) -> bool:
        """The paper protocol."""
        return self.protocol == "paper"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Settings":
        """The inverse of ``record``; what else the record says is left out, and what came later may be missing."""
        older = {"precision": DTYPES[record["dtype"]]} if "dtype" in record else {}
        record = {**LATER, **older, **record}
        return cls(**{field.name: record[field.name] for field in fields(cls)})
