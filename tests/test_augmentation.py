"""Augmentation stays within its bounds, differs by image and follows its generator."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cases import GREY, backbone
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.augmentation import Augmentation, augment, sample_sheet
from intarsia.errors import InputError
from intarsia.training.loop import training_batch

RAW = Preprocessing(size=64, resize=64, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)


def ramps(count: int) -> Tensor:
    """Images whose first channel tells x, whose second y, in 0..255 over 64 pixels."""
    line = ((torch.arange(64) + 0.5) * 4).byte()
    x, y = line.expand(64, 64), line[:, None].expand(64, 64)
    return torch.stack([x, y, torch.full_like(x, 255)]).expand(count, -1, -1, -1).contiguous()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_augmentation_is_normalisation() -> None:
    assert torch.equal(augment(ramps(3), "none", RAW, generator()), RAW.normalize(ramps(3)))


@pytest.mark.parametrize("kind", ["sketch", "photo", "crop"])
def test_a_seed_decides_and_each_image_differs(kind: Augmentation) -> None:
    first, again, other = (augment(ramps(8), kind, RAW, generator(seed)) for seed in (0, 0, 1))
    assert first.shape == (8, 3, 64, 64)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(not torch.equal(first[0], image) for image in first[1:])


def test_a_sketch_is_shifted_scaled_and_turned_within_bounds_and_never_mirrored() -> None:
    x, y, inside = augment(ramps(900), "sketch", RAW, generator()).unbind(1)
    # The centre's colour tells where it comes from.
    shift = torch.stack([image[:, 31:33, 31:33].mean((1, 2)) - 0.5 for image in (x, y)])
    assert shift.abs().max() < 2 / 28 + 0.02
    assert shift.abs().max() > 1.8 / 28
    # The slope of x along x and along y tells scale and angle, to the nearest pixel of twenty.
    along, across = (x[:, 32, 42] - x[:, 32, 22]) * 64 / 20, (x[:, 42, 32] - x[:, 22, 32]) * 64 / 20
    scale, angle = 1 / torch.hypot(along, across), torch.rad2deg(torch.atan2(across, along))
    assert 0.85 < scale.min() < 0.95
    assert 1.05 < scale.max() < 1.15
    assert 8 < angle.abs().max() < 13  # a pixel in twenty is three degrees
    # What comes in from outside is the image's median.
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_most_sketches_are_moved_by_whole_pixels_and_all_keep_their_very_greys() -> None:
    noise = torch.randint(0, 256, (300, 1, 28, 28), generator=generator(), dtype=torch.uint8)
    grey = Preprocessing(28, 28, 1, (0.0,), (1.0,))
    moved = (augment(noise, "sketch", grey, generator()) * 255).round().to(torch.uint8)
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    middle = noise[:, 0, 4:24, 4:24]
    whole = torch.stack([(moved[:, 0, 4 + dy : 24 + dy, 4 + dx : 24 + dx] == middle).all((1, 2)) for dy, dx in shifts])
    assert 0.6 < whole.any(0).float().mean() < 0.75
    assert whole.any(1).all()  # every shift occurs
    assert all(set(new.unique().tolist()) <= set(old.unique().tolist()) for new, old in zip(moved, noise, strict=True))


def test_a_sketch_cut_from_a_larger_square_keeps_its_middle() -> None:
    smaller = Preprocessing.from_record(RAW.record() | {"size": 32})
    image = augment(ramps(400), "sketch", smaller, generator())
    plain = smaller.normalize(ramps(1))
    assert image.shape == (400, 3, 32, 32)
    assert (image.mean(0) - plain[0])[:2].abs().max() < 0.03


def test_a_photo_is_cropped_within_bounds_and_mirrored_half_the_time() -> None:
    x, y, inside = augment(ramps(600), "photo", RAW, generator()).unbind(1)
    width = (x[:, 32, 48] - x[:, 32, 16]) * 2
    height = (y[:, 48, 32] - y[:, 16, 32]) * 2
    assert 0.4 < (width < 0).float().mean() < 0.6
    assert height.min() > 0
    area, ratio = width.abs() * height, width.abs() / height
    assert 0.06 < area.min() < 0.15
    assert 0.85 < area.max() < 1.03
    assert ratio.min() > 0.72
    assert ratio.max() < 1.4
    # The crop lies inside the image: nothing is filled in, and it reaches each side.
    assert inside.min() > 0.99
    assert x.min() < 0.05
    assert x.max() > 0.95


class Devices(TorchFunctionMode):
    """Where images are sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.grid_sample, F.affine_grid):
            self.seen.add(args[0].device.type)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["none", "sketch", "photo"])
def test_images_are_augmented_where_the_backbone_is(kind: Augmentation) -> None:
    """The random numbers are drawn on the CPU whatever the device; `meta` stands in for a card."""
    theta0, images = backbone().to("meta"), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    here, there = generator(3), generator(3)
    with Devices() as devices:
        made = training_batch(images, theta0, kind, there)
    augment(images, kind, GREY, here)
    assert made.device.type == "meta"
    assert devices.seen == (set() if kind == "none" else {"meta"})
    assert torch.equal(here.get_state(), there.get_state())


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(InputError, match=r"'blur'.*none, sketch, photo"):
        augment(ramps(1), "blur", RAW, generator())  # pyright: ignore[reportArgumentType]


def test_a_crop_is_a_photo_s_without_the_mirror() -> None:
    crop, photo = (augment(ramps(400), kind, RAW, generator(5)) for kind in ("crop", "photo"))
    rises = crop[:, 0, 32, 40] > crop[:, 0, 32, 24]  # from left to right, as in the image
    assert bool(rises.all())
    mirrored = photo[:, 0, 32, 40] < photo[:, 0, 32, 24]
    assert 120 < int(mirrored.sum()) < 280
    assert torch.equal(crop[~mirrored], photo[~mirrored])
    torch.testing.assert_close(crop[mirrored], photo[mirrored].flip(3), atol=1e-4, rtol=0)


def test_a_sheet_shows_each_image_as_it_is_and_augmented() -> None:
    sheet = sample_sheet(ramps(2), "crop", RAW, generator(), each=3)
    assert sheet.dtype == torch.uint8
    assert sheet.shape == (3, 2 * 64, 4 * 64)
    assert torch.equal(sheet[:, :64, :64], ramps(1)[0])
    assert not torch.equal(sheet[:, :64, 64:128], sheet[:, 64:, 64:128])
