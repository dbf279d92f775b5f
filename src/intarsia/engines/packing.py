"""What goes between the driver and its workers, and into a run's folder: tensors and JSON as bytes, never pickle.

Numbers keep their type, their bits and their layout: what is unpacked is what was packed.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from intarsia.class_stats.drift import FeatureDrift
from intarsia.class_stats.prototypes import ClassPrototypes
from intarsia.class_stats.statistics import ClassStatistics, SeenClasses
from intarsia.curvature import STORED, Curvature
from intarsia.curvature.fisher import DiagonalFisher
from intarsia.heads.head import Head
from intarsia.store.card import Card
from intarsia.store.files import parse_metadata
from intarsia.store.module import Module
from intarsia.strict_json import parse_json
from intarsia.training.state import LearnerState

Tensors = Mapping[str, Tensor]


def pack(about: Mapping[str, Any], /, **groups: Tensors) -> bytes:
    """Groups of tensors, and what is to be said of them, as bytes.

    Args:
        about: fit for JSON.
        groups: name -> tensors by name.
    """
    tensors = {
        f"{group}.{name}": value.detach().to("cpu", copy=True)
        for group, found in groups.items()
        for name, value in found.items()
    }
    strides = {name: value.stride() for name, value in tensors.items() if not value.is_contiguous()}
    whole = {name: value.contiguous() for name, value in tensors.items()}
    return safetensors.torch.save(whole, {"about": json.dumps(about), "strides": json.dumps(strides)})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The inverse of ``pack``: what was said, and the groups.

    Every tensor has memory of its own, laid out as it was: the last bit of a product depends on both.
    """
    told, groups = parse_metadata(data), dict[str, dict[str, Tensor]]()
    strides = parse_json(told["strides"])
    for key, value in safetensors.torch.load(data).items():
        group, _, name = key.partition(".")
        own = torch.empty_strided(value.shape, strides.get(key, value.stride()), dtype=value.dtype)
        groups.setdefault(group, {})[name] = own.copy_(value)
    return parse_json(told["about"]), groups


def pack_fisher(fisher: Curvature, **about: Any) -> bytes:
    """A curvature as bytes, and what else is to be said of it."""
    known = {"kind": fisher.kind, "count": fisher.count, "error": fisher.error}
    return pack({**known, **about}, sums=fisher.tensors())


def unpack_fisher(data: bytes) -> tuple[Curvature, dict[str, Any]]:
    """The inverse of ``pack_fisher``."""
    about, groups = unpack(data)
    found, error = STORED[about.pop("kind")].from_tensors(groups["sums"], about.pop("count")), about.pop("error")
    return replace(found, error=error) if isinstance(found, DiagonalFisher) else found, about


def pack_state(state: LearnerState) -> bytes:
    """What a learner knows but for the sum of the task vectors, as bytes; it knows a Fisher and heads."""
    assert state.fisher is not None and state.reference is not None
    fisher, reference = state.fisher, state.reference
    about = {"tasks": state.tasks, "lost": state.lost, "of": len(state.seen.tasks)}
    about |= {"kind": fisher.kind, "count": fisher.count}
    statistics = {f"s{place}": one.tensors() for place, one in enumerate(state.seen.tasks)}
    return pack(about, sums=fisher.tensors(), reference=reference.tensors(), **statistics)


def unpack_state(data: bytes) -> LearnerState:
    """The inverse of ``pack_state``."""
    about, groups = unpack(data)
    return LearnerState(
        STORED[about["kind"]].from_tensors(groups["sums"], about["count"]),
        None,
        Head.from_tensors(groups["reference"]),
        SeenClasses(tuple(ClassStatistics.from_tensors(groups[f"s{place}"]) for place in range(about["of"]))),
        tuple(about["tasks"]),
        tuple(about["lost"]),
    )


def pack_module(module: Module, log: Mapping[str, Any]) -> bytes:
    """A module and the line of the log about it, as bytes."""
    return pack(
        {"card": module.card.record(), "log": log},
        vector=module.vector,
        head=module.head.tensors(),
        reference=module.reference.tensors(),
        statistics=module.statistics.tensors(),
        drift=module.drift.tensors(),
        shift={"shift": module.shift},
        prototypes=module.prototypes.tensors(),
    )


def unpack_module(data: bytes) -> tuple[Module, dict[str, Any]]:
    """The inverse of ``pack_module``."""
    about, groups = unpack(data)
    module = Module(
        Card.from_record(about["card"]),
        groups["vector"],
        Head.from_tensors(groups["head"]),
        Head.from_tensors(groups["reference"]),
        ClassStatistics.from_tensors(groups["statistics"]),
        FeatureDrift.from_tensors(groups["drift"]),
        groups["shift"]["shift"],
        ClassPrototypes.from_tensors(groups["prototypes"]),
    )
    return module, about["log"]
