"""Files of every mode become the right pixels; broken ones are named."""

import io
import struct
import threading
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.decoding import decode, decode_all, depth, fit, what_is_wrong
from intarsia.data.files import LIMIT, Row, is_image
from intarsia.errors import InputError

COLOUR = Preprocessing(size=16, resize=16, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
GREY = Preprocessing(size=16, resize=16, channels=1, mean=(0.5,), std=(0.25,))
RAW = Preprocessing(size=64, resize=64, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)


def colour(path: Path, preprocessing: Preprocessing = COLOUR) -> list[int]:
    """The mean colour of a decoded file, which must have the right shape."""
    image = decode(path, preprocessing)
    assert image.dtype == torch.uint8
    assert image.shape == (preprocessing.channels, preprocessing.resize, preprocessing.resize)
    return [round(value) for value in image.float().mean((1, 2)).tolist()]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth random image, uint8 (H, W, C)."""
    small = np.random.default_rng(0).integers(0, 256, (6, 6, channels), dtype=np.uint8)
    image = Image.fromarray(small) if channels == 3 else Image.fromarray(small[..., 0])
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, channels)


# ---- every mode just works


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("L", 100, "png", [100, 100, 100]),
        ("L", 100, "pgm", [100, 100, 100]),
        ("RGB", (200, 100, 50), "png", [200, 100, 50]),
        ("RGB", (200, 100, 50), "bmp", [200, 100, 50]),
        ("RGB", (200, 100, 50), "ppm", [200, 100, 50]),
        ("RGB", (200, 100, 50), "tiff", [200, 100, 50]),
        ("1", 1, "png", [255, 255, 255]),
        ("1", 0, "tif", [0, 0, 0]),
        ("RGBA", (200, 100, 50, 255), "png", [200, 100, 50]),
        ("RGBA", (200, 100, 50, 0), "png", [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), "png", [204, 204, 204]),
        ("RGBA", (200, 100, 50, 255), "webp", [200, 100, 50]),
        ("LA", (100, 255), "png", [100, 100, 100]),
        ("LA", (100, 0), "png", [255, 255, 255]),
        ("CMYK", (0, 255, 255, 0), "tif", [255, 0, 0]),
        ("CMYK", (255, 0, 0, 0), "jpg", [0, 255, 255]),
        ("I;16", 65535, "png", [255, 255, 255]),
        ("I;16", 257 * 70, "png", [70, 70, 70]),
        ("I;16", 257 * 70, "tif", [70, 70, 70]),
        ("I", 257 * 70, "pgm", [70, 70, 70]),
        ("F", 0.2, "tif", [51, 51, 51]),
        ("YCbCr", (100, 128, 128), "jpeg", [100, 100, 100]),
    ],
)
def test_every_mode(
    tmp_path: Path, mode: str, value: int | float | tuple[int, ...], suffix: str, expected: list[int]
) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (20, 30), value).save(path)
    found = colour(path)
    assert found == pytest.approx(expected, abs=2)
    luma = 0.299 * found[0] + 0.587 * found[1] + 0.114 * found[2]
    assert colour(path, GREY) == pytest.approx([luma], abs=2)


def test_a_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    image.save(tmp_path / "bytes.png", transparency=bytes([255, 128]))
    image.save(tmp_path / "clear.gif", transparency=1)
    assert colour(tmp_path / "plain.png") == [200, 100, 50]
    assert colour(tmp_path / "clear.png") == [255, 255, 255]
    assert colour(tmp_path / "bytes.png") == pytest.approx([227, 177, 152], abs=1)
    assert colour(tmp_path / "clear.gif") == [255, 255, 255]


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), shade) for shade in ((250, 0, 0), (0, 250, 0))]
    for suffix in ("gif", "png", "webp"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert colour(path) == pytest.approx([250, 0, 0], abs=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_orientation(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(noise(40, 40))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition which it undoes
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    assert torch.equal(decode(tmp_path / "turned.png", COLOUR), decode(tmp_path / "upright.png", COLOUR))


def test_sixteen_bits_keep_their_order_where_clipping_would_flatten_them(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (16, 1))).save(tmp_path / "ramp.png")
    row = decode(tmp_path / "ramp.png", GREY)[0, 0].int()
    assert row.tolist() == pytest.approx(np.linspace(0, 255, 16).tolist(), abs=1)


def test_an_image_is_cropped_in_its_middle_whatever_its_shape(tmp_path: Path) -> None:
    for size in ((300, 20), (20, 300), (1, 1), (1, 5000), (37, 16)):
        Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "image.png")
        assert colour(tmp_path / "image.png") == [10, 20, 30]
    middle = np.zeros((16, 48, 3), np.uint8)
    middle[:, 16:32] = 255
    Image.fromarray(middle).save(tmp_path / "middle.png")
    assert decode(tmp_path / "middle.png", COLOUR).min() == 255


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(60, 47), (47, 60), (20, 21), (33, 300)])
def test_the_two_crops_are_the_one_of_the_usual_transform(
    tmp_path: Path, interpolation: str, shape: tuple[int, int]
) -> None:
    record = RAW.record() | {"size": 28, "resize": 33, "interpolation": interpolation}
    preprocessing = Preprocessing.from_record(record)
    image = Image.fromarray(noise(*shape))
    image.save(tmp_path / "image.png")
    shorter = min(shape)
    width, height = (33 * side // shorter for side in image.size)
    resized = np.array(image.resize((width, height), Image.Resampling[interpolation.upper()]))
    top, left = round((height - 28) / 2), round((width - 28) / 2)
    expected = torch.tensor(resized[top : top + 28, left : left + 28]).permute(2, 0, 1)
    found = preprocessing.normalize(decode(tmp_path / "image.png", preprocessing)[None])[0] * 255
    assert (found - expected).abs().max() < 2.5


def test_files_and_tensors_agree(tmp_path: Path) -> None:
    for preprocessing in (COLOUR, GREY):
        for shape in ((40, 31), (12, 50), (16, 16)):
            Image.fromarray(noise(*shape)).save(tmp_path / "image.png")
            tensor = torch.tensor(noise(*shape)).permute(2, 0, 1)[None]
            difference = fit(tensor, preprocessing)[0].int() - decode(tmp_path / "image.png", preprocessing).int()
            assert difference.abs().max() <= 2


# ---- what is no image is named


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def test_a_missing_an_empty_and_a_foreign_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.png").mkdir()
    for name, said in {
        "missing.png": "there is no such",
        "empty.png": "is empty",
        "text.jpg": "is not an image",
        "script.png": "is not an image",
        "folder.png": "there is no such",
    }.items():
        with pytest.raises(InputError, match=f"{name}' ?.*{said}"):
            decode(tmp_path / name, COLOUR)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif", "ppm"])
def test_a_file_cut_off_anywhere_is_named(tmp_path: Path, suffix: str) -> None:
    buffer, path = io.BytesIO(), tmp_path / f"cut.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    Image.fromarray(pixels).save(buffer, kind)
    whole = buffer.getvalue()
    for part in (0.01, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: max(1, int(len(whole) * part))])
        with pytest.raises(InputError, match=f"cut.{suffix}"):
            decode(path, COLOUR)


@settings(max_examples=60)
@given(st.data())
def test_damaged_bytes_give_an_image_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 20)).save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    damaged = bytearray(buffer.getvalue())
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=8)):
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "image.png"
    path.write_bytes(damaged)
    try:
        assert decode(path, COLOUR).shape == (3, 16, 16)
    except InputError as error:
        assert "image.png" in str(error)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_decompression_bomb_is_named(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(side, side))
    with pytest.raises(InputError, match=r"bomb\.png.*too large"):
        decode(tmp_path / "bomb.png", COLOUR)


def test_grey_values_that_no_range_holds_are_refused_with_their_range(tmp_path: Path) -> None:
    Image.new("F", (20, 20), 300.0).save(tmp_path / "float.tif")
    Image.new("I", (20, 20), -5).save(tmp_path / "negative.tif")
    Image.new("I;16", (20, 20), 5000).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match=r"float\.tif.*300.*expected 0 to 1"):
        decode(tmp_path / "float.tif", COLOUR)
    with pytest.raises(InputError, match=r"negative\.tif.*-5.*expected 0 to 255"):
        decode(tmp_path / "negative.tif", COLOUR)
    with pytest.raises(InputError, match=r"deep\.tif.*5000.*expected 0 to 4095.*--source\.bits"):
        decode(tmp_path / "deep.tif", COLOUR, bits=12)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("largest", "bits"), [(200, 8), (1023, 10), (4095, 12), (16383, 14), (65535, 16)])
def test_deep_grey_is_scaled_by_the_range_of_its_values(tmp_path: Path, suffix: str, largest: int, bits: int) -> None:
    values = np.linspace(0, largest, 16).astype(np.uint16)
    path = tmp_path / f"dark.{suffix}"
    Image.fromarray(np.tile(values, (16, 1))).save(path)
    expected = (values * (255 / (2**bits - 1))).tolist()
    assert decode(path, GREY)[0, 0].tolist() == pytest.approx(expected, abs=1)
    assert decode(path, GREY, bits=16)[0, 0].tolist() == pytest.approx((values / 257).tolist(), abs=1)
    assert depth([path], [path]) == bits


def test_integers_of_32_bits_are_scaled_too(tmp_path: Path) -> None:
    for largest, white in ((255, 255), (4095, 255), (1_000_000, 243)):
        Image.new("I", (20, 20), largest).save(tmp_path / "int.tif")
        assert colour(tmp_path / "int.tif") == [white] * 3


def test_one_depth_is_found_for_many_files_and_none_for_ordinary_ones(tmp_path: Path) -> None:
    files = [tmp_path / f"{largest}.png" for largest in (7, 900, 4000)]
    for path in files:
        Image.new("I;16", (20, 20), int(path.stem)).save(path)
    assert depth(files, files[:1]) == 12
    dark = decode(files[1], GREY, bits=12)
    assert int(dark.max()) == round(900 / 4095 * 255)
    Image.new("RGB", (20, 20), (1, 2, 3)).save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    assert depth([*files, tmp_path / "broken.png"], [tmp_path / "plain.png", tmp_path / "broken.png"]) is None


def test_many_files_keep_their_order_and_tell_their_progress(tmp_path: Path) -> None:
    paths, seen = [tmp_path / f"{shade}.png" for shade in range(40)], []
    for shade, path in enumerate(paths):
        Image.new("L", (20, 20), shade).save(path)
    images = decode_all(paths, GREY, seen.append)
    assert images[:, 0, 0, 0].tolist() == list(range(40))
    assert sum(seen) == 40


def test_images_are_known_by_their_suffix() -> None:
    assert all(
        map(is_image, ("a.png", "b.JPG", "c.jpeg", "d.Tif", Path("x/e.webp"), "f.pgm", "g.gif", "h.bmp", "i.ppm"))
    )
    assert not any(map(is_image, ("a.txt", "png", ".png", "b.svg", "c.png.zip", "d")))


# ---- fit, normalize, record


def test_what_fits_is_left_as_it_is() -> None:
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    assert fit(images, COLOUR) is images


def test_fit_changes_channels_and_size() -> None:
    images = torch.full((2, 3, 10, 30), 7, dtype=torch.uint8)
    assert torch.equal(fit(images, GREY), torch.full((2, 1, 16, 16), 7, dtype=torch.uint8))
    assert torch.equal(fit(images[:, :1], COLOUR), torch.full((2, 3, 16, 16), 7, dtype=torch.uint8))
    nearest = Preprocessing.from_record(GREY.record() | {"interpolation": "nearest"})
    assert set(fit(torch.randint(2, (2, 1, 40, 40)).byte(), nearest).unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 9, 9), torch.zeros(3, 9, 9).byte(), torch.zeros(2, 2, 9, 9).byte()]
)
def test_fit_refuses_what_is_not_images(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \(N, C, H, W\)"):
        fit(images, COLOUR)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    expected = torch.stack([(images[:, c] / 255 - COLOUR.mean[c]) / COLOUR.std[c] for c in range(3)], 1)
    torch.testing.assert_close(COLOUR.normalize(images), expected)
    torch.testing.assert_close(COLOUR.normalize(images / 255), expected)
    larger = torch.nn.functional.pad(images, (3, 3, 3, 3))
    torch.testing.assert_close(COLOUR.normalize(larger), expected)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 3, 15, 16)])
def test_normalize_refuses_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(B, 3, H, W\).*16"):
        COLOUR.normalize(torch.zeros(shape))


def test_a_record_makes_the_same_preprocessing_again() -> None:
    for preprocessing in (COLOUR, GREY, RAW):
        assert Preprocessing.from_record(preprocessing.record()) == preprocessing
    with pytest.raises(InputError, match="Preprocessing record"):
        Preprocessing.from_record({"size": 16})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 17}, "size 17 and resize 16"),
        ({"channels": 2}, "2 channels"),
        ({"mean": [0.5]}, "mean has 1 values"),
        ({"std": [0.5, 0.0, 0.5]}, "above 0"),
        ({"interpolation": "lanczos"}, "'lanczos'"),
    ],
)
def test_contradictions_in_a_preprocessing_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Preprocessing.from_record(COLOUR.record() | change)


def test_one_file_is_decoded_without_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 20), (10, 20, 30)).save(tmp_path / "image.png")
    started: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    assert torch.equal(decode(tmp_path / "image.png", COLOUR), decode_all([tmp_path / "image.png"], COLOUR)[0])
    alone = len(started)
    decode(tmp_path / "image.png", COLOUR)
    assert len(started) == alone > 0


# ---- large ones, other formats, rows of tables


def jpeg_of(path: Path, size: tuple[int, int], progressive: bool = False) -> Path:
    Image.new("L", size, 100).save(path, quality=20, progressive=progressive)
    return path


def test_a_jpeg_of_more_pixels_than_are_decoded_whole_is_read_at_a_part_of_its_sides(tmp_path: Path) -> None:
    assert colour(jpeg_of(tmp_path / "large.jpg", (12_000, 8_000))) == pytest.approx([100] * 3, abs=3)
    assert LIMIT < 12_000 * 8_000
    assert colour(jpeg_of(tmp_path / "larger.jpg", (20_000, 10_000))) == pytest.approx(
        [100] * 3, abs=3
    )  # Pillow's own opening refuses it
    progressive = jpeg_of(tmp_path / "progressive.jpg", (20_000, 10_000), progressive=True)
    with pytest.raises(InputError, match=r"progressive\.jpg.*20000 x 10000.*too large.*89,478,485.*baseline JPEG"):
        decode(progressive, COLOUR)


@pytest.mark.parametrize("suffix", ["avif", "jfif", "jpe"])
def test_other_suffixes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (20, 30), (200, 100, 50)).save(path, "AVIF" if suffix == "avif" else "JPEG")
    assert is_image(path)
    assert colour(path) == pytest.approx([200, 100, 50], abs=3)


@pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="pillow-heif is installed")
def test_a_format_that_needs_something_says_what(tmp_path: Path) -> None:
    (tmp_path / "image.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(99))
    with pytest.raises(InputError, match=r"image\.heic' is HEIF, which needs pillow-heif: pip install"):
        decode(tmp_path / "image.heic", COLOUR)


def test_a_row_of_a_table_is_decoded_like_the_file_it_holds(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 31)).save(tmp_path / "image.png")
    row = Row("table, row 3", (tmp_path / "image.png").read_bytes)
    assert torch.equal(decode(row, COLOUR), decode(tmp_path / "image.png", COLOUR))
    with pytest.raises(InputError, match="'table, row 4' is not an image"):
        decode(Row("table, row 4", lambda: b"text"), COLOUR)


def test_what_is_wrong_with_which_file(tmp_path: Path) -> None:
    good, cut, empty = (tmp_path / name for name in ("good.jpg", "cut.jpg", "empty.png"))
    Image.fromarray(noise(300, 300)).save(good)
    cut.write_bytes(good.read_bytes()[:-900])
    empty.touch()
    found = what_is_wrong([good, cut, empty])
    assert list(found) == [cut, empty]
    assert "cut.jpg' cannot be decoded" in found[cut]
    assert "empty (0 bytes)" in found[empty]
