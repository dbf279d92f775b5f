"""The ways of classifier alignment by name."""

from typing import Literal

Alignment = Literal["auto", "sgd"]
