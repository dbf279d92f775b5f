"""Every use of some weights in a forward pass, whoever makes it: a linear layer, or a network that reads its weight.

timm's EVA, BEiT and Swin-V2 call ``F.linear(x, self.qkv.weight, bias)``: a hook on the layer would see nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

See = Callable[[str, Tensor, Tensor], Tensor]
"""Name of the weight, input (..., I), output (..., O) -> what takes the output's place."""


class LinearCalls(TorchFunctionMode):
    """Context manager that shows every call of ``F.linear`` with some weights to a function.

    Args:
        weights: by name; one that several layers share is one tensor.
        see: called after each call.
    """

    def __init__(self, weights: Mapping[str, Tensor], see: See) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self._see = see

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One call of torch."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is not F.linear:
            return output
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        name = self._names.get(id(weight))
        return output if name is None else self._see(name, args[0] if args else kwargs["input"], output)
