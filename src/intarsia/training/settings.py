"""Settings: frozen dataclasses that are the command line's flags and the record beside each result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from intarsia.curvature.choices import Estimator
from intarsia.errors import InputError
from intarsia.heads.choices import Alignment
from intarsia.regularizers.choices import Step


@dataclass(frozen=True)
class Training:
    """How one module is learned. A field that is None is as recommended for the method and adapter (``resolved``)."""

    epochs: int | None = None
    """Passes over a task's images."""
    batch_size: int | None = None
    """Images a step."""
    lr: float | None = None
    """AdamW's learning rate, cosine by epoch."""
    warmup: float | None = None
    """Epochs over which the learning rate first rises from zero, step by step."""
    weight_decay: float | None = None
    """AdamW's weight decay."""
    augment: bool | None = None
    """Vary the training images (the stream says how)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the products in a training step; bfloat16 is faster where the processor has units for it."""
    compile: bool | None = None
    """Compile the network that is trained, anew for every task: a minute each, for steps a little faster; needs a C++
    compiler on a CPU."""
    step: Step | None = None
    """The regularizer's step: implicit (proximal), explicit beside the optimizer (decoupled), in the loss (coupled)."""
    normalize_fisher: bool | None = None
    """Divide the Fisher by its mean over the trainable weights, so that one strength travels between backbones."""
    lambda_h: float | None = None
    """Pull of the head's Fisher towards its reference head."""
    lambda_0: float | None = None
    """Plain pull of the head towards its reference head."""
    center_features: bool | None = None
    """Put the mean feature of every batch back to where it was at theta0 before the head sees it: a drift that all
    images share is undone in the composed model too, and left in, the first steps would chase nothing else."""
    drift_penalty: float | None = None
    """Weight of that drift in the loss, squared, over the variance of the features: small drifts compose linearly."""
    iel_start: Literal["mean", "zero"] | None = None
    """Where IEL's task vector begins: at the mean of those before it, where IEL's own regularizer is least and the
    composed model stays what it was, or at zero."""
    head_fisher_over: Literal["seen", "earlier"] | None = None
    """Classes whose statistics the head's Fisher is taken on: all seen, or those of earlier tasks only."""
    head_start: Literal["reference", "random"] | None = None
    """Where the head's fine-tuning begins."""
    pretune_epochs: int | None = None
    """Passes over the features when a new head is pre-tuned."""
    pretune_lr: float | None = None
    """SGD's learning rate for pre-tuning and alignment."""
    alignment: Alignment | None = None
    """How the heads of all classes seen are aligned: by SGD (sgd), or so only up to 100 classes, and beyond in closed
    form (auto), which costs the same for any number."""
    alignment_epochs: int | None = None
    """Passes of that SGD over the drawn features."""
    components: int | None = None
    """Gaussians a class in the class statistics."""
    fisher: Estimator | None = None
    """Fisher estimator."""
    probes: int | None = None
    """Draws a batch of the random Fisher estimators."""
    fisher_over: Literal["earlier", "others"] | None = None
    """Tasks whose Fisher and heads a module knows: those before it, or all others (every task is prepared first)."""
    seed: int | None = None
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "probes", "components", "alignment_epochs"):
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
        if self.center_features and self.batch_size == 1:
            raise InputError(
                "batch-size 1 with feature centering: the mean of one image is the image; use 2, or leave it out "
                "(center_features=False, --training.no-center-features)"
            )


@dataclass(frozen=True)
class Settings(Training):
    """The same with nothing left open: what a run is made with, and the record beside its result.

    The values here are recommended whatever the method and adapter; ``recommended`` has those that depend on them.
    """

    epochs: int = 4
    batch_size: int = 32
    lr: float = 3e-3
    warmup: float = 1.0
    weight_decay: float = 0.0
    augment: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    step: Step = "proximal"
    normalize_fisher: bool = True
    lambda_h: float = 0.025
    lambda_0: float = 0.001
    center_features: bool = True
    drift_penalty: float = 1.0
    iel_start: Literal["mean", "zero"] = "mean"
    head_fisher_over: Literal["seen", "earlier"] = "seen"
    head_start: Literal["reference", "random"] = "reference"
    pretune_epochs: int = 3
    pretune_lr: float = 0.01
    alignment: Alignment = "auto"
    alignment_epochs: int = 5
    components: int = 5
    fisher: Estimator = "rademacher"
    probes: int = 1
    fisher_over: Literal["earlier", "others"] = "earlier"
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Settings":
        """The inverse of ``record``; what else the record says is left out."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})
