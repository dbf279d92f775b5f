"""timm's own evaluation transforms, reproduced to the pixel from files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from intarsia.backbones.libraries.timm import timm_preprocessing
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.decoding import decode, fit
from intarsia.data.image_set import ImageSet
from intarsia.errors import InputError

CONFIGS = (
    "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "coat_lite_medium_384.in1k",
    "convnext_base.fb_in22k_ft_in1k_384",
    "deepseek_vit_412m.deepseek_v4_flash_vision_exp",
    "deit3_small_patch16_384.fb_in22k_ft_in1k",
    "deit_tiny_patch16_224.fb_in1k",
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
    "resnet50.a1_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "test_vit.r160_in1k",
    "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch16_384.augreg_in21k_ft_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "vit_small_patch14_dinov2.lvd142m",
)
SIZES = ((640, 480), (333, 500), (37, 53), (224, 224), (1000, 260))


def config_of(name: str) -> dict[str, object]:
    from timm.data.config import resolve_data_config  # noqa: PLC0415  only beside an imported intarsia
    from timm.models import get_pretrained_cfg  # noqa: PLC0415

    found = get_pretrained_cfg(name)
    assert found is not None, name
    return resolve_data_config(pretrained_cfg=found.to_dict())


def theirs(config: dict[str, object], image: Image.Image) -> Tensor:
    from timm.data.transforms_factory import create_transform  # noqa: PLC0415

    found = create_transform(**config, is_training=False)(image)  # pyright: ignore
    assert isinstance(found, Tensor)
    return found


def photo(width: int, height: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed)
    coarse = Image.fromarray(noise.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height))
    grain = noise.integers(-40, 40, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", CONFIGS)
def test_files_become_what_timms_transform_makes_of_them(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    preprocessing = timm_preprocessing(name, config)
    assert Preprocessing.from_record(preprocessing.record()) == preprocessing
    for seed, size in enumerate(SIZES):
        image = photo(*size, seed)
        image.save(tmp_path / "image.png")
        got = preprocessing.normalize(decode(tmp_path / "image.png", preprocessing)[None])[0]
        torch.testing.assert_close(got, theirs(config, image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("crop", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875, 0.95])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_every_crop_and_share_is_timms(crop: str, crop_pct: float, interpolation: str, tmp_path: Path) -> None:
    config: dict[str, object] = {
        "input_size": (3, 37, 37),
        "crop_pct": crop_pct,
        "crop_mode": crop,
        "interpolation": interpolation,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.25),
    }
    preprocessing = timm_preprocessing("made", config)
    for seed, size in enumerate(((64, 48), (48, 65), (37, 37), (20, 31), (43, 40), (150, 40), (1, 30))):
        image = photo(*size, seed)
        image.save(tmp_path / "image.png")
        got = preprocessing.normalize(decode(tmp_path / "image.png", preprocessing)[None])[0]
        torch.testing.assert_close(got, theirs(config, image), rtol=0, atol=1e-5)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        off = (fit(tensor, preprocessing)[0].int() - decode(tmp_path / "image.png", preprocessing).int()).abs()
        assert interpolation == "nearest" or float(off.float().mean()) < 1  # Pillow rounds between its two passes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_base_patch16_sapiens2.fb", r"1024 x 768.*expected a square"),
        ("volo_d5_512.sail_in1k", r"crop_pct 1\.15.*at most 1"),
    ],
)
def test_models_that_want_something_else_are_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(InputError, match=f"timm/{name}.*{said}"):
        timm_preprocessing(name, config_of(name))


def test_kept_images_are_those_of_their_crop(tmp_path: Path) -> None:
    """One set, asked by backbones that differ in nothing but the crop, or in the colour of its border."""
    photo(60, 30, 0).save(tmp_path / "image.png")
    images = ImageSet.of_files([tmp_path / "image.png"], torch.zeros(1, dtype=torch.long))
    plain = Preprocessing(16, 16, 3, (0.5,) * 3, (0.5,) * 3)
    made = [
        images.tensor(Preprocessing.from_record(plain.record() | change))
        for change in ({}, {"crop": "squash"}, {"crop": "border"}, {"crop": "border", "mean": [0.1] * 3})
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])
    assert images.tensor(plain) is images.tensor(Preprocessing.from_record(plain.record() | {"std": [0.1] * 3}))
