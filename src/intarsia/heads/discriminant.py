"""Fisher's linear discriminant: heads in closed form."""

from intarsia.class_stats.gaussians import Gaussians
from intarsia.heads.head import Head

RIDGE = 0.1
"""Share of every feature's variance within classes added to it: initial heads lean less where features hardly vary."""
TEMPERATURE = 3.0
"""Of initial heads: what the discriminant's logits are divided by, chosen on validation images."""


def discriminant(classes: Gaussians, *, ridge: float = 0.0) -> Head:
    """The heads of classes in closed form: the log posterior of Gaussians with one covariance within classes.

    W_c = S^-1 (m_c - m), b_c = -1/2 (m_c - m)^T S^-1 (m_c + m), m the mean of the classes' means m_c: Fisher's linear
    discriminant, all classes equally likely. Calibrated across tasks as it stands: nothing is left to align.
    It leans on directions in which features hardly vary, so that a network fine-tuned under it gets nowhere; as the
    last layer of a network that was fine-tuned under initial heads it is the better classifier.

    Args:
        classes: their order is that of the rows.
        ridge: share of every feature's variance within classes that is added to it.
    """
    middle = classes.centres.mean(0)
    away = classes.centres - middle
    weight = classes.covariance().solve(away.T, ridge).T
    bias = -0.5 * (weight * (classes.centres + middle)).sum(1)
    return Head(weight.float(), bias.float())


def initial_heads(classes: Gaussians) -> Head:
    """Calibrated initial classifier: the discriminant with a ridge, at a temperature.

    A head as sure of few images as its posterior leaves fine-tuning little loss to learn from: task vectors stay short.
    The softer it is the longer they get, and the less well they compose.

    Args:
        classes: all that are seen, task by task; their order is that of the rows.
    """
    sure = discriminant(classes, ridge=RIDGE)
    return Head(sure.weight / TEMPERATURE, sure.bias / TEMPERATURE)
