"""Recommended settings for every method and adapter, the paper's, and what a user left open filled in from them."""

from dataclasses import fields, replace

from intarsia.training.settings import Settings, Training

RECOMMENDED: dict[tuple[str, str], tuple[float, float, int]] = {
    ("ita", "lora"): (3e-3, 0.1, 4),
    ("iel", "lora"): (2e-3, 1.0, 4),
    ("ita", "full"): (5e-4, 0.1, 6),
    ("iel", "full"): (5e-4, 1.0, 4),
    ("ita", "ia3"): (2e-2, 0.1, 6),
    ("iel", "ia3"): (2e-2, 1.0, 4),
}
"""Learning rate, strength on the normalized Fisher, and epochs (chosen as docs/results.md says)."""


def recommended(method: str, adapter: str) -> tuple[float, Settings]:
    """Recommended strength and settings for a method and adapter; for another method than ITA or IEL, ITA's."""
    lr, strength, epochs = RECOMMENDED["iel" if method == "iel" else "ita", adapter]
    return strength, Settings(epochs=epochs, lr=lr)


def paper(method: str) -> tuple[float, Settings]:
    """The paper's strength and settings, as it gives them for CIFAR-100; its steps, and no addition of ours.

    One thing differs: heads are aligned by 20 passes over whitened features in place of 10 + 5 t over plain ones.
    """
    settings = Settings(
        epochs=20,
        batch_size=128,
        lr=3e-4,
        warmup=0.0,
        step="decoupled",
        unit_fisher=False,
        centred=False,
        drift_pull=0.0,
        iel_start="zero",
        alignment="sgd",
        alignment_epochs=20,
    )
    return (0.02, settings) if method == "ita" else (20.0, replace(settings, lambda_h=0.1))


def resolved(training: Training | None, base: Settings) -> Settings:
    """A user's settings, what is left open in them as in ``base``."""
    given = {f.name: getattr(training, f.name) for f in fields(training)} if training is not None else {}
    return replace(base, **{name: value for name, value in given.items() if value is not None})
