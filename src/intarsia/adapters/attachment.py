"""An adapter attached to a network: its adapted layers by weight name.

A weight may be used at several places, by one layer under two names or by layers that share it: all of them wear the
same update.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from intarsia.adapters.protocol import AdaptedLinear, Adapter
from intarsia.errors import InputError
from intarsia.task_vector import TaskVector


class Attachment:
    """The trainable side of a network while a module is learned; use as a context manager to take it off again.

    Args:
        model: the network; its target layers are replaced in place, their weights are shared and never written.
        targets: canonical weight name -> path of the ``nn.Linear`` inside ``model``.
        adapter: the parametrisation.
        generator: source of the random start.

    Example:
        >>> with Attachment(model, targets, LoRA(16), generator) as adapter:
        ...     optimizer = torch.optim.AdamW(adapter.parameters())
    """

    def __init__(
        self, model: nn.Module, targets: Mapping[str, str], adapter: Adapter, generator: torch.Generator
    ) -> None:
        self.adapter = adapter
        self.layers: dict[str, AdaptedLinear] = {}
        self._model = model
        self._plain: dict[str, nn.Linear] = {}
        self._adapted: list[AdaptedLinear] = []
        for name, path in targets.items():
            linear = model.get_submodule(path)
            if not isinstance(linear, nn.Linear):
                raise TypeError(f"{name}: {path} is a {type(linear).__name__}, expected nn.Linear")
            self.layers[name] = AdaptedLinear(name, linear, adapter, generator)
            self._attach(self.layers[name], sharing(model, path))

    def _attach(self, layer: AdaptedLinear, places: Mapping[str, nn.Linear]) -> None:
        """Replace the plain layers at all places of one weight."""
        adapted = {id(plain): layer if plain is layer.linear else layer.on(plain) for plain in places.values()}
        for path, plain in places.items():
            _replace(self._model, path, adapted[id(plain)])
        self._plain |= places
        self._adapted += adapted.values()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Put the plain layers back; the layers' parameters stay readable."""
        for path, plain in self._plain.items():
            _replace(self._model, path, plain)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The network is theta0 again while the block runs."""
        for layer in self._adapted:
            layer.enabled = False
        try:
            yield
        finally:
            for layer in self._adapted:
                layer.enabled = True

    def compose(self, total: Mapping[str, Tensor] | None, divisor: float) -> None:
        """Train inside theta0 + (total + tau) / divisor from now on; ``(None, 1)`` is a module alone.

        Raises:
            InputError: the adapter cannot hold such a total; the message names the weight.
        """
        for layer in self._adapted:
            try:
                layer.compose(None if total is None else total[layer.name], divisor)
            except InputError as error:
                raise InputError(f"{layer.name}: {error}") from error

    def start_at(self, vector: Mapping[str, Tensor]) -> None:
        """Put the task vector to ``vector``, or as near to it as the adapter comes."""
        for name, layer in self.layers.items():
            layer.start_(vector[name])

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every trainable tensor."""
        for layer in self.layers.values():
            yield from layer.adapter_parameters.values()

    def vector(self) -> TaskVector:
        """The task vector as it stands, dense and detached."""
        return TaskVector({name: layer.delta().detach().clone() for name, layer in self.layers.items()})

    def state(self) -> dict[str, Tensor]:
        """``<weight name>.<parameter>`` -> tensor on the CPU: what a module keeps of its vector."""
        return {
            f"{name}.{parameter}": value.detach().cpu().clone()
            for name, layer in self.layers.items()
            for parameter, value in layer.adapter_parameters.items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``.

        Raises:
            KeyError: a parameter is missing.
        """
        for name, layer in self.layers.items():
            for parameter, value in layer.adapter_parameters.items():
                value.copy_(state[f"{name}.{parameter}"])


def sharing(model: nn.Module, path: str) -> dict[str, nn.Linear]:
    """Path -> linear layer, of all that use the very weight of the one at ``path``."""
    weight = model.get_submodule(path).get_parameter("weight")
    layers = model.named_modules(remove_duplicate=False)
    return {other: layer for other, layer in layers if isinstance(layer, nn.Linear) and layer.weight is weight}


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
