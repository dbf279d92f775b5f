"""A figure on its way to a file, without a screen."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def picture(path: Path, **layout: Any) -> Iterator[tuple[Any, Any]]:
    """Figure and axes of ``plt.subplots(**layout)``; written to ``path`` at the end."""
    import matplotlib as mpl  # noqa: PLC0415  only where a picture is asked for

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(**layout)
    yield figure, axes
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
