"""Composable modules for pre-trained vision transformers: learn classes task by task, compose, specialize, unlearn."""

from intarsia.adapters.full import Full
from intarsia.adapters.ia3 import IA3
from intarsia.adapters.lora import LoRA
from intarsia.backbones.backbone import Backbone
from intarsia.curvature.fisher import diagonal_fisher
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.metrics import evaluate
from intarsia.evaluation.theorem import diagnose
from intarsia.merging.model import ComposedModel
from intarsia.pool import Pool
from intarsia.regularizers.iel import IEL
from intarsia.regularizers.ita import ITA
from intarsia.task_vector import TaskVector
from intarsia.training.learner import learn
from intarsia.training.settings import Training

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
