"""Taps on layers: their inputs and the gradients of their outputs, during a backward pass.

Convention: activations a are (B, N, I), output gradients g are (B, N, O), N tokens.
"""

from collections.abc import Callable

from torch import Tensor, nn

from intarsia.backbones.backbone import Backbone

Receive = Callable[[str, Tensor, Tensor], None]


class Taps:
    """Context manager that hands (input, output gradient) of every tuned layer to a function during backward passes.

    The weights are frozen, so the first tapped output is made a leaf that requires a gradient: nothing before it is
    differentiated.
    """

    def __init__(self, backbone: Backbone, receive: Receive) -> None:
        self._handles = [
            backbone.model.get_submodule(path).register_forward_hook(self._tap(name, receive))
            for name, path in backbone.targets.items()
        ]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @staticmethod
    def _tap(name: str, receive: Receive) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            a = args[0].detach()
            output.register_hook(lambda g: receive(name, _tokens(a), _tokens(g)))
            return output

        return hook


def _tokens(x: Tensor) -> Tensor:
    """(B, ..., K) -> (B, N, K); a layer that sees one vector an image has N = 1."""
    return x.reshape(len(x), -1, x.shape[-1])
