"""Recommended settings, and the paper's."""

from dataclasses import replace

from intarsia.training.settings import Training

RECOMMENDED: dict[tuple[str, str], tuple[float, float, int]] = {
    ("ita", "lora"): (3e-3, 0.1, 4),
    ("iel", "lora"): (2e-3, 1.0, 4),
    ("ita", "full"): (5e-4, 0.1, 6),
    ("iel", "full"): (5e-4, 1.0, 4),
    ("ita", "ia3"): (2e-2, 0.1, 6),
    ("iel", "ia3"): (2e-2, 1.0, 4),
}
"""Learning rate, strength on the Fisher of unit mean, and epochs."""


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
