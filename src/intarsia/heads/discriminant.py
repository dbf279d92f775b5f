"""Discriminants: heads in closed form."""

import torch

from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.shrinkage import Covariance
from intarsia.heads.head import Head
from intarsia.numerics import check_finite

RIDGE = 0.1
"""Share of every feature's variance within classes added to it: initial heads lean less where features hardly vary."""
TEMPERATURE = 3.0
"""Of initial heads: what the discriminant's logits are divided by, chosen on validation images."""


OWN = 0.05
"""How much of its own covariance is added to that of all classes, chosen on held-out images of all streams."""


def discriminant(classes: Gaussians) -> Head:
    """The heads of classes in closed form: a class is as likely as its Mahalanobis distance is small.

    Its covariance is that of all classes and a part of its own, S_c = S + ``OWN`` F_c^T F_c (regularized discriminant
    analysis, Friedman 1989; on features of a frozen network FeCAM, arXiv 2309.14062). With the factors
    G_c = (1 / OWN + W_c W_c^T)^-1/2 W_c S^-1/2, W_c = F_c S^-1/2 (Woodbury), without what all classes have in common:

    -1/2 (f - m_c)^T S_c^-1 (f - m_c) = linear discriminant + 1/2 |G_c (f - m_c)|^2

    From the squares tr(G_c S G_c^T) is taken off, what they are on average over features of covariance S around m_c. A
    class of few images has short factors: without this it would seldom be answered beside classes of many.

    Args:
        classes: their order is that of the rows. If they have no factors, the linear discriminant.
    """
    within = classes.covariance()
    head = _linear(classes, within)
    if classes.factors is None:
        return head
    to_white = within.whitening().to(classes.factors)
    white = classes.factors @ to_white
    check_finite(white, "factors of the classes' own covariances")
    inner = white @ white.mT
    inner.diagonal(dim1=-2, dim2=-1).add_(1 / OWN)
    one = torch.eye(len(inner[0])).to(inner)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), one, upper=False) @ white
    expected, factors = white.square().sum((1, 2)), white @ to_white.T
    offsets = torch.stack([own.double() @ m for own, m in zip(factors, classes.centres, strict=True)])
    return Head(head.weight, head.bias, factors.float(), offsets.float(), expected.float())


def linear_discriminant(classes: Gaussians, *, ridge: float = 0.0) -> Head:
    """The log posterior of Gaussians with one covariance within classes (Fisher's).

    W_c = S^-1 (m_c - m), b_c = -1/2 (m_c - m)^T S^-1 (m_c + m), m the mean of the classes' means m_c: Fisher's linear
    discriminant, all classes equally likely. Calibrated across tasks as it stands: nothing is left to align.
    It leans on directions in which features hardly vary, so that a network fine-tuned under it gets nowhere; as the
    last layer of a network that was fine-tuned under initial heads it is the better classifier.

    Args:
        classes: their order is that of the rows.
        ridge: share of every feature's variance within classes that is added to it.
    """
    return _linear(classes, classes.covariance(), ridge)


def _linear(classes: Gaussians, within: Covariance, ridge: float = 0.0) -> Head:
    middle = classes.centres.mean(0)
    away = classes.centres - middle
    weight = within.solve(away.T, ridge).T
    bias = -0.5 * (weight * (classes.centres + middle)).sum(1)
    return Head(weight.float(), bias.float())


def initial_heads(classes: Gaussians) -> Head:
    """Calibrated initial classifier: the discriminant with a ridge, at a temperature.

    A head as sure of few images as its posterior leaves fine-tuning little loss to learn from: task vectors stay short.
    The softer it is the longer they get, and the less well they compose.

    Args:
        classes: all that are seen, task by task; their order is that of the rows.
    """
    sure = linear_discriminant(classes, ridge=RIDGE)
    return Head(sure.weight / TEMPERATURE, sure.bias / TEMPERATURE)
