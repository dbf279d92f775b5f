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
    from intarsia.engines.ray import Ray
    from intarsia.errors import InputError
    from intarsia.evaluation.landscape import gap_path, loss_paths
    from intarsia.evaluation.metrics import evaluate, target_and_control
    from intarsia.evaluation.theorem import diagnose
    from intarsia.exchange.formats import export_model
    from intarsia.exchange.hub import pull, push
    from intarsia.exchange.peft.measured import import_peft
    from intarsia.exchange.peft.outward import export_peft
    from intarsia.merging.model import ComposedModel
    from intarsia.pool import Pool, merged
    from intarsia.regularizers.iel import IEL
    from intarsia.regularizers.ita import ITA
    from intarsia.report.page import report_comparison, report_pool
    from intarsia.store.rewrite import remove, rename
    from intarsia.store.verify import repair, verify
    from intarsia.studio.launch import open_studio
    from intarsia.study.bench import Bench
    from intarsia.study.choice import Source, builtin
    from intarsia.study.compare import compare
    from intarsia.study.estimate import estimate
    from intarsia.study.paper import PRESETS, preset, preset_of, verify_preset
    from intarsia.task_vector import TaskVector
    from intarsia.tracking.reports import report_to
    from intarsia.training.fine_tuning import Configuration
    from intarsia.training.learner import learn
    from intarsia.training.settings import Training

__version__ = "0.1.0"

__all__ = [
    "IA3",
    "IEL",
    "ITA",
    "PRESETS",
    "Backbone",
    "Bench",
    "ComposedModel",
    "Configuration",
    "Full",
    "InputError",
    "LoRA",
    "Pool",
    "Ray",
    "Source",
    "TaskStream",
    "TaskVector",
    "Training",
    "builtin",
    "compare",
    "diagnose",
    "diagonal_fisher",
    "estimate",
    "evaluate",
    "export_model",
    "export_peft",
    "gap_path",
    "import_peft",
    "learn",
    "loss_paths",
    "merged",
    "open_studio",
    "preset",
    "preset_of",
    "pull",
    "push",
    "remove",
    "rename",
    "repair",
    "report_comparison",
    "report_pool",
    "report_to",
    "target_and_control",
    "verify",
    "verify_preset",
]

_WHERE = {
    "IA3": "adapters.ia3",
    "IEL": "regularizers.iel",
    "ITA": "regularizers.ita",
    "PRESETS": "study.paper",
    "Backbone": "backbones.backbone",
    "Bench": "study.bench",
    "ComposedModel": "merging.model",
    "Configuration": "training.fine_tuning",
    "Full": "adapters.full",
    "InputError": "errors",
    "LoRA": "adapters.lora",
    "Pool": "pool",
    "Ray": "engines.ray",
    "Source": "study.choice",
    "TaskStream": "data.stream",
    "TaskVector": "task_vector",
    "Training": "training.settings",
    "builtin": "study.choice",
    "compare": "study.compare",
    "diagnose": "evaluation.theorem",
    "diagonal_fisher": "curvature.fisher",
    "estimate": "study.estimate",
    "evaluate": "evaluation.metrics",
    "export_model": "exchange.formats",
    "export_peft": "exchange.peft.outward",
    "gap_path": "evaluation.landscape",
    "import_peft": "exchange.peft.measured",
    "learn": "training.learner",
    "loss_paths": "evaluation.landscape",
    "merged": "pool",
    "open_studio": "studio.launch",
    "preset": "study.paper",
    "preset_of": "study.paper",
    "pull": "exchange.hub",
    "push": "exchange.hub",
    "remove": "store.rewrite",
    "rename": "store.rewrite",
    "repair": "store.verify",
    "report_comparison": "report.page",
    "report_pool": "report.page",
    "report_to": "tracking.reports",
    "target_and_control": "evaluation.metrics",
    "verify": "store.verify",
    "verify_preset": "study.paper",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"intarsia.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
