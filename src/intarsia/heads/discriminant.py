"""Fisher's linear discriminant: heads in closed form."""

from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.shrinkage import Covariance
from intarsia.heads.head import Head

RIDGE = 0.1
"""Share of every feature's variance within classes added to it: initial heads lean less where features hardly vary."""
SPREAD = 1.0
"""Root mean square of the logits of initial heads, their mean over the classes taken away."""


def discriminant(classes: Gaussians) -> Head:
    """The heads of classes in closed form: the log posterior of Gaussians with one covariance within classes.

    W_c = S^-1 (m_c - m), b_c = -1/2 (m_c - m)^T S^-1 (m_c + m), m the mean of the classes' means m_c: Fisher's linear
    discriminant, all classes equally likely. Calibrated across tasks as it stands: nothing is left to align.
    It leans on directions in which features hardly vary, so that a network fine-tuned under it gets nowhere; as the
    last layer of a network that was fine-tuned under initial heads it is the better classifier.

    Args:
        classes: their order is that of the rows.
    """
    return _discriminant(classes, classes.covariance(), 0.0)


def initial_heads(classes: Gaussians) -> Head:
    """Calibrated initial classifier: the discriminant with a ridge, as large as fine-tuning needs it.

    Of its rows' directions the discriminant knows most, of their length nothing: a head as sure of few images as a
    posterior leaves fine-tuning no loss to learn from. Its logits, less their mean over the classes, have a root mean
    square of ``SPREAD`` on the Gaussians; less where the classes are harder to tell apart than that.

    Args:
        classes: all that are seen, task by task; their order is that of the rows.
    """
    covariance = classes.covariance()
    head = _discriminant(classes, covariance, RIDGE)
    size = min(1.0, SPREAD / max(_spread(head, classes, covariance), 1e-30))
    return Head(head.weight * size, head.bias * size)


def _discriminant(classes: Gaussians, covariance: Covariance, ridge: float) -> Head:
    """See ``discriminant``; ``ridge`` is the share of every feature's variance within classes that is added to it."""
    middle = classes.centres.mean(0)
    away = classes.centres - middle
    weight = covariance.solve(away.T, ridge).T
    bias = -0.5 * (weight * (classes.centres + middle)).sum(1)
    return Head(weight.float(), bias.float())


def _spread(head: Head, classes: Gaussians, covariance: Covariance) -> float:
    """Root mean square of the centered logits of features of the Gaussians, every class as likely: in closed form."""
    weight, bias = (t.double() - t.double().mean(0) for t in (head.weight, head.bias))
    between = (classes.centres @ weight.T + bias).square().mean()
    within = ((weight @ covariance.dense()) * weight).sum(1).mean()
    return float((between + within).sqrt())
