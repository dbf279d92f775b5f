"""The adapters by name."""

from typing import Literal

AdapterKind = Literal["lora", "full", "ia3"]
