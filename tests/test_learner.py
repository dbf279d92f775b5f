"""Learning: its steps against a loop written by hand, its repeatability, and what it leaves behind when it fails."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cases import ADAPTERS, GREY, KINDS, QUICK, PlainSGD, backbone, contents, same, seeded, settings, stream, tiny_vit
from intarsia import (
    IA3,
    IEL,
    ITA,
    Backbone,
    ComposedModel,
    Full,
    InputError,
    LoRA,
    Pool,
    TaskStream,
    TaskVector,
    diagnose,
    learn,
)
from intarsia.adapters import Adapter
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.mixtures import fit_mixtures
from intarsia.class_stats.statistics import ClassStatistics, sample
from intarsia.curvature.fisher import DiagonalMetric, diagonal_fisher
from intarsia.errors import DivergenceError
from intarsia.evaluation.landscape import loss_paths
from intarsia.heads.discriminant import initial_heads
from intarsia.heads.head import Head
from intarsia.heads.trained_head import RegularizedHead
from intarsia.merging.merge import merge
from intarsia.regularizers.choices import Step
from intarsia.regularizers.quadratic import Quadratic
from intarsia.training.fine_tuning import Configuration, batch_drift, fine_tune, steps_due
from intarsia.training.loop import CXX, train
from intarsia.training.recommended import suited
from intarsia.training.schedule import Seeds, batches
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState
from intarsia.training.steps import starting_head
from intarsia.training.task import prepare

pytestmark = pytest.mark.slow

each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)
METHODS = pytest.mark.parametrize("regularizer", [ITA(0.5), IEL(0.5)], ids=["ita", "iel"])
PLAIN = replace(QUICK, lambda_h=0.0, lambda_0=0.0, center_features=False, drift_penalty=0.0)


CENTERED = replace(PLAIN, center_features=True, drift_penalty=0.7)


@each_adapter
@METHODS
def test_a_network_in_float64_is_learned_on_added_to_and_measured(
    adapter: Adapter, regularizer: ITA | IEL, tmp_path: Path
) -> None:
    """It stays in float64; what is kept is float32, and comes to what a network in float32 comes to."""
    tasks, found = stream(3), []
    for dtype in (torch.float64, torch.float32):
        out = tmp_path / str(dtype)
        given = {"adapter": adapter, "regularizer": regularizer, "training": QUICK, "out": out}
        learn(backbone(dtype=dtype), tasks.subset([0, 1]), **given)
        learn(backbone(dtype=dtype), tasks.subset([2]), add=True, **given)
        pool = Pool.open(out, backbone(dtype=dtype))
        model = pool.mean()
        assert {value.dtype for value in model.network.state_dict().values()} == {dtype}
        assert {value.dtype for value in pool.module("task03").vector.values()} == {torch.float32}
        losses = [loss for path in loss_paths(pool, tasks, at=(0.5,), per_task=3) for loss in (*path.loss, *path.whole)]
        images = tasks[0].test.tensor(GREY)
        model.save(tmp_path / f"{dtype} merged")
        loaded = ComposedModel.load(tmp_path / f"{dtype} merged", backbone(dtype=dtype))
        torch.testing.assert_close(loaded.logits(images), model.logits(images))
        gap = diagnose(pool, tasks, per_task=3).true_gap
        found.append((model.logits(images), torch.tensor(losses), torch.tensor(gap)))
    for double, single in zip(*found, strict=True):
        torch.testing.assert_close(double, single, rtol=1e-3, atol=1e-4)


def tuned_on(task: int, adapter: Adapter, regularizer: ITA | IEL, training: Settings) -> tuple[dict[str, Tensor], Head]:
    """Parts and head of one task of a stream of two, learned as the first task it is."""
    tasks = stream(2)
    theta0 = backbone()
    prepared, state = prepare(theta0, tasks[task], LearnerState(), training)
    tuned = fine_tune(theta0, prepared, state, None, Configuration(adapter, regularizer, training))
    return tuned.adapter_parameters, tuned.head


def by_hand(task: int, adapter: Adapter, training: Settings) -> tuple[dict[str, Tensor], Head]:
    """The same without any regularizer: AdamW on the cross-entropy, warm-up, cosine, from the reference head.

    With ``center_features``: the head sees features - d, d the batch's mean drift from theta0, and the loss has
    drift_penalty |d|^2 / (total variance of the features at theta0).
    """
    tasks, theta0, seeds = stream(2), backbone(), Seeds(training.seed, 1)
    _, state = prepare(theta0, tasks[task], LearnerState(), training)
    assert state.reference is not None
    images, labels = tasks[task].train.tensor(GREY), tasks[task].train.labels
    weight, bias = (t.clone().requires_grad_() for t in (state.reference.weight, state.reference.bias))
    order = seeds.generator("training")
    at_theta0 = theta0.features((images.float() / 255 - 0.5) / 0.25)
    variance = at_theta0.var(0, correction=0).sum() + 1e-3 * (1 + at_theta0.square().sum(1).mean())
    with theta0.attach(adapter, seeds.generator("adapter")) as attachment:
        parameters = [*attachment.parameters(), weight, bias]
        optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=0.0)
        for epoch in range(training.epochs):
            batches = torch.randperm(len(images), generator=order).split(training.batch_size)
            for number, index in enumerate(batches):
                cosine = 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
                rise = (number + 1) / len(batches) if epoch == 0 else 1  # a warm-up of one epoch
                for group in optimizer.param_groups:
                    group["lr"] = training.lr * cosine * rise
                optimizer.zero_grad()
                x = (images[index].float() / 255 - 0.5) / 0.25
                features = theta0.model(x)
                drift = (features - at_theta0[index]).mean(0)
                seen = features - drift if training.center_features else features
                loss = F.cross_entropy(F.linear(seen, weight, bias), labels[index])
                (loss + training.drift_penalty * drift.square().sum() / variance).backward()
                optimizer.step()
        return attachment.state(), Head(weight.detach(), bias.detach())


@each_adapter
def test_what_augmentation_does_to_the_features_is_no_drift(adapter: Adapter) -> None:
    """At tau = 0 nothing has drifted, however the images were changed: both sides see the same ones."""
    theta0 = backbone()
    x = torch.randn(5, 1, 8, 8, generator=seeded(3))
    with theta0.attach(adapter, seeded(1)) as attachment:
        drift = batch_drift(attachment, theta0.model, x, theta0.model(x))
        assert float(drift.detach().abs().max()) < 1e-6
        shaken = [part.add_(0.1) for part in map(torch.Tensor.detach, attachment.parameters())]
        assert shaken
        moved = batch_drift(attachment, theta0.model, x, theta0.model(x))
    assert float(moved.detach().norm()) > 1e-3


def assert_trained(adapter: Adapter, state: Mapping[str, Tensor]) -> None:
    """Every weight has moved: a comparison of what was never trained would say nothing."""
    for name, w in backbone().trainable.items():
        parts = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        assert float(adapter.delta(parts, w).norm()) > 1e-3


@each_adapter
@pytest.mark.parametrize("step", ["decoupled", "coupled"])
@pytest.mark.parametrize("regularizer", [ITA(0.0), IEL(0.0)], ids=["ita", "iel"])
@pytest.mark.parametrize("base", [PLAIN, CENTERED], ids=["plain", "center_features"])
def test_strength_zero_is_plain_fine_tuning_bit_for_bit(
    adapter: Adapter, step: Step, regularizer: ITA | IEL, base: Settings
) -> None:
    training = replace(base, step=step)
    state, head = tuned_on(0, adapter, regularizer, training)
    expected, expected_head = by_hand(0, adapter, training)
    assert_trained(adapter, state)
    assert same(state, expected)
    assert same(head.tensors(), expected_head.tensors())


@each_adapter
def test_strength_zero_is_plain_fine_tuning_with_the_proximal_step_too(adapter: Adapter) -> None:
    """Up to rounding: the head goes through reference + (W - reference)."""
    state, head = tuned_on(0, adapter, ITA(0.0), replace(PLAIN, step="proximal"))
    expected, expected_head = by_hand(0, adapter, PLAIN)
    assert_trained(adapter, state)
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.tensors(), expected_head.tensors(), rtol=1e-4, atol=1e-5)


@each_adapter
def test_iel_starts_at_the_mean_of_the_modules_and_leaves_the_composed_model_as_it_is(
    adapter: Adapter, tmp_path: Path
) -> None:
    """At a learning rate of zero tau_T stays S/(T - 1), where IEL's quadratic c tau^2/2 - d tau is least."""
    theta0 = backbone()
    first = learn(theta0, stream(1), adapter=adapter, regularizer=IEL(0.1), training=QUICK, out=tmp_path / "p")
    earlier = first.vector("task01")
    still = replace(QUICK, lr=0.0, step="decoupled")
    for start, expected in (("mean", earlier), ("zero", 0.0 * earlier)):
        training = replace(still, iel_start=start)
        prepared, state = prepare(theta0, stream(2)[1], LearnerState.of(first), training)
        tuned = fine_tune(theta0, prepared, state, None, Configuration(adapter, IEL(0.0), training))
        for name, tau in expected.items():
            parts = {
                k.removeprefix(f"{name}."): v for k, v in tuned.adapter_parameters.items() if k.startswith(f"{name}.")
            }
            torch.testing.assert_close(adapter.delta(parts, theta0.trainable[name]), tau, rtol=1e-4, atol=1e-5)
    name = "blocks.0.attn.qkv.weight"
    gradient = IEL(2.0).bind(None, earlier, 2).gradient(name, earlier[name])
    assert float(gradient.norm()) < 1e-6 * float(earlier[name].norm())


@each_adapter
def test_bfloat16_products_train_nearly_the_same_vector_in_float32(adapter: Adapter) -> None:
    exact, exact_head = tuned_on(0, adapter, ITA(0.0), PLAIN)
    state, head = tuned_on(0, adapter, ITA(0.0), replace(PLAIN, precision="bf16"))
    assert {value.dtype for value in (*state.values(), *head.tensors().values())} == {torch.float32}
    assert not same(state, exact)
    tuned = backbone().trainable
    for name, w in tuned.items():
        taus = [
            adapter.delta({k.removeprefix(f"{name}."): v for k, v in parts.items() if k.startswith(f"{name}.")}, w)
            for parts in (state, exact)
        ]
        assert float(F.cosine_similarity(taus[0].flatten(), taus[1].flatten(), 0)) > 0.8
    torch.testing.assert_close(head.weight, exact_head.weight, rtol=0.1, atol=0.05)


@pytest.mark.skipif(not any(map(shutil.which, CXX)), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by torch
def test_a_compiled_network_trains_the_same_vector() -> None:
    even = replace(PLAIN, batch_size=6)  # batches of one size are compiled once
    exact, exact_head = tuned_on(0, LoRA(2), ITA(0.0), even)
    state, head = tuned_on(0, LoRA(2), ITA(0.0), replace(even, compile=True))
    for name, value in exact.items():
        torch.testing.assert_close(state[name], value, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(head.weight, exact_head.weight, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="compiler: none"):
        tuned_on(0, LoRA(2), ITA(0.0), replace(PLAIN, compile=True))


def test_a_batch_of_one_image_cannot_be_centered() -> None:
    with pytest.raises(InputError, match=r"batch-size 1 .* use 2.*--training.no-center-features"):
        settings(batch_size=1)
    assert settings(batch_size=1, center_features=False).batch_size == 1


@pytest.mark.parametrize("step", ["decoupled", "coupled", "proximal"])
def test_the_strength_pulls_towards_theta0(step: Step) -> None:
    """The first task knows the floor alone: alpha 5e4 makes a curvature of 1/2."""
    sizes = []
    for alpha in (0.0, 1e4, 5e4):
        state, _ = tuned_on(0, Full(), ITA(alpha), replace(PLAIN, step=step))
        sizes.append(float(torch.cat([t.flatten() for t in state.values()]).norm()))
    assert sizes[0] > sizes[1] > sizes[2] > 0


class Seen:
    """Stands in for ``bind`` of a regularizer and keeps what it was told, task by task."""

    def __init__(self, kind: type[ITA] | type[IEL], monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor] | None, int]] = []
        original, seen = kind.bind, self

        def bind(regularizer: Any, fisher: Any, total: Any, tasks: int) -> Any:
            seen.calls.append((fisher, total, tasks))
            return original(regularizer, fisher, total, tasks)

        monkeypatch.setattr(kind, "bind", bind)


def test_ita_knows_the_mean_fisher_of_the_earlier_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first the floor alone; then sum F / sum N + 1e-5, this task's own left out."""
    seen = Seen(ITA, monkeypatch)
    tasks = stream(3)
    training = replace(QUICK, fisher="exact")
    pool = learn(backbone(), tasks, adapter=LoRA(1), training=training, out=tmp_path / "p", keep_fishers=True)
    own = [pool.fisher(t) for t in pool.tasks]
    assert [call[0] is None for call in seen.calls] == [True, False, False]
    assert own[0] is not None
    assert own[1] is not None
    for call, known in zip(seen.calls[1:], (own[0], own[0] + own[1]), strict=True):
        assert call[0] is not None
        assert same(call[0], {n: f / known.count + 1e-5 for n, f in known.tensors().items()})


def test_iel_knows_every_fisher_and_the_sum_of_the_earlier_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(IEL, monkeypatch)
    pool = learn(
        backbone(),
        stream(3),
        adapter=LoRA(1),
        regularizer=IEL(0.1),
        training=QUICK,
        out=tmp_path / "p",
        keep_fishers=True,
    )
    first, second = (pool.vector(t) for t in pool.tasks[:2])
    totals: list[TaskVector | None] = [None, first, first + second]
    running = pool.fisher("task01")
    assert running is not None
    for (fisher, total, number), expected, task in zip(seen.calls, totals, pool.tasks, strict=True):
        if task != "task01":
            own = pool.fisher(task)
            assert own is not None
            running = running + own
        assert fisher is not None
        assert isinstance(metric := running.mean(1e-5), DiagonalMetric)
        assert same(fisher, metric)
        assert (total is None) == (expected is None)
        if total is not None and expected is not None:
            assert same(total, expected)
        assert number == pool.tasks.index(task) + 1


def test_in_parallel_mode_a_module_knows_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(ITA, monkeypatch)
    training = replace(QUICK, fisher_over="others", fisher="exact")
    pool = learn(backbone(), stream(3), adapter=LoRA(1), training=training, out=tmp_path / "p", keep_fishers=True)
    for task, (fisher, _, _) in zip(pool.tasks, seen.calls, strict=True):
        others = [pool.fisher(t) for t in pool.tasks if t != task]
        one, two = others
        assert one is not None
        assert two is not None
        assert fisher is not None
        torch.testing.assert_close(dict(fisher), (one + two).mean(1e-5), rtol=1e-4, atol=1e-6)
        assert set(pool.card(task).influenced_by.fisher) == set(pool.tasks) - {task}


def test_the_stored_fisher_is_that_of_the_reference_heads_at_theta0(tmp_path: Path) -> None:
    tasks, theta0 = stream(1), backbone()
    pool = learn(theta0, tasks, adapter=LoRA(1), training=replace(QUICK, fisher="exact"), out=tmp_path / "p")
    reference, stored = pool.reference(), pool.fisher()
    assert reference is not None
    assert stored is not None
    images = GREY.normalize(tasks[0].train.tensor(GREY))
    expected = diagonal_fisher(theta0, reference, [images], estimator="exact")
    torch.testing.assert_close(dict(stored.tensors()), dict(expected.tensors()))


@METHODS
@each_adapter
def test_learning_twice_is_bit_equal(adapter: Adapter, regularizer: ITA | IEL, tmp_path: Path) -> None:
    for out in ("a", "b"):
        torch.manual_seed(len(contents(tmp_path)))  # the global generator has no part in it
        learn(backbone(), stream(2), adapter=adapter, regularizer=regularizer, training=QUICK, out=tmp_path / out)
    files = contents(tmp_path / "a", {"log.jsonl"})
    assert len(files) == 17
    assert files == contents(tmp_path / "b", {"log.jsonl"})


def test_another_seed_is_another_pool(learned: Path, tmp_path: Path) -> None:
    training = replace(QUICK, seed=1)
    learn(backbone(), stream(), adapter=LoRA(2), regularizer=ITA(0.1), training=training, out=tmp_path / "p")
    files, others = contents(learned), contents(tmp_path / "p")
    drawn = [
        name for name in files if name.endswith(("vector.safetensors", "head.safetensors", "fisher-4.safetensors"))
    ]
    assert len(drawn) == 9
    assert not any(files[name] == others[name] for name in drawn)


def test_learning_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    learn(backbone(), stream(2), adapter=LoRA(2), training=QUICK, out=tmp_path / "p")
    assert torch.equal(torch.random.get_rng_state(), before)


@METHODS
def test_two_tasks_and_two_more_in_another_process_are_four(regularizer: ITA | IEL, tmp_path: Path) -> None:
    options: dict[str, Any] = {"adapter": LoRA(2), "regularizer": regularizer, "training": QUICK}
    learn(backbone(), stream(), out=tmp_path / "whole", **options)
    learn(backbone(), stream().subset([0, 1]), out=tmp_path / "parts", **options)
    learn(backbone(), stream().subset([2, 3]), out=tmp_path / "parts", add=True, **options)
    files = [contents(tmp_path / out, {"log.jsonl"}) for out in ("whole", "parts")]
    assert len(files[0]) == 4 * 6 + 2 + 2 + 1  # modules, the last two reference heads and Fishers, index
    assert files[0] == files[1]


@pytest.mark.parametrize("step", ["decoupled", "coupled", "proximal"])
@each_adapter
def test_theta0_is_never_written(adapter: Adapter, step: Step, tmp_path: Path) -> None:
    theta0 = backbone()
    state = {k: v.clone() for k, v in theta0.model.state_dict().items()}
    training = replace(QUICK, step=step)
    learn(theta0, stream(2), adapter=adapter, regularizer=IEL(0.01), training=training, out=tmp_path / "p")
    assert same(theta0.model.state_dict(), state)
    assert Backbone(theta0.model, name="again", preprocessing=GREY).hash == theta0.hash == backbone().hash
    assert not any(p.requires_grad or p.grad is not None for p in theta0.model.parameters())
    assert not any(m.training for m in theta0.model.modules())


def test_few_images_and_a_large_batch_are_still_trained_on(tmp_path: Path) -> None:
    """Two classes of two images, batches of a thousand: the head is pre-tuned, both epochs step."""
    training = settings(epochs=2, batch_size=1000, lr=1e-5)
    pool = learn(backbone(), stream(2, train=2), adapter=Full(), training=training, out=tmp_path / "p")
    for task in pool.tasks:
        card = pool.card(task)
        assert card.images == 4
        assert len(card.measures["losses"]) == 2
        assert card.measures["losses"][1] < card.measures["losses"][0]
        assert float(pool.vector(task).norm()) > 0
        assert card.measures["head_moved"] > 0


@each_adapter
@METHODS
@pytest.mark.parametrize("classes", [1, 3])
def test_classes_of_one_image_are_learned(
    classes: int, adapter: Adapter, regularizer: ITA | IEL, tmp_path: Path
) -> None:
    """Nothing is known of the spread within classes: heads take that between them, and are as sure as others."""
    tasks = stream(2, classes=classes, train=1)
    pool = learn(backbone(), tasks, adapter=adapter, regularizer=regularizer, training=QUICK, out=tmp_path / "p")
    for task in tasks:
        module = pool.module(task.name)
        assert module.statistics.freedom == 0
        assert all(0 <= loss < 20 for loss in module.card.measures["losses"])
        assert (float(pool.vector(task.name).norm()) > 0) == (classes > 1)
    logits = pool.mean().logits(tasks[0].test.tensor(GREY))
    assert bool(logits.isfinite().all())
    assert float(logits.std()) < 50


PAPER = replace(PLAIN, protocol="paper", step="decoupled", warmup=0.0, epochs=3, iel_start="zero", fisher="exact")


def test_reference_heads_are_the_closed_form_of_all_classes_seen() -> None:
    tasks = stream(2, train=6)
    first, before = prepare(backbone(), tasks[0], LearnerState(), QUICK)
    second, after = prepare(backbone(), tasks[1], before, QUICK)
    assert after.reference is not None
    for prepared in (first, second):
        assert prepared.statistics.mixtures is None
    own = [Gaussians.of(p.features, p.task.train.labels, 2) for p in (first, second)]
    torch.testing.assert_close(after.reference.tensors(), initial_heads(Gaussians.join(own)).tensors())


def uneven() -> TaskStream:
    """Two tasks of two classes, of which one has 12 images and the other 2."""
    kept = [torch.tensor([*range(12), 12, 13]), torch.tensor([0, 1, *range(12, 24)])]
    even = stream(2, train=12)
    tasks = [replace(t, train=t.train.select(index)) for t, index in zip(even, kept, strict=True)]
    return TaskStream("uneven", tuple(tasks))


@each_adapter
def test_balanced_classes_have_shrunken_means_wherever_they_are_measured(adapter: Adapter, tmp_path: Path) -> None:
    """At theta0, in the mean of the modules, and in how far the mean feature moves: no class counts by its images."""
    balanced, theta0 = replace(QUICK, class_balanced=True), backbone()
    pool = learn(theta0, uneven(), adapter=adapter, training=balanced, out=tmp_path / "pool")
    for number, task in enumerate(uneven()):
        module, x, labels = pool.module(task.name), GREY.normalize(task.train.tensor(GREY)), task.train.labels
        assert torch.bincount(labels).tolist() == ([12, 2], [2, 12])[number]
        at_theta0 = theta0.features(x)
        expected = Gaussians.of(at_theta0, labels, 2, shrunken=True)
        plain = Gaussians.of(at_theta0, labels, 2)
        torch.testing.assert_close(module.statistics.centres, expected.centres.float())
        assert not torch.allclose(expected.centres, plain.centres, rtol=1e-2)
        first = pool.tasks[: number + 1]
        together = merge(theta0, adapter, [pool.module(t) for t in first], dict.fromkeys(first, 1 / len(first)))
        with torch.no_grad():
            seen = Gaussians.of(together(x), labels, 2, shrunken=True)
        torch.testing.assert_close(module.prototypes.classes.centres, seen.centres, rtol=1e-4, atol=1e-4)
        alone = merge(theta0, adapter, [module], {task.name: 1.0})
        with torch.no_grad():
            moved = alone(x) - at_theta0
        shift = torch.stack([moved[labels == kind].mean(0) for kind in range(2)]).mean(0)
        torch.testing.assert_close(module.shift, shift, rtol=1e-4, atol=1e-5)


def test_batches_are_balanced_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = list[Tensor]()

    def spied(optimizer: Any, settings: Any, images: Any, labels: Tensor, *rest: Any, **more: Any) -> list[float]:
        generator, loss = rest

        def counted(batch: Any, own: Tensor) -> Any:
            seen.append(torch.bincount(labels[batch.index], minlength=2))
            return loss(batch, own)

        return train(optimizer, settings, images, labels, generator, counted, **more)

    monkeypatch.setattr("intarsia.training.fine_tuning.train", spied)
    for balanced, counts in ((True, [14, 14]), (False, [24, 4])):
        seen.clear()
        learn(
            backbone(),
            uneven().subset([0]),
            training=replace(QUICK, class_balanced=balanced),
            out=tmp_path / str(balanced),
        )
        assert torch.stack(seen).sum(0).tolist() == counts  # two epochs of 14 images


def test_a_record_older_than_balancing_is_read_as_it_was() -> None:
    record = replace(QUICK, class_balanced=True).record()
    assert Settings.from_record(record).class_balanced
    del record["class_balanced"]
    assert Settings.from_record(record) == QUICK


def papers_heads(theta0: Backbone, tasks: TaskStream, training: Settings) -> list[tuple[list[ClassStatistics], Head]]:
    """Of each task: the class statistics and reference heads known after it, by a loop written out."""
    made: list[tuple[list[ClassStatistics], Head]] = []
    for number, task in enumerate(tasks, start=1):
        seeds, labels = Seeds(training.seed, number), task.train.labels
        features = theta0.features(GREY.normalize(task.train.tensor(GREY)))
        mixtures = fit_mixtures(features, labels, 2, seed=seeds.of("statistics") % 2**31)
        generator = seeds.generator("heads")
        loop = PlainSGD(Head.truncated_normal(2, features.shape[1], generator))
        for _ in range(training.pretune_epochs):
            rows = torch.randperm(len(features), generator=generator)  # one batch
            loop.step(features[rows], labels[rows], training.pretune_lr, normalised=False)
        statistics = [*(made[-1][0] if made else ()), ClassStatistics.of(features, labels, 2, mixtures)]
        loop = PlainSGD(Head.join([*(h for _, h in made[-1:]), loop.head()]))
        epochs = 10 + 5 * (number - 1)
        for epoch in range(epochs):
            drawn, target = sample(statistics, 256, generator)
            for rows in torch.randperm(len(drawn), generator=generator).split(128):
                rate = training.pretune_lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
                loop.step(drawn[rows], target[rows], rate, normalised=True)
        made.append((statistics, loop.head()))
    return made


def papers_fisher(theta0: Backbone, images: Tensor, head: Head) -> dict[str, Tensor]:
    """Sum over images and classes of p_c (d log p_c / d theta)^2, image by image."""
    weights = {name: theta0.model.get_parameter(name).requires_grad_() for name in theta0.trainable}
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    for image in images:
        logs = torch.log_softmax(head(theta0.model(image[None])), 1)[0]
        for log in logs:
            slopes = torch.autograd.grad(log, list(weights.values()), retain_graph=True)
            for name, slope in zip(weights, slopes, strict=True):
                sums[name] += log.exp().detach() * slope.square()
    for w in weights.values():
        w.requires_grad_(False)
    return sums


def test_the_papers_ita_is_a_loop_written_by_hand() -> None:
    """The second task of two in the paper protocol, from features to the fine-tuned head: every step written out."""
    training = replace(PAPER, lambda_h=0.5, lambda_0=0.1, pretune_epochs=2)
    tasks, theta0, alpha, seeds = stream(2), backbone(), 40.0, Seeds(training.seed, 2)
    first, state = prepare(theta0, tasks[0], LearnerState(), training)
    second, state = prepare(theta0, tasks[1], state, training)
    found, free = (
        fine_tune(theta0, second, state, first.fisher, Configuration(LoRA(2), ITA(a), training)) for a in (alpha, 0.0)
    )

    (_, before), (statistics, reference) = papers_heads(theta0, tasks, training)
    assert state.reference is not None
    torch.testing.assert_close(state.reference.tensors(), reference.tensors(), rtol=1e-4, atol=1e-6)
    sums = papers_fisher(theta0, GREY.normalize(tasks[0].train.tensor(GREY)), before)
    images, labels = tasks[1].train.tensor(GREY), tasks[1].train.labels
    fisher = {name: (f + 1e-5) / len(images) for name, f in sums.items()}  # both tasks have as many images
    drawn, _ = sample(statistics, 256, seeds.generator("head fisher"))
    p = reference(drawn).softmax(1)[:, 2:]
    of_weight = (p * (1 - p)).T @ drawn.square() / len(drawn) + 1e-5
    of_bias = (p * (1 - p)).mean(0) + 1e-5
    start = Head.truncated_normal(2, reference.weight.shape[1], seeds.generator("head start"))
    weight, bias = (t.clone().requires_grad_() for t in (start.weight, start.bias))
    order = seeds.generator("training")
    with theta0.attach(LoRA(2), seeds.generator("adapter")) as attachment:
        for layer in attachment.layers.values():
            layer.adapter_parameters["A"].detach().div_(len(layer.adapter_parameters["A"]) ** 0.5)
        optimizer = torch.optim.AdamW(
            [*attachment.parameters(), weight, bias], lr=training.lr, weight_decay=0.0, fused=True
        )
        for epoch in range(3):
            factor = math.cos(0.495 * math.pi * epoch / 2)
            for rows in torch.randperm(len(images), generator=order).split(training.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = training.lr * factor
                optimizer.zero_grad()
                features = theta0.model(GREY.normalize(images[rows]))
                F.cross_entropy(F.linear(features, weight, bias), labels[rows]).backward()
                pulls: list[tuple[Tensor, Tensor]] = []
                for name, layer in attachment.layers.items():
                    a, b = (layer.adapter_parameters[k].detach() for k in "AB")
                    dense = alpha * fisher[name] * (b @ a)
                    pulls += [(a, b.T @ dense), (b, dense @ a.T)]
                pulls.append((weight.detach(), 2 * (0.5 * of_weight + 0.1) * (weight.detach() - reference.weight[2:])))
                pulls.append((bias.detach(), 2 * (0.5 * of_bias + 0.1) * (bias.detach() - reference.bias[2:])))
                for tensor, pull in pulls:
                    tensor.sub_(factor * pull * min(1.0, 100 / float(pull.norm() + 1e-6)))
                optimizer.step()
        expected = attachment.state()
    torch.testing.assert_close(found.adapter_parameters, expected, rtol=1e-3, atol=1e-5)
    head = Head(weight.detach(), bias.detach())
    torch.testing.assert_close(found.head.tensors(), head.tensors(), rtol=1e-3, atol=1e-5)
    apart = max(float((found.adapter_parameters[n] - v).abs().max()) for n, v in free.adapter_parameters.items())
    assert apart > 1e-3  # the strength tells


def test_a_decoupled_step_comes_before_the_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW starts from where the regularizer has put weights and head, with the loss's gradient from before."""
    seen: list[str] = []
    quadratic, head, adam = Quadratic.step, RegularizedHead.regularize, torch.optim.AdamW.step

    def told(name: str, function: Any) -> Any:
        return lambda *args, **kwargs: (seen.append(name), function(*args, **kwargs))[1]

    monkeypatch.setattr(Quadratic, "step", told("weights", quadratic))
    monkeypatch.setattr(RegularizedHead, "regularize", told("head", head))
    monkeypatch.setattr(torch.optim.AdamW, "step", told("AdamW", adam))
    tuned_on(0, LoRA(1), ITA(1.0), replace(PLAIN, step="decoupled", epochs=1))
    assert seen == ["weights", "head", "AdamW"] * 2
    seen.clear()
    tuned_on(0, LoRA(1), ITA(1.0), replace(PLAIN, step="proximal", epochs=1))
    assert seen == ["AdamW", "head", "AdamW", "weights", "head"]  # one proximal step for both batches


def test_cards_measure_the_training(pool: Pool) -> None:
    theta0 = TaskVector(pool.backbone.trainable)
    for number, task in enumerate(pool.tasks):
        card, learned = pool.card(task), pool.module(task)
        assert card.measures["relative_norm"] > 1e-3
        assert card.measures["relative_norm"] == pytest.approx(float(pool.vector(task).norm() / theta0.norm()))
        moved = (learned.head.weight - learned.reference.weight).norm() / learned.reference.weight.norm()
        assert card.measures["head_moved"] == pytest.approx(float(moved))
        assert all(math.isfinite(x) for x in card.measures["losses"])
        assert card.images == 12
        assert card.influenced_by.fisher == card.influenced_by.statistics == pool.tasks[:number]
        assert card.influenced_by.vectors == ()
        assert card.settings["method"] == "ita"
        assert card.settings["strength"] == 0.1
        assert card.settings["epochs"] == 2


def test_the_papers_head_starts_at_a_truncated_normal_and_ours_at_its_reference_head() -> None:
    heads = [tuned_on(0, LoRA(1), ITA(), replace(training, lr=0.0))[1] for training in (PLAIN, PAPER)]
    _, state = prepare(backbone(), stream(2)[0], LearnerState(), PLAIN)
    assert state.reference is not None
    assert same(heads[0].tensors(), state.reference.tensors())
    drawn = Head.truncated_normal(2, state.reference.weight.shape[1], Seeds(PAPER.seed, 1).generator("head start"))
    assert same(heads[1].tensors(), drawn.tensors())


STEPS = ("class statistics", "reference heads", "Fisher")


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[str, str, int, int]] = []

    def progress(phase: str, done: int, total: int) -> None:
        task, _, phase = phase.rpartition(": ")
        told.append((task, phase, done, total))

    learn(backbone(), stream(2), adapter=LoRA(1), training=QUICK, out=tmp_path / "p", progress=progress)
    phases = list(dict.fromkeys((task, phase) for task, phase, _, _ in told))
    steps = [(t, p) for t in ("task01", "task02") for p in ("features", *STEPS, "training")]
    assert phases == [("", "decoding"), *steps]
    ends = {(task, phase): (done, total) for task, phase, done, total in told}
    assert set(ends.values()) == {(40, 40), (12, 12), (2, 2), (1, 1)}


# Failures


def test_features_that_are_not_finite_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    theta0 = backbone()
    with torch.no_grad():
        theta0.model.get_parameter("norm.bias").fill_(float("inf"))
    with pytest.raises(DivergenceError, match=r"task 'task01': .* features of 12 of its 12 images are not finite"):
        learn(theta0, stream(), out=tmp_path / "p")
    assert not (tmp_path / "p").exists()


DIVERGE: dict[str, tuple[Adapter, ITA | IEL, Settings]] = {
    "clipped": (LoRA(2), IEL(1e3), replace(QUICK, step="decoupled")),
    "strength": (Full(), ITA(1e60), replace(QUICK, step="decoupled")),
    "coupled": (Full(), ITA(1e60), replace(QUICK, step="coupled")),
    "lr": (Full(), ITA(0.1), replace(QUICK, lr=1e36)),
}


@pytest.mark.parametrize("how", DIVERGE)
def test_divergence_names_task_step_and_strength_and_leaves_the_pool(how: str, tmp_path: Path) -> None:
    adapter, regularizer, training = DIVERGE[how]
    out = tmp_path / "p"
    learn(backbone(), stream().subset([0, 1]), adapter=adapter, training=QUICK, out=out)
    before, theta0 = contents(out), backbone()
    with pytest.raises(DivergenceError) as caught:
        learn(
            theta0,
            stream().subset([2, 3]),
            adapter=adapter,
            regularizer=regularizer,
            training=training,
            out=out,
            add=True,
        )
    message = str(caught.value)
    assert isinstance(caught.value, InputError)
    for part in ("task 'task03'", f"step {training.step}", f"strength {regularizer.strength:g}", f"lr {training.lr:g}"):
        assert part in message
    assert contents(out) == before
    assert theta0.hash == Backbone(theta0.model, name="again", preprocessing=GREY).hash  # the adapter is off again
    learn(theta0, stream().subset([2, 3]), adapter=adapter, training=QUICK, out=out, add=True)
    assert Pool.open(out).tasks == ("task01", "task02", "task03", "task04")


def test_an_interrupted_run_keeps_what_it_finished_and_can_be_given_up(learned: Path, tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        task, _, phase = phase.rpartition(": ")
        if (task, phase) == ("task03", "training"):
            raise KeyboardInterrupt

    options: dict[str, Any] = {"adapter": LoRA(2), "regularizer": ITA(0.1), "training": QUICK}
    out, theta0 = tmp_path / "p", backbone()
    with pytest.raises(KeyboardInterrupt):
        learn(theta0, stream(), out=out, progress=interrupt, **options)
    assert Pool.open(out).tasks == ("task01", "task02")
    with pytest.raises(InputError, match=r"stopped in task 'task03' after epoch 1: `intarsia learn --resume --out"):
        learn(theta0, stream().subset([2, 3]), out=out, add=True, **options)
    shutil.rmtree(out / ".run")
    learn(theta0, stream().subset([2, 3]), out=out, add=True, **options)
    without = {"log.jsonl", "card.json", "pool.json"}
    assert contents(out, without) == contents(learned, without)


def test_a_broken_image_is_found_before_anything_is_written(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for side in ("train", "test"):
        for kind in ("a", "b"):
            (photos / side / kind).mkdir(parents=True)
            for i in range(2):
                shutil.copy(_png(tmp_path), photos / side / kind / f"{i}.png")
    (photos / "test" / "b" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"test/b/1\.png"):
        learn(backbone(), TaskStream.load(f"folder:{photos}"), training=QUICK, out=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def _png(folder: Path) -> Path:
    from PIL import Image  # noqa: PLC0415  of this one test

    path = folder / "grey.png"
    Image.new("L", (8, 8), 100).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("probes", 0), ("lr", -1.0), ("lr", float("nan")), ("lambda_h", float("inf"))],
)
def test_training_settings_that_are_none_are_refused(name: str, value: float) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=name.replace("_", "-")):
        settings(**changes)


@pytest.mark.parametrize(
    ("training", "regularizer", "classes"),
    [(QUICK, ITA(), 4), (QUICK, IEL(), 4), (PAPER, ITA(), 4), (PAPER, IEL(), 2)],
    ids=["ita", "iel", "the paper's ita", "the paper's iel"],
)
def test_head_fisher_is_taken_on_the_classes_seen_or_the_papers_iel_on_the_earlier_ones(
    training: Settings, regularizer: ITA | IEL, classes: int
) -> None:
    """Mean p (1 - p) f^2 on features drawn from their statistics, the softmax over all classes seen; then the floor."""
    tasks, seeds = stream(2), Seeds(training.seed, 2)
    _, state = prepare(backbone(), tasks[0], LearnerState(), training)
    second, state = prepare(backbone(), tasks[1], state, training)
    assert state.reference is not None
    features, _ = sample(state.seen.tasks[: classes // 2], 256, seeds.generator("head fisher"))
    p = torch.softmax(state.reference(features), 1)[:, 2:]
    got = starting_head(
        second, state, training, seeds, torch.device("cpu"), through_mean=regularizer.through_mean
    ).fisher
    torch.testing.assert_close(got.weight, torch.einsum("nc,nd->cd", p * (1 - p), features**2) / len(features) + 1e-5)
    torch.testing.assert_close(got.bias, (p * (1 - p)).mean(0) + 1e-5)


@pytest.mark.parametrize(("training", "floor"), [(QUICK, 1e-5), (PAPER, 1e-5 / 12)], ids=["ours", "the paper's"])
def test_the_papers_floor_of_ita_is_divided_by_the_images(
    training: Settings, floor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, expected in ((ITA, floor), (IEL, 1e-5)):
        seen = Seen(kind, monkeypatch)
        learn(
            backbone(), stream(2), adapter=LoRA(1), regularizer=kind(1e-3), training=training, out=tmp_path / kind.kind
        )
        pool = Pool.open(tmp_path / kind.kind, backbone())
        metric, running = seen.calls[-1][0], pool.fisher()
        assert metric is not None
        assert running is not None
        if kind is ITA:
            _, state = prepare(backbone(), stream(2)[0], LearnerState(), training)
            running = state.fisher
            assert running is not None
            assert running.count == 12
        for name, total in running.tensors().items():
            torch.testing.assert_close(metric[name], total / running.count + expected, rtol=1e-6, atol=1e-10)


def test_only_the_named_weights_are_tuned(tmp_path: Path) -> None:
    theta0 = Backbone(tiny_vit(), name="tiny0", preprocessing=GREY, targets=["blocks.1.mlp.*"])
    pool = learn(theta0, stream(2), adapter=Full(), training=QUICK, out=tmp_path / "p")
    assert list(pool.vector("task01")) == ["blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight"]
    merged, plain = pool.mean().network.state_dict(), theta0.model.state_dict()
    changed = {name for name, value in merged.items() if not torch.equal(value, plain[name])}
    assert changed == set(pool.vector("task01"))


@given(every=st.integers(1, 9), images=st.integers(1, 40))
def test_rarer_proximal_steps_are_as_large_as_those_left_out(every: int, images: int) -> None:
    """Batches of one image: an epoch has as many as there are images."""
    implicit = replace(PLAIN, epochs=2, batch_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("intarsia.training.fine_tuning.PROXIMAL_EVERY", every)
        due = [steps_due(batch) for batch in batches(implicit, torch.zeros(images, dtype=torch.long), seeded(0))]
    assert sum(due[:images]) == sum(due[images:]) == images
    assert max(due) <= every


def test_settings_that_are_not_given_are_those_of_the_method_and_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {("ita", "lora"): (1e-3, 0.25, 1), ("iel", "ia3"): (1e-2, 4.0, 2)}
    monkeypatch.setattr("intarsia.training.recommended.RECOMMENDED", chosen)
    first = learn(backbone(), stream(1), out=tmp_path / "a")
    settings = first.card(first.tasks[0]).settings
    lr = suited(1e-3, "lora", backbone().sizes)
    assert (settings["method"], settings["strength"], settings["lr"]) == ("ita", 0.25, lr)
    second = learn(backbone(), stream(1), out=tmp_path / "b", adapter=IA3(), regularizer=IEL(2.0))
    settings = second.card(second.tasks[0]).settings
    assert (settings["method"], settings["strength"], settings["lr"]) == ("iel", 2.0, 1e-2)
    assert settings["epochs"] == 2
