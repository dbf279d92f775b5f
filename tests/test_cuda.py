"""What a card computes, against the same on the CPU; not run where there is no card."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import ADAPTERS, GREY, KINDS, QUICK, backbone, randn, stream
from intarsia import IEL, ITA, LoRA, Pool, learn
from intarsia.adapters import Adapter
from intarsia.curvature.squares import _kernel, add_squares
from intarsia.evaluation.landscape import gap_path, loss_paths
from intarsia.evaluation.theorem import diagnose
from intarsia.pool import merged
from intarsia.regularizers.choices import Step
from intarsia.study.methods import METHODS
from intarsia.training import fine_tuning
from intarsia.training.schedule import Batch

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),  # of torch, in autograd's thread, once per process
]
NEAR: dict[str, Any] = {"rtol": 0.0, "atol": 0.02}
HELD = ITA(1.0), IEL(1.0)
STEPS: tuple[Step, ...] = ("proximal", "decoupled", "coupled")


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def images() -> Tensor:
    return torch.cat([task.test.tensor(GREY) for task in stream(3)])


def dense(pool: Pool) -> Tensor:
    """All task vectors, one after another."""
    return torch.cat([tau.flatten().cpu() for task in pool.tasks for tau in pool.vector(task).values()])


def learned(out: Path, device: str, regularizer: ITA | IEL, **options: Any) -> Pool:
    return learn(backbone().to(device), stream(3), out=out, regularizer=regularizer, **{"training": QUICK, **options})


@pytest.mark.parametrize(("images", "tokens", "width", "outputs"), [(3, 5, 7, 4), (64, 65, 192, 576), (16, 1, 3, 130)])
def test_the_kernel_adds_what_double_precision_adds(images: int, tokens: int, width: int, outputs: int) -> None:
    a, g = randn(images, tokens, width, seed=0), randn(images, tokens, outputs, seed=1)
    assert _kernel() is not None
    expected = 0.5 * torch.bmm(g.transpose(1, 2), a).square().sum(0)
    got = torch.zeros(outputs, width, device="cuda")
    add_squares(got, a.float().cuda(), g.float().cuda(), 0.5)
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)
@pytest.mark.parametrize("regularizer", HELD, ids=("ita", "iel"))
def test_a_card_learns_what_a_cpu_learns(adapter: Adapter, regularizer: ITA | IEL, tmp_path: Path) -> None:
    for how in STEPS:
        options = {"adapter": adapter, "training": replace(QUICK, step=how)}
        here = learned(tmp_path / f"cpu-{how}", "cpu", regularizer, **options)
        there = learned(tmp_path / f"cuda-{how}", "cuda", regularizer, **options)
        torch.testing.assert_close(there.mean().logits(images()), here.mean().logits(images()), **NEAR)
        free = learned(tmp_path / f"free-{how}", "cpu", type(regularizer)(0.0), **options)
        assert (dense(there) - dense(here)).norm() < 0.2 * (dense(free) - dense(here)).norm()  # its steps are seen
        fisher, expected = there.fisher(), here.fisher()
        assert fisher is not None
        assert expected is not None
        for name, sums in fisher.tensors().items():
            assert sums.is_cuda
            torch.testing.assert_close(sums.cpu(), expected.tensors()[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("regularizer", HELD, ids=("ita", "iel"))
@pytest.mark.parametrize("over", ["earlier", "others"])
def test_a_run_goes_on_on_a_card_and_a_pool_takes_another_task(
    regularizer: ITA | IEL, over: Any, tmp_path: Path
) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        task, _, phase = phase.rpartition(": ")
        if (task, phase, done) == ("task02", "training", 1):
            raise KeyboardInterrupt

    options: dict[str, Any] = {"training": replace(QUICK, fisher_over=over)}
    whole = learned(tmp_path / "whole", "cuda", regularizer, **options)
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path / "stopped", "cuda", regularizer, progress=stop, **options)
    resumed = learned(tmp_path / "stopped", "cuda", regularizer, resume=True, **options)
    torch.testing.assert_close(resumed.mean().logits(images()), whole.mean().logits(images()), **NEAR)
    for place in range(3):
        part, out = stream(3).subset([place]), tmp_path / "grown"
        learn(backbone().to("cuda"), part, out=out, regularizer=regularizer, add=place > 0, **options)
    grown = Pool.open(tmp_path / "grown", backbone().to("cuda"))
    if over == "earlier":
        torch.testing.assert_close(grown.mean().logits(images()), whole.mean().logits(images()), **NEAR)
    assert grown.tasks == whole.tasks


def test_a_pool_on_a_card_is_merged_edited_and_diagnosed(tmp_path: Path) -> None:
    learned(tmp_path / "p", "cpu", ITA(0.1), adapter=LoRA(2), keep_fishers=True)
    here, there = (Pool.open(tmp_path / "p", backbone().to(device)) for device in ("cpu", "cuda"))
    for what in (
        lambda pool: merged(pool, "ties"),
        lambda pool: merged(pool, "dare"),
        lambda pool: merged(pool, "fisher"),
        lambda pool: pool.specialize(["task02"]),
        lambda pool: pool.unlearn("task01"),
        lambda pool: pool.unlearn("task01", mode="negate"),
        lambda pool: pool.weighted({"task01": 0.3, "task03": 0.7}),
    ):
        torch.testing.assert_close(what(there).logits(images()), what(here).logits(images()), rtol=1e-3, atol=1e-3)
    (a, b), (c, d) = ([diagnose(pool, stream(3)), gap_path(pool, stream(3))] for pool in (here, there))
    lines = [loss_paths(pool, stream(3), at=[0.0, 1.0]) for pool in (here, there)]
    for one, other in ((a, c), (b, d), *zip(*lines, strict=True)):
        for name, value in vars(one).items():
            if name not in ("tasks", "name"):
                expected, got = torch.tensor(value), torch.tensor(vars(other)[name])
                torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_on_a_card_as_on_a_cpu(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    training = replace(method.settings, epochs=2, batch_size=8, pretune_epochs=1)
    answers = []
    for device in ("cpu", "cuda"):
        *_, stage = method.baseline.train(backbone().to(device), stream(3), training, folder=tmp_path / device)
        answers.append(stage.model.logits(images()))
        if stage.modules is not None:
            answers[-1] = torch.cat([answers[-1], stage.modules.mean.logits(images())])
    torch.testing.assert_close(answers[1], answers[0], rtol=0.02, atol=0.05)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)
@pytest.mark.parametrize("how", STEPS)
def test_no_step_waits_for_the_card(
    adapter: Adapter, how: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the end of an epoch's first step to the end of its last, torch raises where the card is waited for."""
    train, steps = fine_tuning.train, 0

    def watched(*args: Any, after_step: Callable[[Batch], None], **options: Any) -> list[float]:
        def after(batch: Batch) -> None:
            nonlocal steps
            if batch.ends_epoch:
                torch.cuda.set_sync_debug_mode("default")
            after_step(batch)
            torch.cuda.set_sync_debug_mode("default" if batch.ends_epoch else "error")
            steps += 1

        try:
            return train(*args, after_step=after, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(fine_tuning, "train", watched)
    for regularizer in HELD:
        options: dict[str, Any] = {"adapter": adapter, "training": replace(QUICK, step=how, batch_size=3)}
        tasks = replace(stream(3), augmentation="photo")
        learn(backbone().to("cuda"), tasks, out=tmp_path / regularizer.kind, regularizer=regularizer, **options)
    assert steps > 20


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("more", [{}, {"accumulate": 2}, {"grad_checkpointing": True}], ids=("", "parts", "again"))
def test_a_card_learns_in_every_precision_nearly_the_same(precision: Any, more: dict[str, Any], tmp_path: Path) -> None:
    pools = [
        learned(tmp_path / name, "cuda", ITA(1.0), training=replace(QUICK, precision=name, **options))
        for name, options in (("fp32", {}), (precision, more))
    ]
    exact, near = (pool.mean().logits(images()) for pool in pools)
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0.1)
    fishers = [pool.fisher() for pool in pools]
    assert all(f is not None and {s.dtype for s in f.tensors().values()} == {torch.float32} for f in fishers)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_the_kernel_takes_what_autocast_gives(kind: torch.dtype) -> None:
    a, g = randn(16, 65, 192, seed=0).to(kind), randn(16, 65, 130, seed=1).to(torch.bfloat16)
    expected = torch.bmm(g.double().transpose(1, 2), a.to(torch.bfloat16).double()).square().sum(0)
    got = torch.zeros(130, 192, device="cuda")
    add_squares(got, a.cuda(), g.cuda())
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-4, atol=1e-3)
