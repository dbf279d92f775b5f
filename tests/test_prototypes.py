"""Class prototypes: what a module remembers of its classes in the mean is what the merged mean shows of its images."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import ADAPTERS, GREY, KINDS, QUICK, backbone, randn, same, stream
from intarsia import IEL, ITA, Pool, learn
from intarsia.adapters import Adapter
from intarsia.class_stats.drift import fit_drift
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.prototypes import ClassPrototypes, in_mean
from intarsia.merging.merge import merge


def features_in_mean(pool: Pool, task: int, count: int, scale: float) -> Tensor:
    """Features of a task's training images in the merged mean of the first so many modules, times the scale."""
    known = [pool.module(t) for t in pool.tasks[:count]]
    network = merge(pool.backbone, pool.adapter, known, {m.card.task: min(1.0, scale / count) for m in known})
    with torch.no_grad():
        return network(GREY.normalize(stream()[task].train.tensor(GREY)))


@pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)
@pytest.mark.parametrize(
    ("regularizer", "scale"), [(ITA(0.1), 1.0), (ITA(0.1), 1.5), (IEL(0.1), 1.0)], ids=["ita", "scaled", "iel"]
)
def test_prototypes_are_measured_in_the_mean_of_the_modules(
    adapter: Adapter, regularizer: ITA | IEL, scale: float, tmp_path: Path
) -> None:
    out, training = tmp_path / "pool", replace(QUICK, mean_scale=scale)
    pool = learn(backbone(), stream(), adapter=adapter, regularizer=regularizer, training=training, out=out)
    for (i, task), at in product(enumerate(pool.tasks), {1.0, scale}):
        prototypes, labels = pool.module(task).prototypes, stream()[i].train.labels
        assert (prototypes.scaled is None) == (scale == 1 or i == 0)
        prototypes = (prototypes.scaled if at > 1 else None) or prototypes
        before, after = (features_in_mean(pool, i, count, at) for count in (i, i + 1))
        expected = Gaussians.of(after, labels, 2)
        torch.testing.assert_close(prototypes.classes.centres, expected.centres, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prototypes.classes.scatter, expected.scatter, rtol=1e-3, atol=1e-3)
        assert prototypes.classes.freedom == expected.freedom
        torch.testing.assert_close(
            prototypes.step(before).mean(0), fit_drift(before, after)(before).mean(0), rtol=1e-4, atol=1e-4
        )


def test_classes_follow_every_later_step() -> None:
    """Were all steps affine and all images kept, the chain would be the classes of the last features, exactly."""
    labels = torch.arange(60) % 3
    seen, prototypes = [randn(60, 4, seed=s) for s in (1, 2, 3)], list[ClassPrototypes]()
    for number in range(3):
        matrix, offset = randn(4, 4, seed=10 + number) / 2, randn(4, seed=20 + number)
        before, seen = seen[number], [x + x @ matrix + offset for x in seen]
        step = replace(fit_drift(before, seen[number]), matrix=matrix, offset=offset)
        prototypes.append(ClassPrototypes(Gaussians.of(seen[number], labels, 3), step))
    for found, features in zip(in_mean(prototypes), seen, strict=True):
        expected = Gaussians.of(features, labels, 3)
        torch.testing.assert_close(found.centres, expected.centres, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-9, atol=1e-9)


def test_tensors_and_from_tensors_are_inverse() -> None:
    labels = torch.arange(20) % 2
    plain, scaled = (ClassPrototypes.of(randn(20, 4, seed=s), randn(20, 4, seed=s + 1), labels, 2) for s in (1, 5))
    for prototypes in (plain, replace(plain, scaled=scaled)):
        again = ClassPrototypes.from_tensors(prototypes.tensors())
        assert same(prototypes.tensors(), again.tensors())
        assert (again.scaled is None) == (prototypes.scaled is None)
    assert again.classes.freedom == 18


def test_scaled_prototypes_of_another_width_are_refused(tmp_path: Path) -> None:
    pool = learn(backbone(), stream(2), training=replace(QUICK, mean_scale=1.5), out=tmp_path / "pool")
    module = pool.module(pool.tasks[1])
    module.check_shapes()
    narrow = ClassPrototypes.of(randn(20, 4, seed=1), randn(20, 4, seed=2), torch.arange(20) % 2, 2)
    damaged = replace(module, prototypes=replace(module.prototypes, scaled=narrow))
    with pytest.raises(ValueError, match=r"prototypes\.scaled\.centres is \(2, 4\), expected \(2, "):
        damaged.check_shapes()
