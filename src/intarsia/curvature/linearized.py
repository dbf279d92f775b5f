"""The network linearised at theta0: features, and their derivative along a task vector."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from intarsia.backbones.backbone import Backbone


@dataclass(frozen=True)
class Tangent:
    """The features of a network and their derivative along a task vector, at theta0."""

    backbone: Backbone

    def __call__(self, images: Tensor, tau: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Phi (B, D) and J tau (B, D) of normalised images (B, C, H, W); differentiable in tau.

        Args:
            images: on the backbone's device.
            tau: by weight name, (O, I) each.
        """
        theta0 = {f"{path}.weight": self.backbone.trainable[name] for name, path in self.backbone.targets.items()}
        along = {f"{path}.weight": tau[name] for name, path in self.backbone.targets.items()}

        def phi(weights: dict[str, Tensor]) -> Tensor:
            return functional_call(self.backbone.model, weights, (images,))

        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward-mode derivative
            features, derivative, *_ = jvp(phi, (theta0,), (along,))
        return features, derivative
