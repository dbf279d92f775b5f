"""Merge rules from the literature by name."""

from typing import Literal

Rule = Literal["sum", "ties", "dare", "fisher", "breadcrumbs", "tsv", "iso-c", "iso-cts", "core-ties"]
