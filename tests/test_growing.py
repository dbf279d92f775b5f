"""Pools that grow from the command line: new classes in the same folder, numbers that go on, odd names in flags."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import refused, result
from test_sources import flat, photos

from cases import timm_weights
from intarsia import Pool, TaskStream

pytestmark = pytest.mark.slow

QUICK = ("--epochs", "1", "--batch-size", "8", "--device", "cpu", "--rank", "2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"timm/test_vit@{timm_weights(tmp_path_factory.mktemp('theta0'))}"


@pytest.fixture(scope="module")
def begun(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ of four classes, and pool/ of two tasks learned from them; read only."""
    root = tmp_path_factory.mktemp("begun")
    photos(root / "photos", "ant", "cow", "dog", "fox", train=4)
    learn(root, "--backbone", weights, "--tasks", 2)
    return root


def learn(root: Path, *more: object, data: str = "photos", out: str = "pool") -> dict:
    return result("learn", "--data", f"folder:{root / data}", "--out", root / out, *QUICK, *more)


@pytest.fixture
def home(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "home"))


def test_a_class_that_is_added_to_the_folder_changes_no_earlier_task(home: Path) -> None:
    before = result("evaluate", home / "pool")["per_class"]
    photos(home / "photos", "bee", "cat", train=4)
    assert result("evaluate", home / "pool")["per_class"] == before
    (home / "new.json").write_text(json.dumps({"new, ones=2": ["bee", "cat"]}))
    learn(home, "--split", home / "new.json", "--add")
    after = result("evaluate", home / "pool")
    assert list(after["per_class"]) == ["ant", "cow", "dog", "fox", "bee", "cat"]
    both = result("evaluate", home / "pool", "--weights", "new, ones=2=.5", "task01=.5")
    assert list(both["per_class"]) == ["ant", "cow", "bee", "cat"]
    kept = result("evaluate", home / "pool", "--keep", "new, ones=2")
    assert list(kept["per_class"]) == ["bee", "cat"]
    shutil.rmtree(home / "photos" / "train" / "ant")
    assert result("evaluate", home / "pool", "--drop", "task01")["images"] == 8


def test_numbers_of_tasks_go_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat(home / "later", "gnu", "hen", "ibis", each=8)
    more = ("--tasks", 3, "--add", "--source.test-fraction", ".3")
    assert learn(home, *more, data="later")["tasks"] == ["task01", "task02", "task03", "task04", "task05"]
    assert Pool.open(home / "pool").classes["task05"] == ("ibis",)
    assert result("evaluate", home / "pool")["tasks"] == ["task01", "task02", "task03", "task04", "task05"]
    flat(home / "again", "gnu", "owl", each=8)
    capsys.readouterr()
    again = ("learn", "--data", f"folder:{home / 'again'}", "--out", home / "pool", *QUICK, *more[2:], "--tasks", "2")
    said = refused(capsys, *again)
    assert "'gnu'" in said
    assert "in the pool already, in task 'task03'" in said
    assert "--split" in said


def test_task_names_that_differ_in_capitals_are_refused_by_the_pool(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(home / "photos", "bee")
    (home / "new.json").write_text(json.dumps({"TASK01": ["bee"]}))
    capsys.readouterr()
    split = ("--split", home / "new.json", "--add")
    said = refused(capsys, "learn", "--data", f"folder:{home / 'photos'}", "--out", home / "pool", *QUICK, *split)
    assert "'TASK01' and 'task01'" in said
    assert "capitals" in said


def test_what_was_left_out_is_said_before_learning_and_cached_images_are_found_again(
    home: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "photos" / "train" / "ant" / "9.png").write_bytes(b"text")
    capsys.readouterr()
    said = refused(capsys, "learn", "--data", f"folder:{home / 'photos'}", "--out", home / "new", *QUICK)
    assert "9.png' is not an image" in said
    shutil.copy(home / "photos" / "train" / "cow" / "0.png", home / "photos" / "test" / "cow" / "7.png")
    cache = ("--cache", home / "cache")
    learn(home, "--backbone", weights, "--skip-broken", "--augment", "crop", *cache, out="new")
    told = capsys.readouterr().err
    assert "left out: " in told
    assert "9.png" in told
    assert "1 picture is in training and in test" in told
    kept = sorted(path.stat().st_mtime_ns for path in (home / "cache").glob("*.images"))
    assert len(kept) == 2
    result("evaluate", home / "new", *cache)
    assert sorted(path.stat().st_mtime_ns for path in (home / "cache").glob("*.images")) == kept
    assert Pool.open(home / "new").card("photos").stream["augmentation"] == "crop"
    assert json.loads((home / "new" / "config.json").read_text())["learn"]["source"]["skip_broken"] is True


def test_a_model_reads_dark_images_as_those_it_was_learned_from(weights: str, tmp_path: Path) -> None:
    for side in ("train", "test"):
        for kind, largest in (("dim", 900), ("bright", 4000)):
            for index in range(4):
                path = tmp_path / "photos" / side / kind / f"{index}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((40, 40), largest + index, np.uint16)).save(path)
    learn(tmp_path, "--backbone", weights)
    images = sorted((tmp_path / "photos" / "test").rglob("*.tif"))
    found = Pool.open(tmp_path / "pool").mean().probabilities(images)
    task = TaskStream.load(f"folder:{tmp_path / 'photos'}")[0]
    model = Pool.open(tmp_path / "pool").mean()
    torch.testing.assert_close(found, model.logits(task.test.pixels(model.preprocessing)).softmax(1))
