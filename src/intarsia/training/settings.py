"""Settings: frozen dataclasses that are the command line's flags and the record beside each result."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from intarsia.curvature.estimators import Estimator
from intarsia.errors import InputError
from intarsia.heads.alignment import Alignment
from intarsia.regularizers.protocol import Step


@dataclass(frozen=True)
class Training:
    """How one module is learned; the numbers of the paper, or our own where it has none."""

    epochs: int = 3
    """Passes over a task's images."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 3e-4
    """AdamW's learning rate, cosine by epoch."""
    warmup: float = 1.0
    """Epochs over which the learning rate first rises from zero, step by step."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    augment: bool = True
    """Vary the training images (the stream says how)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the products in a training step; bfloat16 is faster where the processor has units for it."""
    compile: bool = False
    """Compile the network that is trained, anew for every task: a minute each, for steps a little faster; needs a C++
    compiler on a CPU."""
    step: Step = "proximal"
    """The regularizer's step: implicit (proximal), explicit beside the optimizer (decoupled), in the loss (coupled)."""
    proximal_every: int = 8
    """Make one proximal step in place of so many, as large as they together: it is stable at any size, and dear."""
    unit_fisher: bool = False
    """Divide the Fisher by its mean over the tuned weights, so that one strength travels between backbones."""
    lambda_h: float = 0.025
    """Pull of the head's Fisher towards its reference head."""
    lambda_0: float = 0.001
    """Plain pull of the head towards its reference head."""
    centred: bool = True
    """Put the mean feature of every batch back to where it was at theta0 before the head sees it: a drift that all
    images share is undone in the composed model too, and left in, the first steps would chase nothing else."""
    drift_pull: float = 1.0
    """Weight of that drift in the loss, squared, over the variance of the features: small drifts compose linearly."""
    iel_start: Literal["mean", "zero"] = "mean"
    """Where IEL's task vector begins: at the mean of those before it, where IEL's own regularizer is least and the
    composed model stays what it was, or at zero."""
    head_fisher_over: Literal["seen", "earlier"] = "seen"
    """Classes whose statistics the head's Fisher is taken on: all seen, or those of earlier tasks only."""
    head_start: Literal["reference", "random"] = "reference"
    """Where the head's fine-tuning begins."""
    pretune_epochs: int = 3
    """Passes over the features when a new head is pre-tuned."""
    pretune_lr: float = 0.01
    """SGD's learning rate for pre-tuning and alignment."""
    alignment: Alignment = "auto"
    """How the heads of all classes seen are aligned: by SGD (sgd), or so only up to 100 classes, and beyond in closed
    form (auto), which costs the same for any number."""
    alignment_epochs: int = 5
    """Passes of that SGD over the drawn features."""
    components: int = 5
    """Gaussians a class in the class statistics."""
    fisher: Estimator = "rademacher"
    """Fisher estimator."""
    probes: int = 1
    """Draws a batch of the random Fisher estimators."""
    fisher_over: Literal["earlier", "others"] = "earlier"
    """Tasks whose Fisher and heads a module knows: those before it, or all others (every task is prepared first)."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "proximal_every", "probes", "components", "alignment_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        for name in (
            "lr",
            "warmup",
            "weight_decay",
            "drift_pull",
            "lambda_h",
            "lambda_0",
            "pretune_lr",
            "pretune_epochs",
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name.replace('_', '-')} {getattr(self, name)}: expected a finite number, 0 or more")

        if self.centred and self.batch_size == 1:
            raise InputError("batch-size 1 with --centred: the mean of one image is the image; use 2 or --no-centred")

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
