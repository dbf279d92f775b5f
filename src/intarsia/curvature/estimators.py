"""Which vectors to push back from the logits, so that their squared pull-backs sum to the Fisher.

As d log p_c / dz = e_c - p at the logits z, it is enough to push chosen vectors v back from the logits:

    exact        the C vectors sqrt(p_c) (e_c - p)                          C backward passes
    rademacher   v = sum_c s_c sqrt(p_c) (e_c - p), s_c = +-1 at random     unbiased, one pass per probe
    mc           c ~ p, v = e_c - p                                         unbiased, more variance

Pushed back from features, whose curvature is the Gauss-Newton matrix J^T J, it is enough that E v v^T = I:

    exact        the D unit vectors                                         D backward passes
    rademacher   random signs                                               unbiased, one pass per probe
    mc           v ~ N(0, I)                                                unbiased, more variance
"""

from functools import cache

import torch
from torch import Tensor

from intarsia.curvature.choices import Estimator


def share_of(estimator: Estimator, probes: int) -> float:
    """What the squares of one vector count.

    Raises:
        ValueError: probes below 1.
    """
    if probes < 1:
        raise ValueError(f"probes = {probes}: expected 1 or more")
    return 1.0 if estimator == "exact" else 1.0 / probes


def logit_vectors(logits: Tensor, estimator: Estimator, probes: int, generator: torch.Generator | None) -> list[Tensor]:
    """The vectors (B, C) to push back from logits (B, C); their squared pull-backs sum to F (times probes)."""
    p = torch.softmax(logits, 1)
    if estimator == "exact":
        eye = torch.eye(logits.shape[1], dtype=p.dtype, device=p.device)
        return [p[:, c, None].sqrt() * (eye[c] - p) for c in range(logits.shape[1])]
    return [_random_vector(p, estimator, generator) for _ in range(probes)]


def feature_vectors(
    features: Tensor, estimator: Estimator, probes: int, generator: torch.Generator | None
) -> list[Tensor]:
    """The vectors (B, D) to push back from features (B, D); their pull-backs' outer products sum to J^T J."""
    images, width = features.shape
    if estimator == "exact":
        return [one.expand(images, width) for one in torch.eye(width, dtype=features.dtype, device=features.device)]
    if estimator == "mc":
        return [torch.randn(images, width, generator=generator).to(features) for _ in range(probes)]
    return [_signs(images, width, generator).to(features) for _ in range(probes)]


def _random_vector(p: Tensor, estimator: Estimator, generator: torch.Generator | None) -> Tensor:
    if estimator == "mc":
        drawn = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
        return torch.zeros_like(p).scatter_(1, drawn, 1.0) - p
    images, classes = p.shape
    weighted = _signs(images, classes, generator).to(p, non_blocking=True) * p.sqrt()
    return weighted - weighted.sum(1, keepdim=True) * p


def _signs(images: int, classes: int, generator: torch.Generator | None) -> Tensor:
    """Random signs (B, C): independent within an image, balanced between images.

    An image's signs are a row of a Hadamard matrix, its columns flipped at random; rows are used up in random order
    before one comes again. What the images of a cycle have in common in the product of two classes' gradients then
    cancels, instead of averaging out: half the error of signs that are drawn one by one.
    """
    matrix = _hadamard(1 << (classes - 1).bit_length())
    cycles = [torch.randperm(len(matrix), generator=generator) for _ in range(-(-images // len(matrix)))]
    flips = (torch.randint(0, 2, (classes,), generator=generator) * 2 - 1).to(matrix.dtype)
    return matrix[torch.cat(cycles)[:images], :classes] * flips


@cache
def _hadamard(n: int) -> Tensor:
    """Sylvester's matrix (n, n) of +-1 with orthogonal rows; n is a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.int8)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
