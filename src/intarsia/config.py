"""Settings: frozen dataclasses that are the command line's flags and the record beside each result."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from intarsia.adapters import IA3, Adapter, Full, LoRA
from intarsia.errors import InputError
from intarsia.fisher import Estimator
from intarsia.heads import Alignment
from intarsia.regularizers import IEL, ITA, Step

AdapterKind = Literal["lora", "full", "ia3"]
Method = Literal["ita", "iel"]

RECOMMENDED: dict[tuple[str, str], tuple[float, float, int]] = {
    ("ita", "lora"): (3e-3, 0.1, 4),
    ("iel", "lora"): (2e-3, 1.0, 4),
    ("ita", "full"): (5e-4, 0.1, 6),
    ("iel", "full"): (5e-4, 1.0, 4),
    ("ita", "ia3"): (2e-2, 0.1, 6),
    ("iel", "ia3"): (2e-2, 1.0, 4),
}
"""Learning rate, strength on the Fisher of unit mean, and epochs."""


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


def recommended(method: str, adapter: str) -> tuple[float, Training]:
    """The tool's own strength and training settings for a method and adapter, chosen as docs/results.md says."""
    lr, strength, epochs = RECOMMENDED[method, adapter]
    return strength, Training(epochs=epochs, batch_size=32, lr=lr, unit_fisher=True)


def paper(method: str) -> tuple[float, Training]:
    """The paper's strength and training settings, as it gives them for CIFAR-100; its steps, and no addition of ours.

    One thing differs: heads are aligned by 20 passes over whitened features in place of 10 + 5 t over plain ones.
    """
    training = Training(
        epochs=20,
        batch_size=128,
        lr=3e-4,
        warmup=0.0,
        step="decoupled",
        proximal_every=1,
        centred=False,
        drift_pull=0.0,
        iel_start="zero",
        alignment="sgd",
        alignment_epochs=20,
    )
    return (0.02, training) if method == "ita" else (20.0, replace(training, lambda_h=0.1))


def build_adapter(kind: str, rank: int = 16) -> Adapter:
    """The adapter called ``kind``; ``rank`` is LoRA's."""
    match kind:
        case "lora":
            return LoRA(rank)
        case "full":
            return Full()
        case "ia3":
            return IA3()
    raise InputError(f"unknown adapter {kind!r}: expected lora, full or ia3")


def adapter_record(adapter: Adapter) -> dict[str, Any]:
    """As JSON; ``build_adapter(**record)`` is the inverse."""
    return {"kind": adapter.kind, **({"rank": adapter.rank} if isinstance(adapter, LoRA) else {})}


def regularizer_record(regularizer: ITA | IEL) -> dict[str, Any]:
    """As JSON; ``build_regularizer(**record)`` is the inverse."""
    return {"method": regularizer.kind, "strength": regularizer.strength}


def build_regularizer(method: str, strength: float) -> ITA | IEL:
    """ITA(alpha=strength) or IEL(beta=strength)."""
    match method:
        case "ita":
            return ITA(strength)
        case "iel":
            return IEL(strength)
    raise InputError(f"unknown method {method!r}: expected ita or iel")
