"""Parametrisations of a task vector: LoRA, full, (IA)^3. A new one is one file here and one line below.

Names are imported when they are first used: ``choices`` alone needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.adapters.attachment import Attachment
    from intarsia.adapters.full import Full
    from intarsia.adapters.ia3 import IA3
    from intarsia.adapters.lora import LoRA
    from intarsia.adapters.protocol import AdaptedLinear, Adapter

__all__ = ["IA3", "AdaptedLinear", "Adapter", "Attachment", "Full", "LoRA"]

_WHERE = {
    "IA3": "ia3",
    "AdaptedLinear": "protocol",
    "Adapter": "protocol",
    "Attachment": "attachment",
    "Full": "full",
    "LoRA": "lora",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
