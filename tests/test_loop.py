"""The training loop's economies: images read ahead, no waiting within an epoch, parts, activations computed again."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cases import ADAPTERS, GREY, KINDS, QUICK, backbone, repeated, split_backbone, stream
from intarsia import IEL, ITA, Backbone, LoRA, Pool, TaskStream, learn
from intarsia.adapters import Adapter
from intarsia.backbones.forward import normalized, outputs, read_ahead
from intarsia.curvature import taps
from intarsia.curvature.squares import add_squares
from intarsia.data.pixels import Lazy
from intarsia.errors import InputError
from intarsia.numerics import products_in
from intarsia.regularizers.choices import Step
from intarsia.regularizers.l2 import L2
from intarsia.training import fine_tuning, steps
from intarsia.training.loop import network_to_train
from intarsia.training.schedule import Batch
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState, PreparedTask
from intarsia.training.task import prepare

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CARD = Path(__file__).parents[1] / "benchmarks" / "performance" / "card.py"
FEATURES, FISHER = 0.02, 0.05
"""Relative errors of bfloat16 at most."""
HELD = ITA(1.0), IEL(1.0), L2(0.1)
STEPS: tuple[Step, ...] = ("proximal", "decoupled", "coupled")
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)
each_regularizer = pytest.mark.parametrize("regularizer", HELD, ids=("ita", "iel", "l2"))


def dense(pool: Pool) -> Tensor:
    """All task vectors, one after another."""
    return torch.cat([tau.flatten() for task in pool.tasks for tau in pool.vector(task).values()])


def learned(out: Path, adapter: Adapter, regularizer: ITA | IEL, training: Settings) -> Tensor:
    """Two tasks' vectors in double precision: rounding does not hide what differs."""
    theta0 = backbone(dtype=torch.float64)
    return dense(learn(theta0, stream(2), out=out, adapter=adapter, regularizer=regularizer, training=training))


def numbers(count: int) -> Tensor:
    """Images (N, 1, 8, 8), each of its own number."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()


def lazy(images: Tensor, read: Callable[[Any], object] = lambda _: None) -> Lazy:
    """The same images, read when they are asked for."""

    def rows(which: Any) -> Tensor:
        read(which)
        return images[list(which)]

    return Lazy(len(images), rows)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("intarsia-reader")]


# Reading ahead


def test_images_come_in_order_and_the_next_are_read_while_some_are_used() -> None:
    begun: list[list[int]] = []
    keys = [[2, 0], [1], [4, 3, 5]]
    images = lazy(numbers(6), lambda rows: begun.append(list(rows)))
    with closing(read_ahead(images, keys, torch.tensor, CPU)) as batches:
        for number, (key, batch) in enumerate(batches):
            assert key == keys[number]
            assert batch[:, 0, 0, 0].tolist() == key
            wanted, end = min(number + 2, 3), time.monotonic() + 20
            while len(begun) < wanted and time.monotonic() < end:
                time.sleep(0.001)
            assert begun == keys[:wanted]
    assert not readers()


def test_after_the_end_of_an_epoch_nothing_is_read_ahead() -> None:
    """The order of the next depends on what the last batch draws."""
    asked: list[int] = []

    def keys() -> Any:
        for number in range(4):
            asked.append(number)
            yield number

    ahead = read_ahead(lazy(numbers(4)), keys(), lambda n: slice(n, n + 1), CPU, ends=lambda n: n % 2 == 1)
    with closing(ahead) as batches:
        for number, _ in batches:
            assert asked == list(range(number + 1 if number % 2 else number + 2))
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [InputError("cut off"), KeyboardInterrupt()], ids=("reader's", "interrupt"))
def test_what_a_reader_raises_is_raised_and_no_thread_is_left(error: BaseException, tmp_path: Path) -> None:
    def read(rows: Any) -> None:
        if 5 in rows:
            raise error

    for use in (
        lambda images: outputs(lambda x: x.flatten(1), images, GREY, CPU),
        lambda images: list(normalized(images, GREY, CPU)),
    ):
        with pytest.raises(type(error)):
            use(lazy(numbers(70), read))
        assert not readers()


def test_no_thread_is_left_where_training_fails_or_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = stream(1)
    images = tasks[0].train.tensor(GREY)
    monkeypatch.setattr(type(tasks[0].train), "pixels", lambda *_: lazy(images))
    seen: list[int] = []

    def fail(*_: object) -> None:
        seen.append(len(readers()))
        raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning, "batch_drift", fail)
    with pytest.raises(KeyboardInterrupt):
        learn(backbone(), tasks, out=tmp_path / "p", training=replace(QUICK, batch_size=2))
    assert seen == [1]
    assert not readers()


# No waiting


class Waiting(TorchDispatchMode):
    """Operations that make the processor wait for a device, while ``on``."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.found, self.seen = False, list[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation of torch."""
        if self.on:
            self.seen += 1
            by_booleans = func is torch.ops.aten.index.Tensor and any(
                i is not None and i.dtype == torch.bool for i in args[1]
            )
            if by_booleans or func in (
                torch.ops.aten._local_scalar_dense.default,
                torch.ops.aten.nonzero.default,
                torch.ops.aten.masked_select.default,
                torch.ops.aten.equal.default,
            ):
                self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@each_adapter
@pytest.mark.parametrize("step", STEPS)
def test_no_step_looks_at_a_number_of_the_device(
    adapter: Adapter, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the end of an epoch's first step to the end of its last; on a card, test_cuda.py asks torch itself."""
    train, waiting = fine_tuning.train, Waiting()

    def watched(*args: Any, after_step: Callable[[Batch], None], **options: Any) -> list[float]:
        def after(batch: Batch) -> None:
            if batch.ends_epoch:
                waiting.on = False
            after_step(batch)
            waiting.on = not batch.ends_epoch

        with waiting:
            return train(*args, after_step=after, **options)

    def as_on_a_card(settings: Settings, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        return torch.optim.AdamW(list(parameters), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)

    monkeypatch.setattr(fine_tuning, "train", watched)
    monkeypatch.setattr(fine_tuning, "adamw", as_on_a_card)  # the plain one counts its steps in numbers
    tasks = replace(stream(2), augmentation="photo")
    for regularizer in HELD[:2]:
        settings = replace(QUICK, step=step, batch_size=3)
        learn(
            backbone(),
            tasks,
            out=tmp_path / regularizer.kind,
            adapter=adapter,
            regularizer=regularizer,
            training=settings,
        )
    assert waiting.seen > 100
    assert waiting.found == []


# Parts, and activations computed again


@each_adapter
@each_regularizer
@pytest.mark.parametrize("centered", [True, False], ids=("centered", "plain"))
def test_a_batch_in_parts_is_the_same_step(
    adapter: Adapter, regularizer: ITA | IEL, centered: bool, tmp_path: Path
) -> None:
    """The mean drift is that of the whole batch: of each part it would be another."""
    how = replace(QUICK, center_features=centered, drift_penalty=float(centered))
    whole = learned(tmp_path / "whole", adapter, regularizer, how)
    parts = learned(tmp_path / "parts", adapter, regularizer, replace(how, accumulate=3))
    assert float((parts - whole).norm()) < 1e-5 * float(whole.norm())
    smaller = learned(tmp_path / "smaller", adapter, regularizer, replace(how, batch_size=3))
    assert float((smaller - whole).norm()) > 1e-2 * float(whole.norm())


@each_adapter
@each_regularizer
def test_activations_computed_again_are_the_same(adapter: Adapter, regularizer: ITA | IEL, tmp_path: Path) -> None:
    whole = learned(tmp_path / "whole", adapter, regularizer, QUICK)
    for how in ({}, {"accumulate": 2}):
        training = replace(QUICK, grad_checkpointing=True, **how)
        again = learned(tmp_path / f"again{len(how)}", adapter, regularizer, training)
        assert float((again - whole).norm()) < 1e-5 * float(whole.norm())


@pytest.mark.parametrize("how", ["grad_checkpointing", "accumulate"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_every_precision_goes_with_them(how: str, precision: Any, tmp_path: Path) -> None:
    """What is computed again has the type and the kernels that it had."""
    training = replace(QUICK, precision=precision)
    kept, again = (
        learn(backbone(), stream(1), out=tmp_path / name, adapter=LoRA(2), training=replace(training, **more))
        for name, more in (("kept", {}), ("again", {how: 2 if how == "accumulate" else True}))
    )
    torch.testing.assert_close(dense(again), dense(kept), rtol=0, atol=0.02 if precision == "bf16" else 1e-4)


@pytest.mark.parametrize("how", [{}, {"accumulate": 2}, {"grad_checkpointing": True}], ids=("kept", "parts", "blocks"))
def test_activations_are_computed_again_one_part_or_block_at_a_time(how: dict[str, Any]) -> None:
    """In the backward pass: forward of one (its images), then back through it, then the next."""
    theta0, events, kept = backbone(), list[str](), 0

    def look(name: str) -> Callable[..., None]:
        def hook(_: object, __: object, output: Tensor) -> None:
            events.append(f"{name} of {len(output)}")
            output.register_hook(lambda g: events.append(f"back {name} of {len(g)}"))

        return hook

    def pack(x: Tensor) -> Tensor:
        nonlocal kept
        kept += 1
        return x

    with theta0.attach(LoRA(2)):
        for name, block in zip("ab", theta0.blocks(), strict=True):
            inner = block.get_submodule("mlp.fc1")
            inner.register_forward_hook(look(name))
        network = network_to_train(theta0, replace(QUICK, **how))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            features = network(torch.randn(4, 1, 8, 8))
        ahead, events[:] = [*events], []
        features.sum().backward()
    if not how:
        assert ahead == ["a of 4", "b of 4"]
        assert events == ["back b of 4", "back a of 4"]
        assert kept > 20
    elif "accumulate" in how:
        assert ahead == ["a of 2", "b of 2"] * 2
        assert events == ["a of 2", "b of 2", "back b of 2", "back a of 2"] * 2
        assert kept <= 2
    else:
        assert ahead == ["a of 4", "b of 4"]
        assert events == ["b of 4", "back b of 4", "a of 4", "back a of 4"]
        assert kept < 10


# Precision


def test_tf32_is_set_for_the_work_alone_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}

    def looking(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any, **options: Any) -> Any:
            seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
            return real(*args, **options)

        return look

    for where, name in ((fine_tuning, "batch_drift"), (steps, "outputs"), (taps, "logit_vectors")):
        monkeypatch.setattr(where, name, looking(name, getattr(where, name)))
    learn(backbone(), stream(1), out=tmp_path / "p", training=replace(QUICK, precision="tf32"))
    assert seen == {"batch_drift": {"high"}, "outputs": {"high"}, "logit_vectors": {"high"}}
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(InputError), products_in("tf32", CPU):
        raise InputError("in the middle")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture(scope="module")
def prepared() -> dict[str, PreparedTask]:
    """A task of the built-in stream after steps 1 to 4, by precision; its reference heads are those of its features."""
    theta0, tasks = Backbone.load(), TaskStream.load(max_per_class=4)
    return {p: prepare(theta0, tasks[0], LearnerState(), Settings(precision=p))[0] for p in ("fp32", "bf16")}


def test_features_and_fisher_in_bfloat16_lie_near_those_in_float32(prepared: dict[str, PreparedTask]) -> None:
    """Nearer than half of the images come to the other half: docs/performance.md has the figures."""
    exact, near = prepared["fp32"], prepared["bf16"]
    away = float((near.features - exact.features).norm() / exact.features.norm())
    assert 1e-4 < away < FEATURES
    apart = [(near.fisher.tensors()[n] - f).square().sum() for n, f in exact.fisher.tensors().items()]
    error = float(sum(apart) / sum(f.square().sum() for f in exact.fisher.tensors().values())) ** 0.5
    assert 1e-4 < error < FISHER
    assert exact.fisher.error is not None
    assert error < exact.fisher.error
    assert {s.dtype for s in near.fisher.tensors().values()} == {torch.float32}


def test_sums_of_squares_stay_in_float32() -> None:
    """In bfloat16, 1 is too small beside 256 to be added."""
    into = torch.full((2, 3), 256.0)
    for _ in range(8):
        add_squares(into, torch.ones(1, 1, 3), torch.ones(1, 1, 2, dtype=torch.bfloat16))
    assert torch.equal(into, torch.full((2, 3), 264.0))


# Blocks


def test_blocks_are_the_longest_list_with_trainable_weights_inside() -> None:
    theta0 = backbone()
    assert theta0.blocks() == [*theta0.model.get_submodule("blocks").children()]
    split = split_backbone()
    assert split.blocks() == [*split.model.get_submodule("blocks").children()]
    with theta0.attach(LoRA(2)):
        assert theta0.blocks() == [*theta0.model.get_submodule("blocks").children()]
        network_to_train(theta0, replace(QUICK, grad_checkpointing=True))(torch.zeros(2, 1, 8, 8))
    assert not any("forward" in vars(module) for module in theta0.model.modules())


def test_without_blocks_or_compiled_it_is_refused_by_name(tmp_path: Path) -> None:
    settings = replace(QUICK, grad_checkpointing=True)
    none = repeated("called twice", torch.float32)
    assert none.blocks() == []
    with pytest.raises(InputError, match="--grad-checkpointing: called twice has no list of blocks"):
        learn(none, stream(1), out=tmp_path / "p", training=settings)
    with pytest.raises(InputError, match="leave one out"):
        network_to_train(backbone(), replace(settings, compile=True))


# The script for a card


def test_the_script_for_a_card_runs_to_its_end_tiny(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    options = ["--device", "cpu", "--small", "--precision", "bf16", "--rows", str(rows), "--json"]
    done = subprocess.run([sys.executable, str(CARD), *options], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["rows"]
    assert [json.loads(line)["what"] for line in rows.read_text().splitlines()] == [row["what"] for row in found]
    assert len(found) == 11
    assert not [row for row in found if "error" in row and not isinstance(row["error"], float)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_its_script_says_so_in_one_line() -> None:
    done = subprocess.run([sys.executable, str(CARD)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no CUDA device is here" in done.stderr
