"""Images as users have them: untidy folders, lists, data sets of a hub. A row of docs/data.md is a test."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cases import backbone
from intarsia.backbones.locations import absolute, hub_parts, kept
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.fingerprint import notes_on, repeated
from intarsia.data.records import gathered, reloaded
from intarsia.data.splits import held_out_by_hash
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.labels import natural

SMALL = Preprocessing(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
CIFAR = Path(os.environ.get("INTARSIA_SHARED", Path(__file__).parents[1] / "../shared")) / "data" / "cifar100"


def paint(path: Path, shade: int, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (shade % 256, shade // 256, 7)).save(path, kind)
    return path


def photos(
    root: Path, *classes: str, train: int = 3, test: int = 2, sides: tuple[str, str] = ("train", "test")
) -> Path:
    """`<root>/train/<class>/*`, `<root>/test/<class>/*`; no two pictures are equal."""
    for number, kind in enumerate(classes):
        for side, count, first in ((sides[0], train, 0), (sides[1], test, 50)):
            for index in range(count):
                paint(root / side / kind / f"{index}.png", number * 100 + first + index)
    return root


def flat(root: Path, *classes: str, each: int = 12) -> Path:
    for number, kind in enumerate(classes):
        for index in range(each):
            paint(root / kind / f"{index}.png", number * 100 + index)
    return root


def load(root: Path, **options: Any) -> TaskStream:
    return TaskStream.load(f"folder:{root}", **options)


def said(stream: TaskStream) -> str:
    return "; ".join(stream.notes)


# ---- folders: each of these is a row of docs/data.md


@pytest.mark.parametrize("name", ["val", "valid", "validation", "VAL", "dev"])
def test_what_is_called_validation_is_tested_on_where_there_is_no_test(tmp_path: Path, name: str) -> None:
    stream = load(photos(tmp_path / "photos", "cat", "dog", sides=("Train", name)))
    assert (len(stream[0].train), len(stream[0].test)) == (6, 4)
    assert f"test images are those in {name!r}" in said(stream)


def test_validation_beside_test_is_named_and_left_out(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "cat", "dog", sides=("train", "TEST"))
    photos(root, "cat", "dog", sides=("val", "val"))
    stream = load(root)
    assert all("TEST" in str(file) for file in stream[0].test.files or ())
    assert "left out, no images: val" in said(stream)


def test_other_files_beside_and_in_classes_are_named_once_and_clutter_is_not(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "cat", "dog")
    for name in ("README.txt", "labels.csv", "train/notes.md", "train/cat/cat.json", ".DS_Store", "train/Thumbs.db"):
        (root / name).touch()
    paint(root / "__MACOSX" / "train" / "cat" / "._0.png", 1)
    paint(root / "train" / "__MACOSX" / "0.png", 1)
    stream = load(root)
    assert stream.classes == ("cat", "dog")
    assert len(stream[0].train) == 6
    for name in ("README.txt", "labels.csv", "notes.md", "cat.json"):
        assert said(stream).count(name) == 1
    assert "MACOSX" not in said(stream)
    assert "Thumbs" not in said(stream)


def test_images_in_folders_below_a_class_are_the_class_s(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "cat", "dog")
    paint(root / "train" / "cat" / "holiday" / "day 2" / "deep.png", 5)
    (root / "train" / "cat" / "up").symlink_to(root / "train")
    (root / "train" / "cat" / "holiday" / "self").symlink_to(root / "train" / "cat")
    stream = load(root)
    assert torch.bincount(stream[0].train.labels).tolist() == [4, 3]


def test_formats_of_every_day(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "cat", "dog")
    kinds = {"jfif": "JPEG", "avif": "AVIF", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tiff": "TIFF", "JPG": "JPEG"}
    for number, (suffix, kind) in enumerate(kinds.items()):
        paint(root / "train" / "cat" / f"more.{suffix}", 200 + number, kind)
    stream = load(root)
    stream.decode(SMALL)
    assert torch.bincount(stream[0].train.labels).tolist() == [3 + len(kinds), 3]


def test_class_folders_without_images_are_named_and_left_out(tmp_path: Path) -> None:
    root = flat(tmp_path / "photos", "cat", "dog")
    (root / "bird").mkdir()
    stream = load(root, test_fraction=0.3)
    assert stream.classes == ("cat", "dog")
    assert "without images: bird" in said(stream)


def test_train_alone_is_divided_and_two_names_of_one_part_are_refused(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "cat", "dog", train=9, sides=("train", "train"))
    with pytest.raises(InputError, match=r"does not say which images are to test.*--source\.test-fraction"):
        load(root)
    assert load(root, test_fraction=0.3).classes == ("cat", "dog")
    shutil.copytree(root / "train", root / "training")
    with pytest.raises(InputError, match=r"'train' and 'training', which mean the same"):
        load(root)


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    stream = load(flat(tmp_path / "photos", *map(str, range(12)), each=4), test_fraction=0.3, tasks=4)
    assert stream["task01"].classes == ("0", "1", "2")
    assert stream["task04"].classes == ("9", "10", "11")
    assert sorted(["a10", "a9b2", "a9b10", "B1"], key=natural) == ["B1", "a9b2", "a9b10", "a10"]


def test_names_that_look_alike_are_one_class(tmp_path: Path) -> None:
    composed, parted = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    root = photos(tmp_path / "photos", "bar", composed)
    (root / "test" / composed).rename(root / "test" / parted)
    paint(root / "train" / parted / "more.png", 90)
    for split in (None, {parted: [parted], "b": ["bar"]}):  # capitals come first
        stream = load(root, split=split)
        assert stream.classes == (composed, "bar")
        assert sum(len(task.train) for task in stream) == 7
    assert stream.subset([parted])[0].name == composed


@pytest.mark.skipif(sys.platform != "linux", reason="file systems that tell A from a")
def test_classes_that_differ_in_capitals_are_two_and_tasks_that_do_are_refused(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "A", "a")
    assert load(root).classes == ("A", "a")
    with pytest.raises(InputError, match=r"'A' and 'a' differ in capitals only.*Rename"):
        load(root, split={"A": ["A"], "a": ["a"]})


def test_classes_on_one_side_only_are_all_named(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "cat", "dog", "elk")
    (root / "test" / "dog").rename(root / "test" / "wolf")
    with pytest.raises(InputError, match=r"in train but not in test: dog; in test but not in train: wolf.*--split"):
        load(root)
    assert load(root, split={"a": ["cat", "elk"]}).classes == ("cat", "elk")


def test_broken_images_stop_before_learning_or_are_listed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "cat", "dog", train=5)
    (root / "train" / "cat" / "1.png").write_bytes(b"text")
    (root / "train" / "dog" / "2.png").write_bytes((root / "train" / "dog" / "3.png").read_bytes()[:50])
    with pytest.raises(InputError, match=r"1\.png' is not an image"):
        load(root).decode(SMALL)
    stream = load(root, skip_broken=True)
    stream.decode(SMALL)
    assert torch.bincount(stream[0].train.labels).tolist() == [4, 4]
    assert "left out: " in said(stream)
    assert all(name in said(stream) for name in ("cat/1.png", "is not an image", "dog/2.png", "cannot be decoded"))
    again = reloaded(json.loads(json.dumps(stream.source())))
    assert [len(task.train) for task in again] == [8]


def test_dark_images_of_a_data_set_are_read_alike(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    for side in ("train", "test"):
        for kind, largest in (("a", 900), ("b", 4000)):
            for index in range(2):
                path = root / side / kind / f"{index}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((9, 9), largest + index, np.uint16)).save(path)
    stream = load(root)
    assert "12-bit" in said(stream)
    assert stream[0].train.tensor(SMALL)[0, 0, 0, 0] == round(900 / 4095 * 255)
    assert stream[0].test.tensor(SMALL)[0, 0, 0, 0] == round(900 / 4095 * 255)
    assert stream.record()["load"]["bits"] == 12
    assert load(root, bits=16)[0].train.tensor(SMALL).max() == round(4001 / 65535 * 255)
    with pytest.raises(InputError, match="bits is 7: expected 8 to 31"):
        load(root, bits=7)


def test_the_same_picture_twice_is_counted(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "cat", "dog")
    assert repeated(load(root)) == []
    shutil.copy(root / "train" / "cat" / "0.png", root / "test" / "cat" / "again.png")
    shutil.copy(root / "train" / "cat" / "1.png", root / "train" / "dog" / "again.png")
    shutil.copy(root / "train" / "cat" / "2.png", root / "train" / "dog" / "too.png")
    both, classes = repeated(load(root))
    assert both.startswith("1 picture is in training and in test")
    assert "test/cat/again.png" in both.replace(os.sep, "/")
    assert classes.startswith("2 pictures are in two classes")
    assert notes_on(load(root), backbone()) == [f"photos: {both}", f"photos: {classes}"]


# ---- held out by what is in an image


def test_photos_that_are_added_move_no_other_from_side_to_side(tmp_path: Path) -> None:
    root = flat(tmp_path / "photos", "cat", "dog", each=30)

    def names(stream: TaskStream) -> tuple[set[str], set[str]]:
        train, test = ({str(file) for file in side.files or ()} for side in (stream[0].train, stream[0].test))
        return train, test

    train, test = names(load(root, test_fraction=0.25))
    assert 8 <= len(test) <= 22
    for kind in ("cat", "dog"):
        for index in range(20):
            paint(root / kind / f"!{index}.png", 5000 + index + (kind == "dog") * 100)
    more_train, more_test = names(load(root, test_fraction=0.25))
    assert train < more_train
    assert test < more_test


def test_a_class_so_small_that_chance_holds_out_none_still_has_a_test_image() -> None:
    for seed in range(50):
        kept, held = held_out_by_hash(["a", "b", "c"], 0.05, f"test/{seed}", "cat")
        assert (len(kept), len(held)) == (2, 1)
        kept, held = held_out_by_hash(["a", "b", "c", "d"], 0.95, f"test/{seed}", "cat")
        assert len(kept) == 2
    found = held_out_by_hash([str(i) for i in range(2000)], 0.25, "k", "cat")[1]
    assert 400 < len(found) < 600
    with pytest.raises(InputError, match="'cat' has 2 images to divide"):
        held_out_by_hash(["a", "b"], 0.5, "k", "cat")


# ---- streams that grow


def test_streams_are_loaded_again_by_the_classes_that_were_learned(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "ant", "cow", "dog", "fox")
    stream = load(root, tasks=2)
    source = json.loads(json.dumps(stream.source()))
    photos(root, "bee", "yak")
    shutil.rmtree(root / "train" / "fox")
    again = gathered({"task01": source})
    assert again["task01"].classes == ("ant", "cow")
    photos(root, "fox")
    assert {t.name: t.classes for t in reloaded(source)} == {"task01": ("ant", "cow"), "task02": ("dog", "fox")}
    assert reloaded(stream.record())[1].classes == ("dog", "fox")
    assert list(stream.subset(["task02"]).validation(0.34, 0).source()["split"]) == ["task02"]
    assert reloaded(stream.joined().source())[0].classes == ("ant", "cow", "dog", "fox")
    drawn = load(root, tasks=3, order="shuffled", seed=4)
    photos(root, "zebu")
    assert [t.classes for t in gathered({t.name: drawn.source() for t in drawn})] == [t.classes for t in drawn]


def test_task_numbers_go_on(tmp_path: Path) -> None:
    stream = load(photos(tmp_path / "photos", "cat", "dog"), tasks=2, first_task=11)
    assert [task.name for task in stream] == ["task11", "task12"]
    assert [task.name for task in reloaded(stream.source())] == ["task11", "task12"]
    assert TaskStream.load(**stream.record()["load"])[1].classes == ("dog",)


# ---- lists


def listing(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> str:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return f"csv:{path}"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_list_of_images(tmp_path: Path, delimiter: str) -> None:
    rows = []
    for index in range(12):
        path = paint(tmp_path / "a" / f"{index}.png", index)
        split = ("train", "Train", "test", "val")[index % 4]
        rows.append({"path": path.relative_to(tmp_path).as_posix(), "label": f"cat, {index // 4 % 2}", "split": split})
    stream = TaskStream.load(listing(tmp_path / "list.csv", rows, delimiter))
    assert stream.name == "list"
    assert stream.classes == ("cat, 0", "cat, 1")
    assert (len(stream[0].train), len(stream[0].test)) == (6, 3)


def test_a_list_without_splits_is_divided(tmp_path: Path) -> None:
    rows = [{"Path": str(paint(tmp_path / f"{i}.png", i)), "label": str(i % 2)} for i in range(20)]
    spec = listing(tmp_path / "list.csv", rows)
    with pytest.raises(InputError, match=r"does not say which images are to test.*column 'split'"):
        TaskStream.load(spec)
    stream = TaskStream.load(spec, test_fraction=0.3, tasks=2)
    assert sum(len(task.train) + len(task.test) for task in stream) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns none: expected path, label"),
        ("file,class\na.png,cat\n", r"has the columns file, class: expected path, label.*Name path and label"),
        ("path,label\n", "names no image"),
        ("path,label\na.png\n", "line 2, has no label"),
        ("path,label\n,cat\n", "line 2, has no path"),
        ("path,label,split\na.png,cat,train\nb.png,cat,holdout\n", "line 3: split 'holdout': expected one of train"),
        ("path,label,split\nnone.png,cat,train\nno.png,cat,test\n", r"none\.png' is not there"),
    ],
)
def test_a_bad_list(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        TaskStream.load(f"csv:{tmp_path / 'list.csv'}")


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv' cannot be read: No such file"):
        TaskStream.load(f"csv:{tmp_path / 'none.csv'}")
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe.png,cat\n")
    with pytest.raises(InputError, match=r"list\.csv' is not UTF-8"):
        TaskStream.load(f"csv:{tmp_path / 'list.csv'}")


# ---- data sets of a hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's own caches, in a folder of the tests."""
    datasets = pytest.importorskip("datasets")
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("hub")
    datasets.disable_progress_bars()
    return tmp_path_factory.mktemp("sets")


def png(shade: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (shade, 0, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(folder: Path, split: str, columns: dict[str, list[Any]], types: dict[str, Any]) -> None:
    """A split of a data set as a hub has it."""
    import datasets  # noqa: PLC0415

    (folder / "data").mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(types))
    made.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def labelled(hub: Path, name: str, label: Callable[[int], Any], kind: Any, column: str = "label", **more: Any) -> Path:
    import datasets  # noqa: PLC0415

    for split, count in (("train", 8), ("test", 4)):
        columns = {"image": [png(10 * i) for i in range(count)], column: [label(i) for i in range(count)]}
        columns |= {name: [label(i) for i in range(count)] for name in more}
        table(hub / name, split, columns, {"image": datasets.Image(), column: kind, **more})
    return hub / name


def test_a_local_data_set_of_named_classes(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # noqa: PLC0415

    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    root = labelled(hub, "pets", lambda i: i % 2, datasets.ClassLabel(names=["zebra", "ant"]))
    stream = TaskStream.load(f"hf:{root}", tasks=2)
    assert stream.name == "pets"
    assert [task.classes for task in stream] == [("ant",), ("zebra",)]
    assert stream["task02"].train.tensor(SMALL)[:, 0, 0, 0].tolist() == [0, 20, 40, 60]
    assert stream["task01"].test.tensor(SMALL)[:, 0, 0, 0].tolist() == [10, 30]
    again = reloaded(json.loads(json.dumps(stream.source())))
    assert torch.equal(again[0].train.tensor(SMALL), stream[0].train.tensor(SMALL))


def test_labels_without_names_are_sorted_naturally(hub: Path) -> None:
    import datasets  # noqa: PLC0415

    root = labelled(hub, "numbers", lambda i: [2, 10, 9, 1][i % 4], datasets.Value("int64"), "target")
    assert TaskStream.load(f"hf:{root}").classes == ("1", "2", "9", "10")


def test_columns_that_are_not_clear_are_named_with_what_to_write(hub: Path) -> None:
    import datasets  # noqa: PLC0415

    two = {"coarse": datasets.ClassLabel(names=["a", "b"])}
    root = labelled(hub, "two", lambda i: i % 2, datasets.ClassLabel(names=["x", "y"]), "fine", **two)
    with pytest.raises(InputError, match=r"several columns of labels.*image, fine, coarse.*:image,fine"):
        TaskStream.load(f"hf:{root}")
    assert TaskStream.load(f"hf:{root}:image,coarse").classes == ("a", "b")
    coarse = {"coarse_label": datasets.ClassLabel(names=["a", "b"])}  # CIFAR-100's
    cifar = labelled(hub, "cifar", lambda i: i % 2, datasets.ClassLabel(names=["x", "y"]), "fine_label", **coarse)
    assert TaskStream.load(f"hf:{cifar}").classes == ("x", "y")
    both = {"category": datasets.ClassLabel(names=["a", "b"])}
    unclear = labelled(hub, "both", lambda i: i % 2, datasets.ClassLabel(names=["x", "y"]), "label", **both)
    with pytest.raises(InputError, match=r"several columns of labels.*label, category"):
        TaskStream.load(f"hf:{unclear}")
    assert TaskStream.load(f"hf:{root}:,fine").classes == ("x", "y")
    with pytest.raises(InputError, match=r"no column 'nonsense'.*image, fine, coarse"):
        TaskStream.load(f"hf:{root}:image,nonsense")


def configured(folder: Path) -> Path:
    """A data set with two configurations, declared as the hub does it: at the head of its README."""
    import datasets  # noqa: PLC0415

    kinds = {"coarse": ["pet", "fish"], "fine": ["cat", "dog", "carp"]}
    head = ["---", "configs:"]
    for config, names in kinds.items():
        types = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        head += [f"- config_name: {config}", "  data_files:"]
        for split, count in (("train", 9), ("test", 3)):
            columns = {"image": [png(10 * i) for i in range(count)], "label": [i % len(names) for i in range(count)]}
            table(folder / config, split, columns, types)
            head += [f"  - split: {split}", f"    path: {config}/data/{split}-*"]
    (folder / "README.md").write_text("\n".join([*head, "---", ""]))
    return folder


def test_a_configuration_is_named_where_there_are_several(hub: Path) -> None:
    root = configured(hub / "animals")
    stream = TaskStream.load(f"hf:{root}?config=fine:image,label")
    assert (stream.name, stream.classes) == ("animals-fine", ("carp", "cat", "dog"))
    assert TaskStream.load(f"hf:{root}?config=coarse").classes == ("fish", "pet")
    assert reloaded(json.loads(json.dumps(stream.source()))).classes == stream.classes
    with pytest.raises(InputError, match=r"several configurations: coarse, fine\. .*animals\?config=coarse"):
        TaskStream.load(f"hf:{root}")
    with pytest.raises(InputError, match=r"no configuration 'nonsense'; there are coarse, fine"):
        TaskStream.load(f"hf:{root}?config=nonsense")


def test_a_data_set_of_one_configuration_has_no_other(hub: Path) -> None:
    root = configured(hub / "alone")
    head = (root / "README.md").read_text()
    (root / "README.md").write_text(head[: head.index("- config_name: fine")] + "---\n")
    assert TaskStream.load(f"hf:{root}").classes == TaskStream.load(f"hf:{root}?config=coarse").classes
    with pytest.raises(InputError, match=r"no configuration 'fine'; there are coarse"):
        TaskStream.load(f"hf:{root}?config=fine")


def test_images_without_a_label_are_left_out_and_said(hub: Path) -> None:
    import datasets  # noqa: PLC0415

    root = labelled(hub, "holes", lambda i: -1 if i == 3 else i % 2, datasets.ClassLabel(names=["x", "y"]))
    stream = TaskStream.load(f"hf:{root}")
    assert (len(stream[0].train), len(stream[0].test)) == (7, 3)
    assert "left out: 1 images of split 'train' without a label" in said(stream)


def test_a_data_set_that_is_not_there_and_one_without_the_library(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub / "empty").mkdir()
    with pytest.raises(InputError, match=r"hf:.*empty cannot be loaded"):
        TaskStream.load(f"hf:{hub / 'empty'}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs datasets.*pip install 'intarsia\[hf\]'"):
        TaskStream.load(f"hf:{hub / 'empty'}")


def test_where_a_data_set_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets" / "pets").mkdir(parents=True)
    assert hub_parts("owner/pets") == ("owner/pets", None, None, ())
    assert hub_parts("owner/pets@v1:img,label") == ("owner/pets", "v1", None, ("img", "label"))
    assert hub_parts("owner/pets@v1?config=a b:img,label") == ("owner/pets", "v1", "a b", ("img", "label"))
    assert hub_parts("sets/pets:img,label") == ("sets/pets", None, None, ("img", "label"))
    for wrong in ("owner/pets?split=train", "owner/pets?config=", "owner/pets?config=a&revision=v1"):
        with pytest.raises(InputError, match=r"expected the one option \?config="):
            hub_parts(wrong)
    assert absolute("hf:owner/pets@v1:img,label") == "hf:owner/pets@v1:img,label"
    local = absolute("hf:sets/pets:img,label")
    assert local == f"hf:{tmp_path / 'sets' / 'pets'}:img,label"
    assert kept(local, tmp_path / "pool") == "hf:../sets/pets:img,label"
    assert absolute(kept(local, tmp_path / "pool"), tmp_path / "pool") == local
    configured = absolute("hf:sets/pets?config=a:img,label")
    assert configured == f"hf:{tmp_path / 'sets' / 'pets'}?config=a:img,label"
    assert kept(configured, tmp_path / "pool") == "hf:../sets/pets?config=a:img,label"
    (tmp_path / "sets" / "what?config=a").mkdir()
    assert hub_parts("sets/what?config=a") == ("sets/what?config=a", None, None, ())
    inside = absolute("hf:./sets/pets")
    assert kept(inside, tmp_path / "sets") == "hf:./pets"
    assert absolute("csv:list.csv") == f"csv:{tmp_path / 'list.csv'}"
    assert absolute("folder:~/photos") == f"folder:{Path.home().resolve() / 'photos'}"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the shared photos are not here")
def test_cifar_as_a_hub_has_it(hub: Path) -> None:
    stream = TaskStream.load(f"hf:{CIFAR}", tasks=10, max_per_class=8)
    assert [len(task.classes) for task in stream] == [10] * 10
    assert stream[0].classes[:2] == ("apple", "aquarium_fish")
    assert all((len(task.train), len(task.test)) == (80, 80) for task in stream)
    assert stream.augmentation == "photo"
    assert stream[3].train.tensor(SMALL).float().std() > 20


# ---- augmentation


def test_the_kind_of_augmentation_is_the_user_s_if_one_is_named(tmp_path: Path) -> None:
    root = photos(tmp_path / "arrows", "left", "right")
    assert load(root).augmentation == "photo"
    stream = load(root, augment="crop")
    assert stream.augmentation == stream.source()["augmentation"] == "crop"
    assert reloaded(stream.source()).augmentation == "crop"
    with pytest.raises(InputError, match="no augmentation 'flip': expected one of none, sketch, photo, crop"):
        load(root, augment="flip")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_package_is_imported_and_folders_are_read_without_the_library_of_hubs(tmp_path: Path) -> None:
    photos(tmp_path / "photos", "cat", "dog")
    code = (
        "import sys; sys.modules['datasets'] = None; sys.modules['transformers'] = None\n"
        "from intarsia import TaskStream\n"
        f"print(TaskStream.load('folder:{tmp_path / 'photos'}').classes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "('cat', 'dog')" in done.stdout


def test_a_stream_loaded_again_has_the_record_it_was_loaded_from() -> None:
    """Else a run that was stopped could not be resumed: it would differ in its stream."""
    for stream in (TaskStream.load("sketches", max_per_class=2), TaskStream.load("sketches", tasks=5, max_per_class=2)):
        some = stream.subset([1, 2])
        for made in (stream, some):
            assert reloaded(json.loads(json.dumps(made.record()))).record() == made.record()
