"""The merge rules by name, with their papers' settings.

A new one is a file here, a line below and its name in ``merging.choices``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from intarsia.errors import InputError
from intarsia.merging.choices import Rule
from intarsia.merging.rules.breadcrumbs import breadcrumbs
from intarsia.merging.rules.core_space import in_core_space
from intarsia.merging.rules.dare import dare
from intarsia.merging.rules.fisher_mean import fisher_mean
from intarsia.merging.rules.isotropic import iso_c, iso_cts
from intarsia.merging.rules.task_arithmetic import task_arithmetic
from intarsia.merging.rules.ties import ties
from intarsia.merging.rules.tsv import tsv
from intarsia.task_vector import TaskVector

RULES: dict[str, Callable[[Sequence[TaskVector]], TaskVector]] = {
    "sum": task_arithmetic,
    "ties": ties,
    "breadcrumbs": breadcrumbs,
    "tsv": tsv,
    "iso-c": iso_c,
    "iso-cts": iso_cts,
    "core-ties": partial(in_core_space, rule=ties),
}
"""Those that need nothing but the vectors."""


def merged_vector(
    rule: Rule, vectors: Sequence[TaskVector], fishers: Sequence[Mapping[str, Tensor]], seed: int
) -> TaskVector:
    """The task vectors merged by a rule.

    Args:
        rule: which.
        vectors: of the tasks.
        fishers: each task's own mean Fisher, for ``fisher``; else not looked at.
        seed: of what ``dare`` drops.

    Raises:
        InputError: no such rule, no vector, or not the Fishers that ``fisher`` needs.
    """
    if rule == "fisher":
        return fisher_mean(vectors, fishers)
    if rule == "dare":
        return dare(vectors, generator=torch.Generator().manual_seed(seed))
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}: expected one of {', '.join((*RULES, 'dare', 'fisher'))}")
    return RULES[rule](vectors)
