"""How each tracker is told, by its own library: its name in ``TRACKERS``.

A library is imported when its writer is made. Each writes in threads of its own, so that nothing waits for it, and
where its own variables say (TRACKIO_DIR, MLFLOW_TRACKING_URI, WANDB_MODE); TensorBoard's files lie beside the pool.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

Value = str | int | float | bool
Axis = Literal["epoch", "task"]
PROJECT = "intarsia"


class Writer(Protocol):
    """One run in one tracker; whatever its library raises may come of any call."""

    def parameters(self, values: Mapping[str, Value]) -> None:
        """What the run is made with, once."""
        ...

    def scalars(self, values: Mapping[str, float], axis: Axis, step: int) -> None:
        """Measures by name, at a step of an axis."""
        ...

    def close(self, *, failed: bool) -> None:
        """Nothing comes any more."""
        ...


class TensorBoard:
    """Event files in a folder beside the pool's: ``<pool>-tensorboard``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  optional

        self._writer = SummaryWriter(str(folder.with_name(f"{folder.name}-tensorboard")))

    def parameters(self, values: Mapping[str, Value]) -> None:
        """As hyper-parameters."""
        self._writer.add_hparams(dict(values), {}, run_name=".")

    def scalars(self, values: Mapping[str, float], axis: Axis, step: int) -> None:
        """Each with its step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Write what is held back."""
        self._writer.close()


class Trackio:
    """A run of trackio; without its monitors of the machine."""

    def __init__(self, folder: Path) -> None:
        self._library: Any = import_module("trackio")
        self._run = self._library.init(PROJECT, folder.name, embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def parameters(self, values: Mapping[str, Value]) -> None:
        """In the run's configuration, which goes with what is logged first."""
        self._run.config.update(values)

    def scalars(self, values: Mapping[str, float], axis: Axis, step: int) -> None:
        """All at one step."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Wait for what is on its way."""
        self._library.finish()


class MLflow:
    """A run of MLflow, told without waiting."""

    def __init__(self, folder: Path) -> None:
        self._library: Any = import_module("mlflow")
        self._library.set_experiment(PROJECT)
        self._library.start_run(run_name=folder.name)

    def parameters(self, values: Mapping[str, Value]) -> None:
        """As parameters."""
        self._library.log_params(dict(values), synchronous=False)

    def scalars(self, values: Mapping[str, float], axis: Axis, step: int) -> None:
        """Each with its step."""
        self._library.log_metrics(dict(values), step=step, synchronous=False)

    def close(self, *, failed: bool) -> None:
        """Wait for what is on its way."""
        self._library.flush_async_logging()
        self._library.end_run("FAILED" if failed else "FINISHED")


class WandB:
    """A run of Weights & Biases; it does not read what is printed."""

    def __init__(self, folder: Path) -> None:
        wandb: Any = import_module("wandb")
        settings = wandb.Settings(console="off", silent=True)
        self._run = wandb.init(project=PROJECT, name=folder.name, settings=settings)
        for name, axis in (("loss/*", "epoch"), ("*", "task")):
            self._run.define_metric(name, step_metric=axis)

    def parameters(self, values: Mapping[str, Value]) -> None:
        """In the run's configuration."""
        self._run.config.update(dict(values))

    def scalars(self, values: Mapping[str, float], axis: Axis, step: int) -> None:
        """With its axis, as its own steps cannot go back."""
        self._run.log({**values, axis: step})

    def close(self, *, failed: bool) -> None:
        """Wait for what is on its way."""
        self._run.finish(exit_code=int(failed))


TRACKERS: Mapping[str, Callable[[Path], Writer]] = {
    "trackio": Trackio,
    "mlflow": MLflow,
    "wandb": WandB,
    "tensorboard": TensorBoard,
}
