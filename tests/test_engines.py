"""Engines: tasks learned beside each other give the pool of one process, bit for bit, whatever fails on the way."""

import pickle
import random
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import refused

from cases import ADAPTERS, KINDS, QUICK, backbone, contents, photographs, same, small_vit, stream
from intarsia import IEL, ITA, Backbone, InputError, LoRA, Pool, TaskStream, learn
from intarsia.adapters import Adapter
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.cli.main import parsed
from intarsia.engines.cluster import Calls
from intarsia.engines.packing import pack, unpack
from intarsia.engines.parallel import Parallel
from intarsia.engines.ray import Ray
from intarsia.engines.staging import Staging
from intarsia.engines.worker import Job, Worker
from intarsia.errors import DivergenceError
from intarsia.parallel.processes import Processes
from intarsia.training import steps
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.fine_tuning import Configuration
from intarsia.training.settings import Training
from intarsia.training.state import LearnedTask

APART = {"log.jsonl"}
OTHERS = replace(QUICK, fisher_over="others")
OPTIONS: dict[str, Any] = {"adapter": LoRA(2), "regularizer": ITA(0.1), "training": OTHERS}
pytestmark = pytest.mark.slow
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)


class StoppedError(Exception):
    """The driver dies."""


@dataclass
class Inline:
    """A cluster without processes: calls are made when they are waited for, in an order drawn at random."""

    worker: Worker
    drawn: random.Random
    made: list[tuple[str, str]]
    dies_after: int | None
    waiting: dict[int, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)
    values: dict[int, bytes | InputError] = field(default_factory=dict)
    count: int = 0

    def put(self, data: bytes) -> int:
        self.count += 1
        self.values[self.count] = data
        return self.count

    def get(self, reference: int) -> bytes:
        found = self.values[reference]
        if isinstance(found, InputError):
            raise found
        return found

    def call(self, method: str, *arguments: Any) -> int:
        self.count += 1
        self.waiting[self.count] = (method, arguments)
        return self.count

    def wait(self, references: Sequence[int]) -> int:
        if self.dies_after is not None and len(self.made) >= self.dies_after:
            raise StoppedError
        chosen = self.drawn.choice(sorted(references))
        method, (name, number, *rest) = self.waiting.pop(chosen)
        self.made.append((method, name))
        given = [self.values[r] if method != "tune" or i > 0 else r for i, r in enumerate(rest)]
        try:
            self.values[chosen] = getattr(self.worker, method)(name, number, *given)
        except InputError as error:
            self.values[chosen] = error
        return chosen


@dataclass(frozen=True)
class InlineEngine(Ray):
    """Ray's engine on such a cluster."""

    order: int = 0
    dies_after: int | None = None
    made: list[tuple[str, str]] = field(default_factory=list)

    def check(self, regularizer: Any, settings: Any) -> None:
        pass

    def learned_tasks(
        self,
        backbone: Backbone,
        stream: TaskStream,
        configuration: Configuration,
        state: Any,
        *,
        known: Any = (),
        checkpoint: Checkpoint | None = None,
        progress: Any = None,
    ) -> Generator[LearnedTask]:
        job = Job.of(backbone, stream, configuration, device="cpu", threads=1)
        cluster = Inline(Worker(job), random.Random(self.order), self.made, self.dies_after)
        calls = Calls(cluster, Staging.of(checkpoint.folder if checkpoint else None), self.workers)
        run = Parallel(cluster, calls, backbone, stream, configuration, state, known, 1, progress)
        yield from run.learned_tasks()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pool of one process."""
    return learn(backbone(), stream(), out=tmp_path_factory.mktemp("one") / "p", **OPTIONS).path


def none_twice(made: Sequence[tuple[str, str]]) -> bool:
    return len(set(made)) == len(made)


@each_adapter
def test_whatever_the_order_of_the_workers_the_pool_is_that_of_one_process(adapter: Adapter, tmp_path: Path) -> None:
    options = {**OPTIONS, "adapter": adapter}
    learn(backbone(), stream(), out=tmp_path / "one", **options)
    for order, workers in enumerate((1, 3, None, None)):
        out, engine = tmp_path / str(order), InlineEngine(workers=workers, order=order)
        learn(backbone(), stream(), out=out, engine=engine, **options)
        assert contents(out, APART) == contents(tmp_path / "one", APART)
        assert none_twice(engine.made)


def test_workers_look_at_the_images_as_often_as_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four tasks: 2 passes for features of the first, 4 of the second (theta0, two means, alone), then 5 each."""
    passes: list[int] = []
    plain = steps.outputs

    def counted(*arguments: Any, **how: Any) -> torch.Tensor:
        passes[-1] += 1
        return plain(*arguments, **how)

    monkeypatch.setattr(steps, "outputs", counted)
    for engine in (None, InlineEngine()):
        passes.append(0)
        learn(backbone(), stream(), out=tmp_path / str(len(passes)), engine=engine, **OPTIONS)
    assert passes == [16, 16]


@pytest.mark.parametrize(
    "change",
    [{"class_balanced": True}, {"protocol": "paper"}, {"precision": "bf16"}],
    ids=["balanced", "paper", "bf16"],
)
def test_tasks_are_added_to_a_pool_beside_each_other(change: dict[str, Any], tmp_path: Path) -> None:
    training = replace(OTHERS, **change)
    for out, engine in (("one", None), ("many", InlineEngine(order=4))):
        options = {**OPTIONS, "training": training, "out": tmp_path / out, "engine": engine, "keep_fishers": True}
        learn(backbone(), stream().subset([0]), **options)
        learn(backbone(), stream().subset([1, 2, 3]), add=True, **options)
    assert contents(tmp_path / "many", APART) == contents(tmp_path / "one", APART)


@pytest.mark.parametrize("after", [0, 1, 5, 9, 13, 14])
def test_a_driver_that_dies_goes_on_with_all_that_workers_had_done(after: int, one: Path, tmp_path: Path) -> None:
    """Of four tasks: 4 features, 4 Fishers, 4 trainings, 3 places."""
    first, second, out = InlineEngine(dies_after=after, order=after), InlineEngine(order=7), tmp_path / "p"
    with pytest.raises(StoppedError):
        learn(backbone(), stream(), out=out, engine=first, **OPTIONS)
    assert len(first.made) == after
    assert Checkpoint.of(out).where() == (
        f"with {after} results of its workers kept" if after else "before the first epoch of a task"
    )
    learn(backbone(), stream(), out=out, engine=second, resume=True, **OPTIONS)
    assert none_twice(first.made + second.made)
    assert contents(out, APART) == contents(one, APART)


@pytest.mark.parametrize("engines", [(None, InlineEngine()), (InlineEngine(dies_after=10), None)], ids=["to", "from"])
def test_one_process_goes_on_with_a_run_of_workers_and_they_with_its(
    engines: tuple[InlineEngine | None, InlineEngine | None], one: Path, tmp_path: Path
) -> None:
    out, (first, second) = tmp_path / "p", engines

    def interrupt(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("task02: training", 1):
            raise StoppedError

    with pytest.raises(StoppedError):
        learn(backbone(), stream(), out=out, engine=first, progress=interrupt, **OPTIONS)
    learn(backbone(), stream(), out=out, engine=second, resume=True, **OPTIONS)
    assert contents(out, APART) == contents(one, APART)


def test_a_result_that_is_damaged_is_made_again(one: Path, tmp_path: Path) -> None:
    out, second = tmp_path / "p", InlineEngine()
    with pytest.raises(StoppedError):
        learn(backbone(), stream(), out=out, engine=InlineEngine(dies_after=11), **OPTIONS)
    for number, file in enumerate(sorted((out / ".run" / "engine").iterdir())):
        data = bytearray(file.read_bytes())
        data[[0, 40, -1][number % 3]] ^= 1
        file.write_bytes(data if number % 4 else data[:20])
    learn(backbone(), stream(), out=out, engine=second, resume=True, **OPTIONS)
    assert Pool.open(out).tasks[0] not in {name for method, name in second.made if method == "tune"}
    assert len(second.made) == 14  # the first task was in the pool
    assert contents(out, APART) == contents(one, APART)


@pytest.mark.parametrize("method", ["tune", "place"])
def test_the_tasks_before_one_that_diverges_are_in_the_pool(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = getattr(Worker, method)

    def diverge(self: Worker, name: str, *rest: Any) -> bytes:
        if name == "task03":
            raise DivergenceError("task 'task03': so it is")
        return plain(self, name, *rest)

    monkeypatch.setattr(Worker, method, diverge)
    for order in range(4):
        out = tmp_path / str(order)
        with pytest.raises(DivergenceError, match="so it is"):
            learn(backbone(), stream(), out=out, engine=InlineEngine(order=order), **OPTIONS)
        assert Pool.open(out).tasks == ("task01", "task02")
        assert not (out / ".run").exists()


def test_workers_read_the_images_and_name_one_that_is_broken(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    theta0, folder = Backbone.load(small_vit(root)), f"folder:{root / 'photos'}"
    photos = TaskStream.load(folder, tasks=3)
    job = Job.of(theta0, photos, Configuration(LoRA(1), ITA(0.1), OTHERS), device="cpu", threads=1)
    assert len(pickle.dumps(job)) < 10_000  # neither images nor weights are in it
    assert Worker(job).backbone.hash == theta0.hash
    learn(theta0, photos, out=tmp_path / "one", **OPTIONS)
    image, photos = root / "photos" / "train" / "grey" / "1.png", TaskStream.load(folder, tasks=3)
    whole = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"grey.1\.png.*--resume"):
        learn(theta0, photos, out=tmp_path / "p", engine=InlineEngine(), **OPTIONS)
    assert not photos[0].train._decoded
    image.write_bytes(whole)
    learn(theta0, photos, out=tmp_path / "p", engine=InlineEngine(), resume=True, **OPTIONS)
    assert contents(tmp_path / "p", APART) == contents(tmp_path / "one", APART)
    with pytest.raises(InputError, match="other weights in a worker"):
        _ = Worker(replace(job, weights="0" * 64)).backbone


def test_files_are_sent_without_what_was_decoded_of_them(tmp_path: Path) -> None:
    photos = TaskStream.load(f"folder:{photographs(tmp_path) / 'photos'}")
    images = photos[0].train
    before = len(pickle.dumps(images))
    shape = Preprocessing(size=200, resize=200, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    decoded = images.tensor(shape)
    assert len(pickle.dumps(images)) < before + 100
    assert torch.equal(pickle.loads(pickle.dumps(images)).tensor(shape), decoded)


def test_what_is_unpacked_has_the_layout_and_the_bits_of_what_was_packed() -> None:
    plain = torch.arange(12.0, dtype=torch.float64).reshape(3, 4) / 7
    sent = {"plain": plain, "turned": plain.T, "rows": plain[1:], "half": plain.T.half(), "one": torch.tensor(3)}
    about, groups = unpack(pack({"a": 1 / 3}, x=sent, y={"plain": plain}))
    assert about == {"a": 1 / 3}
    assert same(groups["x"], sent)
    for name, value in sent.items():
        assert (groups["x"][name].dtype, groups["x"][name].stride()) == (value.dtype, value.stride())
        assert groups["x"][name].storage_offset() == 0


def test_what_ray_cannot_learn_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, said in (
        ({"regularizer": IEL(0.1)}, "iel trains every module through those before it"),
        ({"training": Training(fisher_over="earlier")}, "leave fisher-over 'earlier' out"),
        ({"training": QUICK}, "leave fisher-over 'earlier' out"),
    ):
        with pytest.raises(InputError, match=said):
            learn(backbone(), stream(), out=tmp_path / "p", engine=Ray(), **{**OPTIONS, **given})
    for wrong in (lambda: Ray(workers=0), lambda: Ray(threads=0), lambda: Ray(gpus_per_worker=-1.0)):
        with pytest.raises(InputError, match="expected"):
            wrong()
    with monkeypatch.context() as patch, pytest.raises(InputError, match="leave torchrun out"):
        patch.setattr("intarsia.engines.ray.current", lambda: Processes(count=2))
        learn(backbone(), stream(), out=tmp_path / "p", engine=Ray(), **OPTIONS)
    assert Ray().training(None).fisher_over == "others"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'intarsia\[ray\]'"):
        learn(backbone(), stream(), out=tmp_path / "p", engine=Ray(), **OPTIONS)
    assert not (tmp_path / "p").exists()


def test_flags_of_ray_need_ray_and_set_what_it_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "p")
    for flags, said in (
        (["--workers", "2"], "--workers: expected --engine ray"),
        (["--gpus-per-worker", "0"], "--gpus-per-worker: expected --engine ray"),
        (["--engine", "ray", "--workers", "0"], "workers 0: expected 1 or more"),
        (["--engine", "ray", "--training.fisher-over", "earlier"], "leave fisher-over 'earlier' out"),
        (["--engine", "ray", "--method", "iel"], "iel trains every module"),
    ):
        assert said in refused(capsys, "learn", "--out", out, *flags)
    assert parsed(["learn", "--engine", "ray"]).plan().chosen.settings.fisher_over == "others"
    assert parsed(["learn"]).plan().chosen.settings.fisher_over == "earlier"
