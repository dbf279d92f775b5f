"""Composable modules for pre-trained vision transformers: learn classes task by task, compose, specialize, unlearn."""

from intarsia.adapters import IA3, Full, LoRA
from intarsia.backbone import Backbone
from intarsia.composed_model import ComposedModel
from intarsia.config import Training
from intarsia.diagnostics import diagnose
from intarsia.errors import InputError
from intarsia.evaluation import evaluate
from intarsia.fisher import diagonal_fisher
from intarsia.learner import learn
from intarsia.pool import Pool
from intarsia.regularizers import IEL, ITA
from intarsia.stream import TaskStream
from intarsia.task_vector import TaskVector

__version__ = "0.1.0"

__all__ = [
    "IA3",
    "IEL",
    "ITA",
    "Backbone",
    "ComposedModel",
    "Full",
    "InputError",
    "LoRA",
    "Pool",
    "TaskStream",
    "TaskVector",
    "Training",
    "diagnose",
    "diagonal_fisher",
    "evaluate",
    "learn",
]
