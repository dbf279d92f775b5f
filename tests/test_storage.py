"""Decoded images: in memory, in a file, or decoded each time: always the same, found again."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cases import QUICK, backbone
from intarsia import ITA, LoRA, TaskStream, learn
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data import pixels as storing
from intarsia.data.image_set import ImageSet
from intarsia.data.pixels import Lazy, Storage
from intarsia.errors import InputError
from intarsia.evaluation.metrics import evaluate

SMALL = Preprocessing(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
SIZE = 3 * 8 * 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Fifty images, all different."""
    made = [tmp_path / "images" / f"{index}.png" for index in range(50)]
    made[0].parent.mkdir()
    for index, path in enumerate(made):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (11, 13, 3), dtype=np.uint8)).save(path)
    return made


def images(files: list[Path], storage: Storage) -> ImageSet:
    return ImageSet.of_files(files, torch.arange(len(files)) % 2, storage)


STORAGES = {
    "memory": lambda folder: Storage(),
    "a file that is gone at the end": lambda folder: Storage(room=0),
    "a folder": lambda folder: Storage(folder / "kept"),
    "nowhere": lambda folder: Storage("off"),
}


@pytest.mark.parametrize("name", STORAGES)
def test_images_are_the_same_wherever_they_are_kept(name: str, files: list[Path], tmp_path: Path) -> None:
    whole = images(files, Storage()).tensor(SMALL)
    kept = images(files, STORAGES[name](tmp_path))
    found = kept.pixels(SMALL)
    assert isinstance(found, torch.Tensor) == (name == "memory")
    assert len(found) == 50
    order = torch.randperm(50)
    assert torch.equal(kept.tensor(SMALL), whole)
    assert torch.equal(found[order[:9]], whole[order[:9]])
    assert torch.equal(found[kept.labels == 1], whole[1::2])
    assert torch.equal(found[40:60], whole[40:])
    assert torch.equal(found[-1], whole[-1])
    chosen = kept.select(torch.tensor([7, 3, 3]))
    assert torch.equal(chosen.tensor(SMALL), whole[[7, 3, 3]])
    both = ImageSet.join([chosen, kept], torch.zeros(53, dtype=torch.long))
    assert torch.equal(both.pixels(SMALL)[torch.tensor([52, 0, 2, 3])], whole[[49, 7, 3, 0]])
    assert kept.pixels(SMALL) is found


def test_what_has_room_stays_in_memory_and_the_rest_goes_into_a_file(files: list[Path]) -> None:
    storage = Storage(room=60 * SIZE)
    first, second = images(files, storage), images(files[:20], storage)
    assert isinstance(first.pixels(SMALL), torch.Tensor)
    assert isinstance(second.pixels(SMALL), Lazy)
    assert "50 images decode to" not in storage.told(50, SMALL)
    told = Storage(room=0).told(50_000, SMALL)
    assert told.startswith("50,000 images decode to 9.2 MiB")
    assert "--cache" in told


@pytest.mark.skipif(os.name != "posix", reason="a file without a name")
def test_a_file_that_is_gone_at_the_end_has_no_name(files: list[Path], tmp_path: Path) -> None:
    kept = images(files, Storage(room=0)).pixels(SMALL)
    assert list((tmp_path / "cache" / "intarsia").iterdir()) == []
    assert len(kept[:]) == 50


def test_a_folder_is_found_again_and_follows_its_images(files: list[Path], tmp_path: Path) -> None:
    folder, seen = tmp_path / "kept", list[int]()
    images(files, Storage(folder)).pixels(SMALL)
    (first,) = folder.glob("*.images")
    changed = first.stat().st_mtime_ns
    images(files, Storage(folder)).pixels(SMALL, seen.append)
    assert first.stat().st_mtime_ns == changed
    assert seen == [50]
    Image.new("RGB", (9, 9), (1, 2, 3)).save(files[4])
    assert images(files, Storage(folder)).tensor(SMALL)[4].flatten(1).float().mean(1).tolist() == [1, 2, 3]
    assert len(list(folder.glob("*.images"))) == 2
    larger = Preprocessing.from_record(SMALL.record() | {"resize": 9})
    images(files, Storage(folder)).pixels(larger)
    assert len(list(folder.glob("*.images"))) == 3
    assert not list(folder.glob("*.part"))


def test_a_part_that_a_killed_run_left_and_a_file_cut_short_are_written_anew(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    whole = images(files, Storage(folder)).tensor(SMALL)
    (path,) = folder.glob("*.images")
    path.with_suffix(".part").write_bytes(b"half")
    path.write_bytes(path.read_bytes()[:-5])
    assert torch.equal(images(files, Storage(folder)).tensor(SMALL), whole)
    assert not list(folder.glob("*.part"))


def _decode(files: list[Path], folder: Path) -> int:
    torch.set_num_threads(1)
    return int(images(files, Storage(folder)).tensor(SMALL).long().sum())


@pytest.mark.slow
def test_two_processes_may_decode_at_once(files: list[Path], tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.starmap(_decode, [(files, tmp_path / "kept")] * 2)
    assert len(set(sums)) == 1
    assert len(list((tmp_path / "kept").glob("*.images"))) == 1


@pytest.mark.parametrize("name", STORAGES)
def test_a_broken_file_is_named_before_anything_is_learned(name: str, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for side in ("train", "test"):
        for kind in ("cat", "dog"):
            (root / side / kind).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (9, 9), (index, 0, 9)).save(root / side / kind / f"{index}.png")
    (root / "test" / "dog" / "2.png").write_bytes(b"\x89PNG")
    stream = TaskStream.load(f"folder:{root}")
    for task in stream:
        for side in (task.train, task.test):
            side.use(STORAGES[name](tmp_path))
    with pytest.raises(InputError, match=r"dog/2\.png"):
        learn(backbone(), stream, out=tmp_path / "pool", adapter=LoRA(2), regularizer=ITA(0.1), training=QUICK)
    assert not list((tmp_path / "pool").glob("*"))


def test_no_room_on_the_disk_and_a_folder_that_cannot_be_made(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file cannot keep 50 decoded images.*--cache off"):
        images(files, Storage(tmp_path / "file")).pixels(SMALL)
    vast = Preprocessing(size=10**6, resize=10**6, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(InputError, match=r"50 decoded images need .* GiB in .*, which has .* GiB: name another folder"):
        images(files, Storage(room=0)).pixels(vast)


def test_a_pool_is_the_same_wherever_its_images_were(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for side in ("train", "test"):
        for number, kind in enumerate(("cat", "dog", "elk", "fox")):
            (root / side / kind).mkdir(parents=True)
            for index in range(4):
                noise = np.random.default_rng(number * 9 + index).integers(0, 256, (9, 9), dtype=np.uint8)
                Image.fromarray(noise).save(root / side / kind / f"{index}.png")
    found = {}
    for cache in ("auto", "off", tmp_path / "kept"):
        stream = TaskStream.load(f"folder:{root}", tasks=2, cache=cache)
        out = tmp_path / f"pool-{Path(cache).name}"
        pool = learn(backbone(), stream, out=out, adapter=LoRA(2), regularizer=ITA(0.1), training=QUICK)
        evaluation = evaluate(pool.mean(), stream).record()
        held = stream.validation(0.25, 0)
        evaluate(pool.mean(), held)
        found[str(cache)] = [(out / "modules" / t / "vector.safetensors").read_bytes() for t in pool.tasks], evaluation
    first, *others = found.values()
    assert all(other == first for other in others)


def test_the_cache_folder_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert storing.cache_folder() == tmp_path / "cache" / "intarsia"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storing.cache_folder() == tmp_path / ".cache" / "intarsia"
