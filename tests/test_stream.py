"""Tasks made of the built-in sets, of folders and of arrays: what goes where, and what is refused."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cases import backbone
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.image_set import ImageSet
from intarsia.data.sources.builtin import load_builtin
from intarsia.data.splits import check_tasks, grouped, hold_out
from intarsia.data.stream import Task, TaskStream
from intarsia.errors import InputError
from intarsia.training.learner import learn

SMALL = Preprocessing(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
SKETCH = Preprocessing(size=28, resize=28, channels=1, mean=(0.5,), std=(0.5,))
ANIMALS = ("bee", "cat", "dog", "elk", "fox", "gnu")


def paint(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (shade, 0, 0)).save(path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """`photos/<class>/*`: ten images of each of six classes, the shade is the class * 10 + the image."""
    for number, kind in enumerate(ANIMALS):
        for index in range(10):
            paint(tmp_path / "photos" / kind / f"{index}.png", number * 10 + index)
    return tmp_path / "photos"


@pytest.fixture
def sided(tmp_path: Path) -> Path:
    """`photos/train/<class>/*` (4 each) and `photos/test/<class>/*` (2 each) of six classes."""
    for side, count in (("train", 4), ("test", 2)):
        for number, kind in enumerate(ANIMALS):
            for index in range(count):
                paint(tmp_path / "sided" / "photos" / side / kind / f"{index}.png", number * 10 + index)
    return tmp_path / "sided" / "photos"


def arrays(classes: int = 6, train: int = 5, test: int = 3, **options: Any) -> TaskStream:
    """A stream in memory; an image's shade tells class and number: class * 20 + number, test images from 10 on."""

    def part(count: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(classes).repeat(count)
        shade = labels * 20 + torch.arange(count).repeat_interleave(classes) + first
        return shade.byte()[:, None, None].expand(-1, 8, 8), labels

    return TaskStream.from_arrays(part(train, 0), part(test, 10), [f"class{i}" for i in range(classes)], **options)


def shades(images: ImageSet) -> list[int]:
    return images.tensor(SMALL)[:, 0, 0, 0].tolist()


def layout(stream: TaskStream) -> dict[str, tuple[str, ...]]:
    return {task.name: task.classes for task in stream}


# ---- built in


@pytest.fixture(scope="module")
def sketches() -> TaskStream:
    return TaskStream.load("sketches")


def test_the_built_in_streams_are_ten_themes_of_ten_classes(sketches: TaskStream) -> None:
    chalk = TaskStream.load()
    assert chalk.name == "chalk"
    assert layout(chalk) == layout(sketches)
    assert list(layout(sketches))[:3] == ["animals", "vehicles", "food"]
    for task in (*sketches, *chalk):
        assert len(task.classes) == 10
        assert torch.bincount(task.train.labels).tolist() == [80] * 10
        assert torch.bincount(task.test.labels).tolist() == [20] * 10
        assert task.train.labels.dtype == torch.int64
        assert task.train.files is None
    assert sketches.augmentation == chalk.augmentation == "sketch"
    assert not torch.equal(chalk[0].test.tensor(SKETCH), sketches[0].test.tensor(SKETCH))


def test_drawings_0_to_79_train_and_80_to_99_test(sketches: TaskStream) -> None:
    drawings = load_builtin("sketches")
    for task in (sketches["animals"], sketches["body"]):
        for label, kind in enumerate(task.classes):
            whole = drawings.images[drawings.classes.index(kind)].unsqueeze(1)
            assert torch.equal(task.train.tensor(SKETCH)[task.train.labels == label], whole[:80])
            assert torch.equal(task.test.tensor(SKETCH)[task.test.labels == label], whole[80:])


def test_the_built_in_classes_regroup_evenly(sketches: TaskStream) -> None:
    five = TaskStream.load("sketches", tasks=5)
    assert list(layout(five)) == ["task01", "task02", "task03", "task04", "task05"]
    assert five[0].classes == sketches[0].classes + sketches[1].classes
    assert [len(task.classes) for task in TaskStream.load("sketches", tasks=3)] == [34, 33, 33]
    assert TaskStream.load("sketches", tasks=100)[99].name == "task100"


def test_seeded_order_moves_themes_as_a_whole_and_classes_one_by_one(sketches: TaskStream) -> None:
    moved = TaskStream.load("sketches", order="shuffled", seed=1)
    assert layout(moved) == layout(sketches)
    assert list(layout(moved)) != list(layout(sketches))
    cut = TaskStream.load("sketches", tasks=10, order="shuffled", seed=1)
    assert set(cut.classes) == set(sketches.classes)
    assert cut.classes != sketches.classes


def test_a_split_picks_classes_of_the_built_in_ones() -> None:
    stream = TaskStream.load("sketches", split={"round": ["sun", "moon"], "pets": ["cat"]}, max_per_class=5)
    assert layout(stream) == {"round": ("sun", "moon"), "pets": ("cat",)}
    assert len(stream["round"].train) == len(stream["round"].test) == 10


@pytest.mark.parametrize("spec", ["paintings", "folder", "folder:", "sketches:5", ""])
def test_an_unknown_stream_is_refused_with_the_known_ones(spec: str) -> None:
    with pytest.raises(InputError, match=rf"{spec!r}.*sketches, chalk, folder:<dir>, csv:<file>, hf:"):
        TaskStream.load(spec)


# ---- folders


def test_a_folder_with_train_and_test(sided: Path) -> None:
    (sided / "LICENSE").write_text("only train and test are read")
    stream = TaskStream.load(f"folder:{sided}")
    assert layout(stream) == {"photos": ANIMALS}
    assert stream.augmentation == "photo"
    train, test = stream[0].train, stream[0].test
    assert shades(train) == [number * 10 + index for number in range(6) for index in range(4)]
    assert train.labels.tolist() == [number for number in range(6) for _ in range(4)]
    assert shades(test) == [number * 10 + index for number in range(6) for index in range(2)]
    assert train.files
    assert train.files[5] == sided / "train" / "cat" / "1.png"


def test_a_folder_of_classes_and_a_test_fraction(flat: Path) -> None:
    for clutter in (".DS_Store", "bee/.hidden.txt", "bee/Thumbs.db", "desktop.ini"):
        (flat / clutter).touch()
    stream = TaskStream.load(f"folder:{flat}", test_fraction=0.3, tasks=3)
    assert layout(stream) == {"task01": ("bee", "cat"), "task02": ("dog", "elk"), "task03": ("fox", "gnu")}
    for number, task in enumerate(stream):
        train, test = shades(task.train), shades(task.test)
        assert min(torch.bincount(task.test.labels, minlength=2).tolist()) >= 1
        assert sorted(train + test) == list(range(number * 20, number * 20 + 20))


def test_a_class_s_test_images_depend_on_the_seed_alone(flat: Path) -> None:
    def tested(seed: int, **options: Any) -> set[str]:
        stream = TaskStream.load(f"folder:{flat}", test_fraction=0.3, seed=seed, **options)
        paths = [path for task in stream for path in task.test.files or ()]
        return {Path(str(path)).name for path in paths if "dog" in str(path)}

    assert tested(0) == tested(0, tasks=2, order="shuffled") == tested(0, split={"a": ["dog"]})
    assert any(tested(0) != tested(seed) for seed in (1, 2, 3))


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    for kind in ("bus", "train"):
        for index in range(4):
            paint(tmp_path / "vehicles" / kind / f"{index}.png")
    assert TaskStream.load(f"folder:{tmp_path / 'vehicles'}", test_fraction=0.25).classes == ("bus", "train")


def test_seeded_order_permutes_the_classes_of_a_folder(flat: Path) -> None:
    orders = [
        TaskStream.load(f"folder:{flat}", test_fraction=0.2, order="shuffled", seed=seed).classes for seed in range(5)
    ]
    assert all(sorted(order) == list(ANIMALS) for order in orders)
    assert len(set(orders)) > 1


def test_a_split_from_a_file_leaves_other_classes_unread(flat: Path, tmp_path: Path) -> None:
    (flat / "gnu" / "notes.txt").touch()  # not in the split, so never looked at
    (tmp_path / "split.json").write_text('{"wild": ["fox", "elk"], "tame": ["dog"]}')
    for split in (tmp_path / "split.json", str(tmp_path / "split.json"), {"wild": ("fox", "elk"), "tame": ["dog"]}):
        stream = TaskStream.load(f"folder:{flat}", split=split, test_fraction=0.2)
        assert layout(stream) == {"wild": ("fox", "elk"), "tame": ("dog",)}
        assert list(layout(stream)) == ["wild", "tame"]


def test_a_limit_per_class(flat: Path) -> None:
    stream = TaskStream.load(f"folder:{flat}", test_fraction=0.3, max_per_class=2)
    assert torch.bincount(stream[0].train.labels).tolist() == [2] * 6
    single = TaskStream.load(f"folder:{flat}", test_fraction=0.5, max_per_class=1)
    assert torch.bincount(single[0].train.labels).tolist() == [1] * 6
    with pytest.raises(InputError, match="max_per_class is 0"):
        TaskStream.load(f"folder:{flat}", test_fraction=0.5, max_per_class=0)


def refused(said: str, folder: Path, **options: Any) -> None:
    with pytest.raises(InputError, match=said):
        TaskStream.load(f"folder:{folder}", **options)


def test_a_folder_that_is_not_there_or_holds_nothing(tmp_path: Path) -> None:
    refused(r"nowhere'.*no such folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(r"empty' has no images", tmp_path / "empty", test_fraction=0.2)
    (tmp_path / "file").touch()
    refused(r"file'.*no such folder", tmp_path / "file")
    for side in ("train", "test"):
        (tmp_path / "bare" / side / "bee").mkdir(parents=True)
    refused(r"train' has no images", tmp_path / "bare")


def test_too_few_images(sided: Path) -> None:
    for index in range(1, 4):
        (sided / "train" / "dog" / f"{index}.png").unlink()
    assert torch.bincount(TaskStream.load(f"folder:{sided}")[0].train.labels).min() == 1
    for path in (sided / "test" / "bee").iterdir():
        path.unlink()
    refused(r"in train but not in test: bee", sided, split={"a": ["bee"]})


def test_too_few_images_to_divide(flat: Path) -> None:
    for index in range(1, 10):
        (flat / "elk" / f"{index}.png").unlink()
    refused("'elk' has 1 image to divide: expected at least 3", flat, test_fraction=0.2)


def test_a_class_on_one_side_only(sided: Path) -> None:
    (sided / "test" / "fox").rename(sided / "test" / "wolf")
    refused("photos'.*in train but not in test: fox; in test but not in train: wolf.*--split", sided)
    refused("in train but not in test: fox; in test but not in train: wolf", sided, split={"a": ["fox"]})
    assert TaskStream.load(f"folder:{sided}", split={"a": ["bee", "cat"]}).classes == ("bee", "cat")
    for kind in (sided / "test").iterdir():
        kind.rename(sided / kind.name)
    refused("has classes in 'train', but none in 'test'", sided)


def test_what_is_no_image_is_named(flat: Path, tmp_path: Path) -> None:
    paint(tmp_path / "loose" / "a.png")
    refused(r"a\.png' lies outside a class folder", tmp_path / "loose", test_fraction=0.2)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_links_that_loop_or_lead_nowhere_and_pipes_do_not_hang(flat: Path) -> None:
    (flat / "bee" / "loop.png").symlink_to(flat / "bee" / "loop.png")
    (flat / "cat" / "gone.png").symlink_to(flat / "gone.png")
    (flat / "dog" / "up.png").symlink_to(flat)
    os.mkfifo(flat / "elk" / "pipe.png")
    for kind, name in (("bee", "loop"), ("cat", "gone"), ("elk", "pipe")):
        refused(rf"{name}\.png' is not there.*broken link.*skip-broken", flat, split={"a": [kind]}, test_fraction=0.2)
    (flat / "self").symlink_to(flat)
    (flat / "gnu" / "linked.png").symlink_to(flat / "fox" / "0.png")
    stream = TaskStream.load(f"folder:{flat}", test_fraction=0.2, skip_broken=True)
    counts = {kind: 0 for kind in stream.classes}
    for images in (stream[0].train, stream[0].test):
        for label in images.labels.tolist():
            counts[stream.classes[label]] += 1
    assert counts == {kind: 10 for kind in ANIMALS} | {"gnu": 11}
    notes = "; ".join(stream.notes)
    assert all(name in notes for name in ("loop.png", "gone.png", "pipe.png", "self"))


def test_contradictions(sided: Path) -> None:
    refused("has test images and a test fraction of 0.2", sided, test_fraction=0.2)
    for kind in (sided / "test").iterdir():
        for path in kind.iterdir():
            path.unlink()
        kind.rmdir()
    refused("none in 'test'", sided)
    with pytest.raises(InputError, match="'chalk' has test images"):
        TaskStream.load("chalk", test_fraction=0.2)


def test_a_folder_of_classes_wants_a_test_fraction(tmp_path: Path) -> None:
    for index in range(4):
        paint(tmp_path / "photos" / "bee" / f"{index}.png")
    refused("does not say which images are to test: expected a test fraction", tmp_path / "photos")
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        refused("expected more than 0 and less than 1", tmp_path / "photos", test_fraction=fraction)


def test_a_broken_file_is_found_when_decoding_and_named(flat: Path) -> None:
    stream = TaskStream.load(f"folder:{flat}", test_fraction=0.2)
    (flat / "fox" / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3\.png' is empty"):
        stream.decode(SMALL)


# ---- splits that are refused


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"a": ["bee", "cow"]}, "Class 'cow' of task 'a' is not in 'photos'.*bee, cat"),
        ({"a": ["bee"], "b": ["cat", "bee"]}, "Class 'bee' is in task 'a' and in 'b'"),
        ({"a": ["bee", "bee"]}, "Class 'bee' is in task 'a' and in 'a'"),
        ({"a": ["bee"], "b": []}, "Task 'b' has no classes"),
        ({}, "There are no tasks"),
        ({"a": "bee"}, "Task 'a' of the split has 'bee'"),
        ({"a": [1]}, r"Task 'a' of the split has \[1\]"),
        ({"a": {"bee": 1}}, "Task 'a' of the split"),
        (["bee"], "The split is a list"),
        ({"a": ["bee"], "A": ["cat"]}, "'a' and 'A' differ in capitals"),
        ({"a/b": ["bee"]}, "'a/b' has '/' in it"),
        ({"a\\b": ["bee"]}, "has '.*' in it"),
        ({"a\nb": ["bee"]}, "in it: expected printable"),
        ({"..": ["bee"]}, "starts with a dot"),
        ({" ": ["bee"]}, "is empty"),
        ({"": ["bee"]}, "is empty"),
        ({"a" * 101: ["bee"]}, "is too long: expected at most 100"),
        ({"語" * 90: ["bee"]}, "is too long"),
    ],
)
def test_a_bad_split(flat: Path, tmp_path: Path, split: Any, said: str) -> None:
    refused(said, flat, split=_json(tmp_path, split), test_fraction=0.2)
    if isinstance(split, Mapping):
        refused(said, flat, split=split, test_fraction=0.2)


def _json(folder: Path, content: object) -> Path:
    (folder / "split.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "split.json"


def test_a_bad_split_file(flat: Path, tmp_path: Path) -> None:
    for content, said in {
        '{"a": ["bee"], "a": ["cat"]}': "is not JSON \\('a' twice in one object",
        '{"a": ["bee"]': "is not JSON",
        "": "is not JSON",
        "[" * 100_000: "is not JSON",
        "5": "The split is a int",
    }.items():
        refused(said, flat, split=_json(tmp_path, content), test_fraction=0.2)
    (tmp_path / "split.json").write_bytes(b"\xff\xfe\x00")
    refused("is not JSON", flat, split=tmp_path / "split.json", test_fraction=0.2)
    refused(r"none\.json' cannot be read: No such file", flat, split=tmp_path / "none.json", test_fraction=0.2)
    refused("cannot be read", flat, split=tmp_path, test_fraction=0.2)


@pytest.mark.parametrize("tasks", [0, -1, 7])
def test_a_bad_number_of_tasks(flat: Path, tasks: int) -> None:
    refused(f"{tasks} tasks of 6 classes: expected 1 to 6", flat, tasks=tasks, test_fraction=0.2)


def test_tasks_and_split_exclude_each_other_and_orders_are_two(flat: Path) -> None:
    refused(r"\(2\) and a split are both given", flat, tasks=2, split={"a": ["bee"]}, test_fraction=0.2)
    refused("no order 'random'", flat, order="random", test_fraction=0.2)


@pytest.mark.skipif(os.name == "nt", reason="names which only POSIX allows")
@pytest.mark.parametrize("name", ["a\\b", "a\tb", os.fsdecode(b"caf\xe9")])
def test_a_folder_s_name_that_cannot_be_a_class_is_refused(tmp_path: Path, name: str) -> None:
    for index in range(3):
        paint(tmp_path / "photos" / name / f"{index}.png")
    refused("Class name .* in it", tmp_path / "photos", test_fraction=0.3, tasks=1)


# ---- arrays


def test_arrays_become_tasks() -> None:
    stream = arrays(split={"b": ["class4", "class1"], "a": ["class0"]}, name="shades", augmentation="sketch")
    assert layout(stream) == {"b": ("class4", "class1"), "a": ("class0",)}
    assert (stream.name, stream.augmentation) == ("shades", "sketch")
    assert shades(stream["b"].train) == [80, 81, 82, 83, 84, 20, 21, 22, 23, 24]
    assert stream["b"].train.labels.tolist() == [0] * 5 + [1] * 5
    assert shades(stream["a"].test) == [10, 11, 12]
    assert layout(arrays(2)) == {"arrays": ("class0", "class1")}


def test_numpy_arrays_and_colour() -> None:
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 0, 1, 1])
    stream = TaskStream.from_arrays((images, labels), (images, labels), ["a", "b"])
    assert stream[0].train.tensor(SMALL).shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "said"),
    [
        (torch.zeros(4, 8, 8), torch.zeros(4).long(), ["a"], "training images are .*float32: expected uint8"),
        (torch.zeros(4, 8, 8, 3).byte(), torch.zeros(4).long(), ["a"], r"training images are \(4, 8, 8, 3\)"),
        (torch.zeros(4, 8, 8).byte(), torch.zeros(3).long(), ["a"], "training labels .* expected 4 integers"),
        (torch.zeros(4, 8, 8).byte(), torch.zeros(4), ["a"], "training labels .*float32"),
        (torch.zeros(4, 8, 8).byte(), torch.arange(4), ["a", "b"], "labels run from 0 to 3: expected 0 to 1"),
        (torch.zeros(4, 8, 8).byte(), torch.arange(4), list("abcde"), "Class 'e' of 'arrays' has no image to train"),
        (
            torch.zeros(4, 8, 8).byte(),
            torch.zeros(4).long(),
            ["a", "a"],
            "Class 'a' is in task 'arrays' and in 'arrays'",
        ),
    ],
)
def test_bad_arrays(images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TaskStream.from_arrays((images, labels), (images, labels), classes)


# ---- a stream's own methods


def test_tasks_are_found_by_position_and_name() -> None:
    stream = arrays(tasks=3)
    assert len(stream) == 3
    assert stream[1] is stream["task02"] is list(stream)[1]
    assert stream[1:] == stream.tasks[1:]
    assert "task02" in stream
    assert stream[1] in stream
    assert "birds" not in stream
    with pytest.raises(InputError, match=r"no task 'birds'.*task01, task02, task03"):
        stream["birds"]
    with pytest.raises(IndexError):
        stream[3]


def test_a_subset_keeps_the_given_order_and_what_was_decoded() -> None:
    stream = arrays(tasks=3)
    part = stream.subset(["task03", 0])
    assert [task.name for task in part] == ["task03", "task01"]
    assert part[1].train.tensor(SMALL) is stream[0].train.tensor(SMALL)
    for which, said in (
        (["birds"], "'birds'"),
        ([5], "no task 5"),
        ([0, "task01"], "named 'task01'"),
        ([], "no tasks"),
    ):
        with pytest.raises(InputError, match=said):
            stream.subset(which)


def test_a_file_that_vanishes_between_listing_and_reading_is_named_and_nothing_is_written(
    sided: Path, tmp_path: Path
) -> None:
    stream = TaskStream.load(f"folder:{sided}", tasks=1)
    gone = sorted((sided / "train").rglob("*.png"))[-1]
    gone.unlink()
    with pytest.raises(InputError, match=f"{gone}': there is no such image file"):
        learn(backbone(), stream, out=tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


def test_images_are_decoded_once_per_preprocessing_and_progress_is_told(flat: Path) -> None:
    stream = TaskStream.load(f"folder:{flat}", test_fraction=0.2, tasks=2)
    seen: list[tuple[int, int]] = []
    stream.decode(SMALL, lambda _, done, total: seen.append((done, total)))
    assert seen == [(done, 60) for done in range(1, 61)]
    for path in flat.rglob("*.png"):
        path.unlink()
    seen.clear()
    stream.decode(SMALL, lambda _, done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60)
    same_pixels = Preprocessing.from_record(SMALL.record() | {"mean": [0.1] * 3})
    assert stream[0].train.tensor(same_pixels) is stream[0].train.tensor(SMALL)
    larger = Preprocessing.from_record(SMALL.record() | {"resize": 9})
    with pytest.raises(InputError, match="no such image file"):
        stream.decode(larger)


def test_a_record_tells_how_the_stream_was_made_and_makes_it_again(flat: Path, tmp_path: Path) -> None:
    split = _json(tmp_path, {"wild": ["fox", "elk"], "tame": ["dog", "cat"]})
    stream = TaskStream.load(
        f"folder:{flat}", split=split, order="shuffled", seed=3, test_fraction=0.4, max_per_class=3
    )
    split.unlink()
    record = json.loads(json.dumps(stream.record()))
    assert record["load"]["seed"] == 3
    assert record["tasks"] == [{"name": t.name, "classes": list(t.classes), "train": 6, "test": 6} for t in stream]
    again = TaskStream.load(**record["load"])
    assert again.record() == stream.record()
    assert [task.train.files for task in again] == [task.train.files for task in stream]
    changed = stream.subset([1]).validation(0.4, seed=2).record()
    assert changed["changes"] == [{"subset": [stream[1].name]}, {"validation": {"fraction": 0.4, "seed": 2}}]
    json.dumps(arrays().record())


def test_validation_of_files_decodes_each_once(flat: Path) -> None:
    stream = TaskStream.load(f"folder:{flat}", test_fraction=0.2)
    held = stream.validation(0.25, seed=0)
    held.decode(SMALL)
    for path in flat.rglob("*.png"):
        path.unlink()
    stream[0].train.tensor(SMALL)
    assert held[0].train.files
    assert held[0].test.files
    assert stream[0].train.files
    assert sorted(map(str, held[0].train.files + held[0].test.files)) == sorted(map(str, stream[0].train.files))


def test_validation_wants_three_training_images() -> None:
    with pytest.raises(InputError, match="'class0' has 2 images to divide"):
        arrays(train=2).validation(0.5, seed=0)


@settings(max_examples=25)
@given(
    classes=st.integers(1, 6),
    train=st.integers(3, 9),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_validation_is_disjoint_complete_and_decided_by_its_seed(
    classes: int, train: int, fraction: float, seed: int, data: st.DataObject
) -> None:
    stream = arrays(classes, train, tasks=data.draw(st.integers(1, classes)))
    first, again = stream.validation(fraction, seed), stream.validation(fraction, seed)
    for whole, task, same in zip(stream, first, again, strict=True):
        kept, held = shades(task.train), shades(task.test)
        assert not set(kept) & set(held)
        assert sorted(kept + held) == sorted(shades(whole.train))
        assert (kept, held) == (shades(same.train), shades(same.test))
        # No test image is ever seen, labels still name the class, and each class has its share.
        assert not set(held) & set(shades(whole.test))
        for part in (task.train, task.test):
            assert [whole.classes.index(f"class{shade // 20}") for shade in shades(part)] == part.labels.tolist()
        counts = torch.bincount(task.test.labels, minlength=len(task.classes))
        assert counts.unique().tolist() == [min(max(1, round(train * fraction)), train - 2)]


@settings(max_examples=50)
@given(st.integers(1, 40), st.data(), st.sampled_from(["fixed", "shuffled"]), st.integers(0, 99))
def test_every_class_is_in_exactly_one_task_of_equal_size(
    count: int, data: st.DataObject, order: Any, seed: int
) -> None:
    tasks = data.draw(st.integers(1, count))
    classes = [f"class{index}" for index in range(count)]
    groups = grouped("photos", classes, tasks=tasks, order=order, seed=seed)
    members = [kind for kinds in groups.values() for kind in kinds]
    assert sorted(members) == sorted(classes)
    assert order == "shuffled" or members == classes
    sizes = [len(kinds) for kinds in groups.values()]
    assert len(sizes) == tasks
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert list(groups) == sorted(groups)
    assert groups == grouped("photos", classes, tasks=tasks, order=order, seed=seed)


@settings(max_examples=50)
@given(st.integers(3, 60), st.floats(0.001, 0.999), st.text(max_size=20))
def test_holding_out_divides(count: int, fraction: float, key: str) -> None:
    kept, held = hold_out(count, fraction, key, "cat")
    assert sorted(kept + held) == list(range(count))
    assert len(kept) >= 2
    assert len(held) == min(max(1, round(count * fraction)), count - 2)


def test_held_out_images_are_the_same_on_every_machine() -> None:
    assert hold_out(10, 0.3, "test/0/dog", "dog")[1] == [2, 4, 9]


@given(st.text(max_size=120))
def test_a_name_that_is_accepted_can_be_a_folder(name: str) -> None:
    empty = ImageSet.of_arrays(torch.zeros(0), torch.zeros(0).long())
    try:
        stream = TaskStream("any", (Task(name, ("a",), empty, empty),))
    except InputError:
        return
    assert stream[0].name == name
    assert not set(name) & set("/\\\0\n")
    assert 0 < len(name.encode()) <= 250
    assert Path("pool", name).parent == Path("pool")
    check_tasks([("other", ["b"]), (name, ["a"])]) if name.casefold() != "other" else None
