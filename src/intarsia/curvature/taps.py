"""Taps on layers: their inputs and the gradients of their outputs, during backward passes from the logits.

Convention: activations a are (B, N, I), output gradients g are (B, N, O), N tokens; an image's weight gradient is
g^T a (O, I). A weight may be used by several calls in one forward, of one layer or of layers that share it: its
gradient is the sum over all of them, so that their tokens stand in one row, (B, N_1 + N_2 + .., I).
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.calls import LinearCalls
from intarsia.curvature.estimators import Estimator, feature_vectors, logit_vectors
from intarsia.numerics import Precision, autocast, products_in

Receive = Callable[[str, Tensor, Tensor], None]
"""Weight name, activations a (B, N, I), output gradients g (B, N, O)."""


class Taps(LinearCalls):
    """Context manager that hands (a, g) of every trainable weight to a function, once per backward pass.

    The weights are frozen, so the first tapped output is made a leaf that requires a gradient: nothing before it is
    differentiated. A weight is handed on as soon as all of its calls have their gradient, so that few are held.

    Args:
        backbone: theta0; that its target layers keep images apart was seen as it was made.
        images: B of the batches.
        receive: called for every backward pass and every trainable weight.
    """

    def __init__(self, backbone: Backbone, images: int, receive: Receive) -> None:
        super().__init__(backbone.weights, self._tap)
        self._images = images
        self._receive = receive
        self._calls: Counter[str] = Counter()
        self._waiting: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def flush(self) -> None:
        """Hand on what is left after a backward pass: weights of which some calls do not reach the logits."""
        for name in tuple(self._waiting):
            self._hand_on(name)

    def _tap(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        a = self._tokens(x.detach())
        self._calls[name] += 1
        output.register_hook(lambda g: self._gradient(name, a, self._tokens(g)))
        return output

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, ..., K) -> (B, N, K): one vector per image has N = 1; windows of an image (B W, n, K), N = W n."""
        return x.reshape(self._images, -1, x.shape[-1])

    def _gradient(self, name: str, a: Tensor, g: Tensor) -> None:
        self._waiting.setdefault(name, []).append((a, g))
        if len(self._waiting[name]) == self._calls[name]:
            self._hand_on(name)

    def _hand_on(self, name: str) -> None:
        calls = self._waiting.pop(name)
        a, g = calls[0] if len(calls) == 1 else (torch.cat(of_calls, 1) for of_calls in zip(*calls, strict=True))
        self._receive(name, a, g)


def pull_back(
    backbone: Backbone,
    head: Callable[[Tensor], Tensor] | None,
    images: Tensor,
    receive: Receive,
    *,
    estimator: Estimator,
    probes: int,
    generator: torch.Generator | None,
    precision: Precision = "fp32",
) -> None:
    """Push an estimator's vectors back through the network, and hand (a, g) of every trainable weight on.

    Args:
        backbone: theta0.
        head: features (B, D) -> logits (B, C), to push from; from the features themselves if None.
        images: normalised (B, channels, size, size), on the backbone's device.
        receive: called for every vector and every trainable weight.
        estimator: which vectors (see ``estimators``).
        probes: draws of the random ones.
        generator: their randomness, on the CPU.
        precision: of the products up to the features and back.
    """
    device = images.device
    with Taps(backbone, len(images), receive) as taps, products_in(precision, device), torch.enable_grad():
        with autocast(precision, device):
            features = backbone.model(images)
        features = features.float() if features.dtype == torch.bfloat16 else features
        outputs, draw = (features, feature_vectors) if head is None else (head(features), logit_vectors)
        vectors = draw(outputs.detach(), estimator, probes, generator)
        for k, v in enumerate(vectors):
            outputs.backward(v, retain_graph=k + 1 < len(vectors))
            taps.flush()
