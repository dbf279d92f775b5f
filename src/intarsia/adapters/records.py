"""Adapters by name, and as JSON."""

from typing import Any

from intarsia.adapters.full import Full
from intarsia.adapters.ia3 import IA3
from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.errors import InputError


def build_adapter(kind: str, rank: int = 16) -> Adapter:
    """The adapter called ``kind``; ``rank`` is LoRA's."""
    match kind:
        case "lora":
            return LoRA(rank)
        case "full":
            return Full()
        case "ia3":
            return IA3()
    raise InputError(f"unknown adapter {kind!r}: expected lora, full or ia3")


def adapter_record(adapter: Adapter) -> dict[str, Any]:
    """As JSON; ``build_adapter(**record)`` is the inverse."""
    return {"kind": adapter.kind, **({"rank": adapter.rank} if isinstance(adapter, LoRA) else {})}
