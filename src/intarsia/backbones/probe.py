"""One small forward and backward pass, as a backbone is made: what its target layers do, and what its features are."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from intarsia.backbones.calls import LinearCalls
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.errors import InputError, first_line

IMAGES = 2


def acting(
    model: nn.Module, name: str, weights: Mapping[str, Tensor], preprocessing: Preprocessing
) -> tuple[list[str], int]:
    """The weights that act on the features, and how wide these are.

    Args:
        model: the network, frozen, in evaluation mode.
        name: of the backbone, for messages.
        weights: of its target layers by name.
        preprocessing: how its images are prepared.

    Returns:
        Names of the weights whose linear maps reach the features with a gradient above zero; D of the features.

    Raises:
        InputError: the network does not take such images, its features are not (B, D), or a weight is used in a way
            that a Fisher per image cannot follow.
    """
    device, dtype = next(iter(weights.values())).device, next(iter(weights.values())).dtype
    shape = (IMAGES, preprocessing.channels, preprocessing.size, preprocessing.size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    images = preprocessing.normalize(images).to(dtype)
    inputs: dict[str, list[Tensor]] = {}
    seen = set[str]()

    def see(weight: str, x: Tensor, y: Tensor) -> Tensor:
        y = y if y.requires_grad else y.detach().requires_grad_()
        inputs.setdefault(weight, []).append(x.detach())
        y.register_hook(lambda g: seen.add(weight) if bool(g.any()) and bool(x.detach().any()) else None)
        return y

    with torch.enable_grad(), LinearCalls(weights, see):
        features = _features(model, name, images)
    slopes = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features)
    if features.requires_grad:
        features.backward(slopes)
    _refuse_unfollowed(model, name, images, {w: weight for w, weight in weights.items() if w not in inputs})
    _refuse_mixed(model, name, images, weights, inputs)
    return [w for w in weights if w in seen], features.shape[1]


def _features(model: nn.Module, name: str, images: Tensor) -> Tensor:
    try:
        found = model(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise InputError(
            f"backbone {name} does not take images of shape {tuple(images.shape)} ({first_line(error)}): expected a "
            "network that does; look at its preprocessing (size, channels), or load it with another --image-size"
        ) from error
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(images):
        return found
    what = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    tokens = isinstance(found, Tensor) and found.ndim == 3
    remedy = "take x[:, 0] or x.mean(1)" if tokens else "take x.mean((2, 3))" if what.count(",") == 3 else "take them"
    raise InputError(
        f"backbone {name}: its features are {what} for {len(images)} images, expected a tensor (B, D), one row per "
        f"image: wrap the network in a module that returns them ({remedy}), or name them with --features"
    )


def _refuse_unfollowed(model: nn.Module, name: str, images: Tensor, uncalled: Mapping[str, Tensor]) -> None:
    """Of weights that no linear map used, refuse those that act on the features all the same."""
    if not uncalled:
        return
    parameters = [weight.requires_grad_(True) for weight in uncalled.values()]
    try:
        with torch.enable_grad():
            end = model(images).square().sum()
            gradients = torch.autograd.grad(end, parameters, allow_unused=True) if end.requires_grad else []
    finally:
        for weight in parameters:
            weight.requires_grad_(False)
    odd = [w for w, g in zip(uncalled, gradients, strict=False) if g is not None]
    if odd:
        raise InputError(
            f"backbone {name}: the network reads the weights of {_some(odd)} itself, other than in a linear map: what "
            "they do cannot be followed. Name other targets, for example --network.targets mlp"
        )


def _refuse_mixed(
    model: nn.Module, name: str, images: Tensor, weights: Mapping[str, Tensor], inputs: Mapping[str, list[Tensor]]
) -> None:
    """Where a layer sees something else than one row per image (windows, say), look whether images stay apart."""
    if all(len(x) == IMAGES for calls in inputs.values() for x in calls):
        return
    alone: dict[str, list[Tensor]] = {}

    def see(weight: str, x: Tensor, y: Tensor) -> Tensor:
        alone.setdefault(weight, []).append(x.detach())
        return y

    with torch.no_grad(), LinearCalls(weights, see):
        model(images[:1])
    mixed = [w for w in inputs if not _apart(inputs[w], alone.get(w, []))]
    if mixed:
        raise InputError(
            f"backbone {name}: {_some(mixed)} sees inputs {tuple(inputs[mixed[0]][0].shape)} for {IMAGES} images, in "
            "which the images do not lie one after the other: a Fisher is squared per image, and cannot be. Name "
            "targets that see whole images, or build the network batch-first"
        )


def _apart(together: list[Tensor], alone: list[Tensor]) -> bool:
    """The first image's rows among both images' are those that it has alone, and come first."""
    if len(together) != len(alone):
        return False
    for both, one in zip(together, alone, strict=True):
        if len(both) != IMAGES * len(one):
            return False
        if not torch.allclose(both[: len(one)], one, rtol=1e-3, atol=1e-4 * float(one.abs().max()) + 1e-12):
            return False
    return True


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
