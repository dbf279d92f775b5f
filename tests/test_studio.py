"""The studio's own part: what it shows is what the Python API measures; hostile input gets a line and leaves nothing.

The page in a browser is in `test_studio_browser`.
"""

import io
import random
import shutil
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import Markup
from PIL import Image
from test_cli import refused

from cases import QUICK, backbone, contents, stream
from intarsia import InputError, LoRA, Pool, TaskStream, diagnose, evaluate, learn
from intarsia.cli.pages.studio import Studio
from intarsia.pool import merged
from intarsia.report.pictures import picture
from intarsia.store.lock import one_writer
from intarsia.store.rewrite import remove, rename
from intarsia.training.checkpoint import Checkpoint

gr = pytest.importorskip("gradio", reason="the extra [studio] is not installed")

from intarsia.studio import composition as compositions  # noqa: E402
from intarsia.studio import draw  # noqa: E402
from intarsia.studio import session as sessions  # noqa: E402
from intarsia.studio.composition import Composition  # noqa: E402
from intarsia.studio.learning import uploads  # noqa: E402
from intarsia.studio.learning.process import Learning, progress_of  # noqa: E402
from intarsia.studio.learning.uploads import unpacked  # noqa: E402
from intarsia.studio.measures import sampled, taken_for  # noqa: E402
from intarsia.studio.messages import told, without_paths  # noqa: E402
from intarsia.studio.places.compose import command  # noqa: E402
from intarsia.studio.places.sliders import Step, after, values  # noqa: E402
from intarsia.studio.places.tryout import answers_of  # noqa: E402
from intarsia.studio.serve import tidy  # noqa: E402
from intarsia.studio.session import Session  # noqa: E402

pytestmark = pytest.mark.slow
TASKS = ("task01", "task02", "task03", "task04")


def session(folder: Path) -> Session:
    return Session(folder, backbone(), lambda pool, tasks: stream(), per_class=2, threads=2)


@pytest.fixture(scope="module")
def opened(learned: Path) -> Session:
    """A session on the learned pool; nothing is written to it."""
    return session(learned)


# What is measured

MADE: dict[str, tuple[Composition, Callable[[Pool], Any]]] = {
    "two tasks": (
        Composition.of(TASKS, {"task01": 0.7, "task03": 0.3}, ["task03", "task01"]),
        lambda pool: pool.weighted({"task01": 0.7, "task03": 0.3}),
    ),
    "a negative one": (
        Composition.of(TASKS, {"task02": -0.5, "task04": 1.5}, ["task02", "task04"]),
        lambda pool: pool.weighted({"task02": -0.5, "task04": 1.5}),
    ),
    "one that answers with nothing added": (
        Composition.of(TASKS, {"task01": 1}, ["task01", "task02"]),
        lambda pool: pool.weighted({"task01": 1, "task02": 0}),
    ),
    "the mean": (compositions.preset("Mean of all", TASKS), lambda pool: pool.mean()),
    "a specialist": (compositions.preset("Only task02", TASKS), lambda pool: pool.specialize(["task02"])),
    "all but one": (compositions.preset("All but task02", TASKS), lambda pool: pool.unlearn("task02")),
    "a rule": (compositions.preset("TIES", TASKS), lambda pool: merged(pool, "ties")),
}


@pytest.mark.parametrize("what", MADE)
def test_a_composition_is_that_of_the_python_api(opened: Session, pool: Pool, what: str) -> None:
    """On the sample and on all test images, to the last bit."""
    made, recipe = MADE[what]
    model = recipe(pool)
    assert opened.measured(made).evaluation == evaluate(model, sampled(stream(), 2), history=False)
    assert opened.measured_whole(made).evaluation == evaluate(model, stream(), history=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), opened.model(made).parameters(), strict=True))


def test_the_sample_has_as_many_images_of_every_class_and_is_always_the_same() -> None:
    first, again, other = (sampled(stream(test=9), 4, seed) for seed in (0, 0, 1))
    for task in first:
        assert torch.bincount(task.test.labels).tolist() == [4, 4]
    images = [torch.cat([task.test.tensor(backbone().preprocessing) for task in s]) for s in (first, again, other)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    with pytest.raises(InputError, match="--per-class"):
        sampled(stream(), 0)


def test_which_task_is_taken_for_which_is_counted(opened: Session) -> None:
    tasks = list(opened.sample)
    logits = {task.name: torch.eye(8)[[7, 7, 0, 1]] for task in tasks}
    assert taken_for(logits, tasks) == ((50.0, 0.0, 0.0, 50.0),) * 4
    found = opened.measured(opened.mean())
    for place, row in enumerate(found.taken_for):
        assert sum(row) == pytest.approx(100)
        assert found.evaluation.per_task[TASKS[place]] <= row[place]


def test_the_theorems_gaps_are_those_of_diagnose(opened: Session, pool: Pool) -> None:
    weights = {"task01": 0.5, "task02": 0.25, "task04": 0.25}
    found = opened.gaps(Composition.of(TASKS, weights, TASKS))
    sample = sampled(stream(), 2)
    wanted = diagnose(pool, sample, per_task=sessions.PER_TASK, weights=dict.fromkeys(TASKS, 0.25))
    mean = opened.gaps(opened.mean())
    assert mean.true == pytest.approx(wanted.true_gap, abs=1e-6)
    assert mean.predicted == pytest.approx(wanted.predicted_gap, rel=1e-5)
    assert found.modules == pytest.approx(sum(w * wanted.module_losses[TASKS.index(t)] for t, w in weights.items()))
    with pytest.raises(InputError, match="sum to 1"):
        opened.gaps(Composition.of(TASKS, {"task01": 2.0}, TASKS))
    with pytest.raises(InputError, match="0 or more"):
        opened.gaps(Composition.of(TASKS, {"task01": 2.0, "task02": -1.0}, TASKS))


def test_lengths_and_cosines_are_those_of_the_vectors(opened: Session, pool: Pool) -> None:
    lengths, cosines = opened.alignment()
    vectors = [pool.vector(task) for task in TASKS]
    assert [*lengths.values()] == pytest.approx([float(v.norm()) for v in vectors])
    for v, row in zip(vectors, cosines, strict=True):
        assert row == pytest.approx([float(v.cosine(u)) for u in vectors], abs=1e-6)


def test_a_drag_is_one_step_back(opened: Session) -> None:
    start = Step.mean(opened)
    steps, dragged = after([], start), [Composition.of(TASKS, {"task01": n / 10}, TASKS) for n in range(9)]
    for number, moved in enumerate(dragged):
        steps = after(steps, Step(moved, control="slider 0", at=number / 10))
    assert [step.composition for step in steps] == [start.composition, dragged[-1]]
    later = Step(opened.mean(), 2.0, control="scale", at=5.0)
    assert values(start) == ["Mean of all", 1.0, [*TASKS], 0.25, 0.25, 0.25, 0.25]
    assert after(steps, later)[-1].composed == Composition.of(TASKS, dict.fromkeys(TASKS, 0.5), TASKS)
    assert after(after(steps, later), later) == after(steps, later)


def test_the_command_of_a_composition_says_all_of_it() -> None:
    mixed = Composition.of(TASKS, {"task01": 0.7, "task03": -0.3}, ["task01", "task02", "task03"])
    assert command("my p", mixed) == "intarsia evaluate 'my p' --weights task01=0.7 task02=0 task03=-0.3"
    some = "intarsia evaluate p --weights task01=0.7 task02=0 task03=-0.3 --answer task01 task02"
    assert command("p", replace(mixed, answers=("task01", "task02"))) == some
    assert command("p", compositions.preset("TIES", TASKS)) == "intarsia evaluate p --rule ties"


def test_pictures_are_answered_as_predict_does_and_bad_ones_are_said(opened: Session, tmp_path: Path) -> None:
    good, bad = tmp_path / "a <b>.png", tmp_path / "bad.png"
    Image.new("L", (8, 8), 90).save(good)
    bad.write_text("no image")
    model = opened.model(opened.mean())
    found = answers_of(opened, {"all": model}, [good, bad])
    assert model.predict([good])[0] in found
    assert "a &lt;b&gt;.png" in found
    assert "not an image" in found
    assert str(tmp_path) not in found


# The pool


def test_a_pool_that_has_changed_is_opened_again(copied: Path) -> None:
    here = session(copied)
    before = here.state
    assert not here.refresh()
    remove(Pool.open(copied), "task03")
    assert here.refresh()
    assert here.tasks == ("task01", "task02", "task04")
    assert here.state != before
    assert here.measured(here.mean()).evaluation.tasks == here.tasks
    rename(Pool.open(copied), "class0", "first")
    asked = list[str]()

    def images(pool: Pool, tasks: Sequence[str]) -> TaskStream:
        asked.extend(tasks)
        return pool.relabelled(stream())

    here._images = images
    assert here.refresh()
    assert asked == ["task01"]  # the others' images are not read again
    assert here.pool.classes["task01"] == here.sample["task01"].classes == ("first", "class1")
    (copied / "pool.json").unlink()
    with pytest.raises(InputError):
        here.refresh()


def test_a_model_is_saved_below_the_pool_alone(copied: Path) -> None:
    here = session(copied)
    made = here.save(here.model(here.mean()), "mine")
    assert made.parent == copied / "studio" / "models"
    for name in ("../mine", "/tmp/mine", "a/b", "", ".x", "mine"):
        before = contents(copied)
        with pytest.raises(InputError):
            here.save(here.model(here.mean()), name)
        assert contents(copied) == before


def test_a_module_that_was_learned_elsewhere_is_waited_for(copied: Path) -> None:
    """While another process writes: nothing is begun, and it is said who writes."""
    learning = Learning(session(copied))
    assert not learning.status().running
    with one_writer(copied):
        status = learning.status()
        assert (status.running, status.ours) == (True, False)
        with pytest.raises(InputError, match="being written"):
            learning.resume()
    assert not learning.status().running


def test_the_losses_of_a_stopped_run_are_those_it_ends_with(tmp_path: Path) -> None:
    how: dict[str, Any] = {"adapter": LoRA(1), "training": replace(QUICK, epochs=5)}

    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "task01: training" and done == 3:
            raise KeyboardInterrupt

    checkpoint = Checkpoint.of(tmp_path / "p")
    assert checkpoint.losses() == []
    with pytest.raises(KeyboardInterrupt):
        learn(backbone(), stream(1), out=tmp_path / "p", progress=interrupt, **how)
    losses = checkpoint.losses()
    assert 0 < len(losses) < 5
    whole = learn(backbone(), stream(1), out=tmp_path / "p", resume=True, **how).card("task01").measures["losses"]
    assert losses == pytest.approx(whole[: len(losses)], rel=1e-6)


def test_uploads_of_servers_that_were_killed_are_removed(tmp_path: Path) -> None:
    import os  # noqa: PLC0415

    home = tmp_path / "studio"
    for name in (f"uploads-{os.getpid()}", "uploads-999999999", "uploads-mine", "images"):
        (home / name).mkdir(parents=True)
    tidy(home)
    assert sorted(path.name for path in home.iterdir()) == ["images", f"uploads-{os.getpid()}", "uploads-mine"]


# What is dropped on the page


def zipped(path: Path, files: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def lying(path: Path) -> Path:
    """A zip whose header says 10 bytes where there are more."""
    data = bytearray(zipped(path, {"a/1.png": bytes(10_000)}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(signature) + offset
        data[start : start + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    return path


def spoiled(path: Path) -> Path:
    """A zip of whose compressed bytes one has changed."""
    data = bytearray(zipped(path, {"a/1.png": random.Random(0).randbytes(99) * 9}).read_bytes())
    data[37] = 255  # the first of them: there is no such kind of block
    return written(path, bytes(data))


def many(path: Path) -> Path:
    return zipped(path, {f"a/{number}.png": b"x" for number in range(uploads.FILES + 1)})


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no zip": (lambda p: written(p, b"no zip"), "plain zip"),
    "an empty one": (lambda p: zipped(p, {}), "no images"),
    "no images": (lambda p: zipped(p, {"a/notes.txt": b"x", "b/run.py": b"x"}), "no images"),
    "traversal": (lambda p: zipped(p, {"a/1.png": png(), "a/../../2.png": png()}), "leads elsewhere"),
    "traversal by backslashes": (lambda p: zipped(p, {"a\\..\\..\\2.png": png()}), "leads elsewhere"),
    "an absolute path": (lambda p: zipped(p, {"/a/2.png": png()}), "leads elsewhere"),
    "a drive": (lambda p: zipped(p, {"C:/a/2.png": png()}), "leads elsewhere"),
    "a link": (lambda p: zipped(p, {"a/2.png": b"/etc/passwd"}, stat.S_IFLNK | 0o777), "leads elsewhere"),
    "a hundred folders": (lambda p: zipped(p, {f"{'a/' * 100}2.png": png()}), "folders deep"),
    "a name that turns": (lambda p: zipped(p, {"a/\u202egnp.png": png()}), "Rename it"),
    "a bomb": (lambda p: zipped(p, {"a/1.png": bytes(uploads.ONE + 1)}), "unpacks to more"),
    "a size that is a lie": (lying, "cannot be unpacked"),
    "spoiled bytes": (spoiled, "cannot be unpacked"),
    "no name": (lambda p: zipped(p, {"": png()}), "cannot be unpacked"),
    "a name of nothing": (lambda p: zipped(p, {".": png()}), "leads elsewhere"),
    "too many files": (many, "at most"),
    "cut short": (lambda p: written(p, zipped(p, {"a/1.png": png()}).read_bytes()[:-30]), "plain zip"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_zip_leaves_nothing(what: str, tmp_path: Path) -> None:
    make, says = HOSTILE[what]
    folder = tmp_path / "out" / "images"
    folder.parent.mkdir()
    archive = make(tmp_path / "images.zip")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=says):
        unpacked(archive, folder)
    assert contents(tmp_path) == before
    assert [*folder.parent.iterdir()] == []


def test_a_zip_is_unpacked_and_what_is_no_image_left_out(tmp_path: Path) -> None:
    files = {"top/a/1.png": png(), "top/b/2.png": png(), "top/run.sh": b"x", "__MACOSX/top/a/._1.png": b"x"}
    found = unpacked(zipped(tmp_path / "z.zip", files), tmp_path / "images")
    assert found == tmp_path / "images" / "top"
    assert [*contents(found)] == ["a/1.png", "b/2.png"]


def test_a_task_from_the_page_is_checked_before_anything_is_learned(copied: Path, tmp_path: Path) -> None:
    """Names, classes that are there, broken images: one line each, and the pool is as it was."""
    learning, before = Learning(session(copied)), contents(copied)
    images = {f"{c}/{i}.png": png() for c in ("new1", "new2") for i in range(5)}
    for name, files, says in (
        ("../x", images, "Rename it"),
        ("task01", images, "in the pool already"),
        ("new", {f"class0/{i}.png": png() for i in range(5)}, "in the pool already"),
        ("new", {**images, "new1/9.png": b"no image"}, "not an image"),
        ("new", {"1.png": png()}, "outside a class"),
    ):
        with pytest.raises(InputError, match=says):
            learning.from_zip(zipped(tmp_path / "z.zip", files), name)
    task = learning.from_zip(zipped(tmp_path / "z.zip", images), "new")
    assert task.stream[0].classes == ("new1", "new2")
    assert learning.from_zip(zipped(tmp_path / "z.zip", images), "new").stream.classes == task.stream.classes  # again
    assert learning.cost(task).images == len(task.stream[0].train) == 8
    learning.close()  # it was not learned
    shutil.rmtree(copied / "studio")
    assert contents(copied) == before


def test_a_folder_can_be_named_on_this_machine_alone(copied: Path, tmp_path: Path) -> None:
    for kind in ("new1", "new2"):
        (tmp_path / "new" / kind).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "new" / kind / f"{number}.png").write_bytes(png())
    assert Learning(session(copied)).from_folder(tmp_path / "new", "new").stream[0].classes == ("new1", "new2")
    with pytest.raises(InputError, match="drop a zip"):
        Learning(session(copied), folders=False).from_folder(tmp_path / "new", "new")
    with pytest.raises(InputError, match="no such folder"):
        Learning(session(copied)).from_folder(tmp_path / "nowhere", "new")
    assert Studio(copied).is_private
    assert not Studio(copied, host="0.0.0.0").is_private
    assert not Studio(copied, share="yes").is_private


# What is said


def test_no_path_of_the_machine_is_said(tmp_path: Path) -> None:
    root = tmp_path / "my pools"
    text = f"{root}/p/modules/a/head.safetensors is damaged; '{root}/p' and /var/lib/x/y.png, not a/b or 1/2: see --out"
    said = without_paths(text, root)
    assert said == "p/modules/a/head.safetensors is damaged; 'p' and y.png, not a/b or 1/2: see --out"

    def bad() -> None:
        raise InputError(f"{root}/p is damaged: <b>")

    def broken() -> None:
        raise RuntimeError(f"{root}/p")

    for handler, says in ((bad, "p is damaged: &lt;b&gt;"), (broken, "RuntimeError")):
        with pytest.raises(gr.Error) as error:
            told(root)(handler)()
        assert says in error.value.message
        assert str(tmp_path) not in error.value.message


def test_all_text_is_escaped() -> None:
    evil = '<script>alert(1)</script>"'
    for made in (
        draw.table(evil, [evil], [[evil, evil]]),
        draw.heat(evil, [evil], [[1.0]], "{:.1f}", 1.0, evil, evil),
        draw.curve(evil, {evil: [(0.0, 1.0), (1.0, 2.0)]}, evil, evil),
        draw.bars([(evil, 0.5)]),
        draw.figures({evil: (evil, evil)}),
        draw.image(picture(torch.zeros(3, 4, 4, dtype=torch.uint8)), evil),
        draw.note(evil),
    ):
        assert isinstance(made, Markup)
        assert "<script" not in made
        assert '"&' not in made.replace('="&lt;', "")


def test_what_a_process_says_is_read() -> None:
    assert progress_of(()) == "starting"
    assert progress_of(("birds: training: 12 of 80", "a warning")) == "birds: training: 12 of 80"
    assert progress_of(("birds: training: 12 of 80", "birds: features: 0.1 s")) == "birds: features done"
    assert progress_of(("birds: features: 0.1 s", "birds: class statistics: done")) == "birds: class statistics done"


def test_without_gradio_one_line_says_what_to_install(
    learned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    said = refused(capsys, "studio", learned)
    assert "the studio needs gradio" in said
    assert "pip install 'intarsia[studio]'" in said


def test_what_is_neither_a_pool_nor_a_comparison_is_refused(
    tmp_path: Path, learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "neither a pool" in refused(capsys, "studio", tmp_path)
    Pool.open(learned, backbone()).mean().save(tmp_path / "composed")
    assert "name the pool" in refused(capsys, "studio", tmp_path / "composed")
