"""Recommended settings for every method and adapter, the paper's, and what a user left open filled in from them.

``resolve`` is the one place where that is done, for the command line and for Python.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from intarsia.curvature.choices import CurvatureKind
from intarsia.training.settings import Settings, Training

RECOMMENDED: dict[tuple[str, str], tuple[float, float, int]] = {
    ("ita", "lora"): (3e-3, 0.01, 4),
    ("iel", "lora"): (2e-3, 0.3, 4),
    ("ita", "full"): (5e-4, 0.1, 6),
    ("iel", "full"): (1e-3, 1.0, 4),
    ("ita", "ia3"): (2e-2, 0.1, 6),
    ("iel", "ia3"): (2e-2, 1.0, 4),
}
"""Learning rate, strength on the normalized Fisher, and epochs. Rate and epochs are of the built-in backbone, LoRA's
strengths of three streams and two backbones (chosen as docs/results.md says)."""

SIZES = {"lora": 0.796, "full": 0.0537}
"""Of the built-in backbone's weights (``Backbone.sizes``). For another one a recommended learning rate is as many times
as high as its weights are as large: AdamW's steps are as long as the learning rate, whatever they are added to."""

DRIFT_PENALTY = {"ita": 0.0, "iel": 1.0}
"""Weight of the feature-drift penalty."""

MEAN_SCALE = {"ita": 1.5, "iel": 1.0}
"""Factor of the mean of task vectors. IEL's modules are trained through it; of ITA's, which are trained alone, the mean
keeps less than each holds (chosen as docs/results.md says)."""

KRONECKER = 0.01
"""Strength under a Kronecker-factored curvature, normalized as the diagonal is, for ITA and IEL (chosen likewise)."""

RANK = 16
"""LoRA's."""


@dataclass(frozen=True)
class Hyperparameters:
    """What modules are learned with, nothing left open.

    Args:
        method: ``ita`` or ``iel``.
        adapter: ``lora``, ``full`` or ``ia3``.
        rank: of LoRA.
        strength: of the regularizer, alpha or beta.
        settings: everything else.
    """

    method: str
    adapter: str
    rank: int
    strength: float
    settings: Settings

    @classmethod
    def from_records(cls, settings: Mapping[str, Any], adapter: Mapping[str, Any]) -> "Hyperparameters":
        """What a pool or a checkpoint notes: its settings with method and strength, and its adapter."""
        return cls(
            settings["method"],
            adapter["kind"],
            adapter.get("rank", RANK),
            settings["strength"],
            Settings.from_record(settings),
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        own = {name: getattr(self, name) for name in ("method", "adapter", "rank", "strength")}
        return {**own, "training": self.settings.record()}


def recommended(
    method: str, adapter: str, sizes: Mapping[str, float] = SIZES, curvature: CurvatureKind = "diagonal"
) -> tuple[float, Settings]:
    """Recommended strength and settings for a method and adapter; for others than ours, those of ITA and LoRA.

    Args:
        method: ``ita`` or ``iel``.
        adapter: its kind.
        sizes: of the backbone's weights (``Backbone.sizes``); the built-in one's if not given.
        curvature: its kind, on which the strength depends.
    """
    ours = "iel" if method == "iel" else "ita"
    lr, strength, epochs = RECOMMENDED[ours, adapter if (ours, adapter) in RECOMMENDED else "lora"]
    return strength if curvature == "diagonal" else KRONECKER, Settings(
        epochs=epochs,
        lr=suited(lr, adapter, sizes),
        drift_penalty=DRIFT_PENALTY[ours],
        mean_scale=MEAN_SCALE[ours],
        curvature=curvature,
    )


def suited(lr: float, adapter: str, sizes: Mapping[str, float]) -> float:
    """A learning rate that was chosen on the built-in backbone, for weights of other sizes; two digits of it.

    (IA)³ multiplies weights: its rates are the same for all, as are those of adapters that ``SIZES`` does not name.
    Where all weights are zero, nothing is known.
    """
    return float(f"{lr * sizes[adapter] / SIZES[adapter]:.2g}") if sizes.get(adapter) and adapter in SIZES else lr


def paper(method: str, adapter: str = "lora") -> tuple[float, Settings]:
    """The paper's strength and settings, as it gives them for CIFAR-100; its steps, and no addition of ours.

    The regularizer is decoupled from the optimizer, but for full fine-tuning, where such a step explodes: there its
    gradient joins the loss's, as in the paper.

    Where the paper says nothing, the steps are those of its authors' code (aimagelab/mammoth, ``second_order``): class
    statistics are mixtures of 5 diagonal Gaussians; heads are pre-tuned and aligned by plain SGD, 10 + 5 (t - 1)
    epochs at task t; the head's fine-tuning starts at a truncated normal; LoRA's A starts within 1/sqrt(r I); rate
    and regularizer follow a quarter cosine; ITA's floor is (sum F + 1e-5) / N; IEL's head Fisher is over the classes
    of earlier tasks. Three things stay ours: features, statistics and Fisher see the images as they are (there:
    augmented); the Fisher is estimated without bias from random signs (there: exactly; ``fisher="exact"``); and the
    faults of that code are left out: Fishers weighted without their numbers of images, virtual batches off by one,
    a last batch that is dropped, a root of the variance taken for the variance.
    """
    settings = Settings(
        protocol="paper",
        epochs=20,
        batch_size=128,
        lr=3e-4,
        warmup=0.0,
        step="coupled" if adapter == "full" else "decoupled",
        normalize_fisher=False,
        center_features=False,
        drift_penalty=0.0,
        iel_start="zero",
    )
    return (0.02, settings) if method == "ita" else (20.0, replace(settings, lambda_h=0.1))


def resolve(
    training: Training | None = None,
    *,
    method: str | None = None,
    adapter: str | None = None,
    rank: int | None = None,
    strength: float | None = None,
    base: Hyperparameters | None = None,
    from_paper: bool = False,
    sizes: Mapping[str, float] = SIZES,
) -> Hyperparameters:
    """Fill in what a user left open (None).

    Args:
        training: the user's settings.
        method: the user's method; the base's if None, and ITA without a base.
        adapter: the user's adapter; the base's if None, and LoRA without a base.
        rank: of LoRA.
        strength: of the regularizer.
        base: what to begin with, of a pool, a run or a preset. It counts if it has the method and adapter
            asked for; for another pair only its seed is kept, and the rest is as recommended for that pair.
        from_paper: begin with the paper's settings, not with those recommended.
        sizes: of the backbone's weights: see ``recommended``.

    Returns:
        Method, adapter, strength and settings: the user's, then the base's, then those of the paper or recommended.

    Example:
        >>> resolve(method="iel").strength, resolve(method="iel", strength=2.0).strength
        (0.3, 2.0)
    """
    method, adapter = method or (base.method if base else "ita"), adapter or (base.adapter if base else "lora")
    if base is None or (base.method, base.adapter) != (method, adapter):
        kind = (training and training.curvature) or "diagonal"
        usual, settings = paper(method, adapter) if from_paper else recommended(method, adapter, sizes, kind)
        settings = settings if base is None else replace(settings, seed=base.settings.seed)
        base = Hyperparameters(method, adapter, RANK if base is None else base.rank, usual, settings)
    return Hyperparameters(
        method,
        adapter,
        base.rank if rank is None else rank,
        base.strength if strength is None else strength,
        resolved(training, base.settings),
    )


def resolved(training: Training | None, base: Settings) -> Settings:
    """A user's settings, what is left open in them as in ``base``."""
    given = {f.name: getattr(training, f.name) for f in fields(training)} if training is not None else {}
    return replace(base, **{name: value for name, value in given.items() if value is not None})
