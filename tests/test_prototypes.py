"""Class prototypes: what a module remembers of its classes in the mean is what the merged mean shows of its images."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import ADAPTERS, GREY, KINDS, QUICK, backbone, randn, same, stream
from intarsia import IEL, ITA, InputError, Pool, Training, learn
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
        earlier, before, after = (features_in_mean(pool, i, max(count, 0), at) for count in (i - 1, i, i + 1))
        expected = Gaussians.of(after, labels, 2)
        torch.testing.assert_close(prototypes.classes.centres, expected.centres, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prototypes.classes.scatter, expected.scatter, rtol=1e-3, atol=1e-3)
        assert prototypes.classes.freedom == expected.freedom
        torch.testing.assert_close(
            prototypes.step(before).mean(0), fit_drift(before, after)(before).mean(0), rtol=1e-4, atol=1e-4
        )
        assert (prototypes.again is None) == (i < 2)
        if prototypes.again:
            expected = fit_drift(earlier, before)(earlier)
            torch.testing.assert_close(prototypes.again(earlier), expected, rtol=1e-3, atol=1e-3)


def test_tasks_that_are_added_are_measured_at_the_scale_of_the_pool(tmp_path: Path) -> None:
    """Whatever is recommended for their method; another scale is refused."""
    out, tasks = tmp_path / "pool", stream(3)
    first, last = (replace(tasks, tasks=tasks.tasks[part]) for part in (slice(2), slice(2, 3)))
    learn(backbone(), first, regularizer=ITA(0.1), training=replace(QUICK, mean_scale=1.5), out=out)
    for wrong in (1.0, 2.0):
        with pytest.raises(
            InputError, match=rf"mean-scale {wrong:g}: the classes of pool .* known in its mean times 1.5"
        ):
            learn(backbone(), last, training=Training(mean_scale=wrong), out=out, add=True)
    pool = learn(backbone(), last, regularizer=IEL(1.0), training=Training(epochs=1), out=out, add=True)
    added = pool.module(pool.tasks[2])
    assert added.card.settings["method"] == "iel"
    assert added.prototypes.scaled is not None and added.prototypes.scaled.again is not None


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


def test_a_step_is_the_average_of_what_two_tasks_saw_of_it() -> None:
    """Weighted by their images: 60 and 30 of them."""
    labels = torch.arange(60) % 3
    x = [randn(60, 4, seed=s) for s in range(5)]
    first, second = (ClassPrototypes.of(x[i], x[i + 1], labels, 3) for i in (0, 1))
    third = ClassPrototypes.of(x[3][:30], x[4][:30], labels[:30], 3, earlier=x[2][:30])
    assert (second.images, third.images) == (60, 30)
    assert third.again is not None and second.again is None
    own, again, last = (torch.eye(4) + step.matrix for step in (second.step, third.again, third.step))
    middle = first.classes.centres @ ((2 * own + again) / 3).double()
    middle = middle + (2 * second.step.offset + third.again.offset) / 3
    expected = middle @ last.double() + third.step.offset
    torch.testing.assert_close(in_mean([first, second, third])[0].centres, expected, rtol=1e-5, atol=1e-5)
    (alone, _) = in_mean([first, second])  # before there was a third task
    torch.testing.assert_close(alone.centres, first.classes.centres @ own.double() + second.step.offset)


@pytest.mark.parametrize(("images", "at_most"), [(40, 0.95), (4, 1.02)])
def test_a_step_is_better_known_from_the_images_of_two_tasks(images: int, at_most: float) -> None:
    """Of a noisy affine map, 40 images: the classes lie nearer to where it brings them, and few more spoil nothing."""
    labels, matrix, error = torch.arange(40) % 4, randn(16, 16, seed=1) / 8, {"once": 0.0, "twice": 0.0}
    for seed in range(10):
        tasks = [randn(40, 16, seed=100 * seed + t) for t in range(3)]
        moved = [x + x @ matrix + randn(40, 16, seed=100 * seed + 50 + t) for t, x in enumerate(tasks)]
        few = slice(0, images)
        chain = [
            ClassPrototypes.of(tasks[0], tasks[0], labels, 4),
            ClassPrototypes.of(tasks[1], moved[1], labels, 4),
            ClassPrototypes.of(moved[2][few], moved[2][few], labels[few], 4, earlier=tasks[2][few]),
        ]
        truth = chain[0].classes.centres @ (torch.eye(16) + matrix).double()
        for name, known in {"once": [*chain[:2], replace(chain[2], again=None)], "twice": chain}.items():
            error[name] += float((in_mean(known)[0].centres - truth).norm())
    assert error["twice"] < at_most * error["once"]


def test_tensors_and_from_tensors_are_inverse() -> None:
    labels = torch.arange(20) % 2
    plain, scaled, third = (
        ClassPrototypes.of(randn(20, 4, seed=s), randn(20, 4, seed=s + 1), labels, 2, earlier=earlier)
        for s, earlier in ((1, None), (5, None), (9, randn(20, 4, seed=11)))
    )
    for prototypes in (plain, replace(plain, scaled=scaled), third, replace(third, scaled=replace(third, scaled=None))):
        again = ClassPrototypes.from_tensors(prototypes.tensors())
        assert same(prototypes.tensors(), again.tensors())
        for part in ("scaled", "again"):
            assert (getattr(again, part) is None) == (getattr(prototypes, part) is None)
    assert again.classes.freedom == 18
    assert again.scaled is not None and again.scaled.again is not None


def test_prototypes_of_another_width_are_refused(tmp_path: Path) -> None:
    pool = learn(backbone(), stream(3), training=replace(QUICK, mean_scale=1.5), out=tmp_path / "pool")
    module = pool.module(pool.tasks[2])
    module.check_shapes()
    narrow = ClassPrototypes.of(randn(20, 4, seed=1), randn(20, 4, seed=2), torch.arange(20) % 2, 2)
    for what, wrong in (
        (r"scaled\.centres is \(2, 4\), expected \(2, ", {"scaled": narrow}),
        (r"again\.matrix is \(4, 4\), expected", {"again": narrow.step}),
    ):
        with pytest.raises(ValueError, match=rf"prototypes\.{what}"):
            replace(module, prototypes=replace(module.prototypes, **wrong)).check_shapes()
