"""Parametrisations of a task vector: LoRA, full, (IA)^3. A new one is one file here and one line below."""

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.full import Full
from intarsia.adapters.ia3 import IA3
from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import AdaptedLinear, Adapter

__all__ = ["IA3", "AdaptedLinear", "Adapter", "Attachment", "Full", "LoRA"]
