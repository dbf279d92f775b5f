"""Task vectors merged into an ordinary network: theta_P = theta0 + sum_t w_t tau_t (docs/method.md section 6).

Terms are always added in the pool's order, so that a composition does not depend on the order in which it was asked
for.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.errors import DivergenceError, InputError
from intarsia.numerics import finite
from intarsia.store.module import Module


def merge(backbone: Backbone, adapter: Adapter, modules: Sequence[Module], weights: Mapping[str, float]) -> nn.Module:
    """A copy of theta0's network with sum_t w_t tau_t added to its trainable weights, one weight at a time.

    Args:
        backbone: theta0; it is not changed.
        adapter: what the modules' adapter parameters mean.
        modules: in the pool's order.
        weights: task -> coefficient; a task left out counts 0 and costs nothing.

    Raises:
        DivergenceError: a merged weight is not finite.
        InputError: a module has other weights than the backbone.
    """
    what = ", ".join(f"{task}={w:g}" for task, w in weights.items()) or "no module"
    return moved(backbone, combination(adapter, modules, weights), what)


def combination(
    adapter: Adapter, modules: Sequence[Module], weights: Mapping[str, float]
) -> Callable[[str, Tensor], Tensor]:
    """(weight name, theta0) -> sum_t w_t tau_t (O, I) of that weight; see ``merge``."""
    chosen = [m for m in modules if weights.get(m.card.task, 0.0)]
    coefficients = [weights[m.card.task] for m in chosen]

    def total(name: str, theta0: Tensor) -> Tensor:
        if not chosen:
            return torch.zeros_like(theta0)
        parameters = [m.adapter_parameters(name, theta0) for m in chosen]
        try:
            return adapter.combined(parameters, coefficients, theta0)
        except torch.OutOfMemoryError:
            raise
        except (KeyError, RuntimeError) as error:
            tasks = ", ".join(m.card.task for m in chosen)
            raise InputError(f"{name}: the parameters of {tasks} are not those of {adapter} ({error})") from error

    return total


def moved_by(backbone: Backbone, vector: Mapping[str, Tensor]) -> nn.Module:
    """A copy of theta0's network with a task vector added; see ``moved``."""
    return moved(backbone, lambda name, _: vector[name])


def moved(backbone: Backbone, by: Callable[[str, Tensor], Tensor], what: str = "an update") -> nn.Module:
    """A copy of theta0's network with ``by(name, theta0)`` added to each trainable weight (O, I).

    Args:
        backbone: theta0; it is not changed.
        by: the update.
        what: of what it is made, for the message of an error.

    Raises:
        DivergenceError: the sum is not finite.
        InputError: an update has another shape than its weight.
    """
    new: dict[int, nn.Parameter] = {}
    for name, weight in backbone.weights.items():
        theta0 = weight.detach()
        update = by(name, theta0)
        if update.shape != theta0.shape:
            raise InputError(f"{name}: an update {tuple(update.shape)} for a weight {tuple(theta0.shape)}")
        merged = (theta0 + update).to(theta0.dtype)
        if not finite(merged):
            raise DivergenceError(
                f"{name}: the weight merged of {what} is not finite, expected numbers that {theta0.dtype} holds: use "
                "smaller coefficients (--scale, --weights)"
            )
        new[id(weight)] = nn.Parameter(merged, requires_grad=False)
    return copy.deepcopy(backbone.model, new)  # which takes these in place of copies
