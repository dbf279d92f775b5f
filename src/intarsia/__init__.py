"""Composable modules for pre-trained vision transformers: learn classes task by task, compose, specialize, unlearn.

Names are imported when they are first used: torch takes seconds to load, and much (``intarsia --help``) needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.adapters.full import Full
    from intarsia.adapters.ia3 import IA3
    from intarsia.adapters.lora import LoRA
    from intarsia.backbones.backbone import Backbone
    from intarsia.curvature.fisher import diagonal_fisher
    from intarsia.data.stream import TaskStream
    from intarsia.errors import InputError
    from intarsia.evaluation.metrics import evaluate
    from intarsia.evaluation.theorem import diagnose
    from intarsia.exchange.formats import export_model
    from intarsia.exchange.hub import pull, push
    from intarsia.exchange.peft.measured import import_peft
    from intarsia.exchange.peft.outward import export_peft
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
    "export_model",
    "export_peft",
    "import_peft",
    "learn",
    "pull",
    "push",
]

_WHERE = {
    "IA3": "adapters.ia3",
    "IEL": "regularizers.iel",
    "ITA": "regularizers.ita",
    "Backbone": "backbones.backbone",
    "ComposedModel": "merging.model",
    "Full": "adapters.full",
    "InputError": "errors",
    "LoRA": "adapters.lora",
    "Pool": "pool",
    "TaskStream": "data.stream",
    "TaskVector": "task_vector",
    "Training": "training.settings",
    "diagnose": "evaluation.theorem",
    "diagonal_fisher": "curvature.fisher",
    "evaluate": "evaluation.metrics",
    "export_model": "exchange.formats",
    "export_peft": "exchange.peft.outward",
    "import_peft": "exchange.peft.measured",
    "learn": "training.learner",
    "pull": "exchange.hub",
    "push": "exchange.hub",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"intarsia.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
