"""Merge rules from the literature by name."""

from typing import Literal

Rule = Literal["ties", "dare", "fisher"]
