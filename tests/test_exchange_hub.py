"""Push and pull through a real server on this machine that speaks the hub's routes: no mock of our own client."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import hub
from huggingface_hub import constants

from cases import backbone, contents, edit
from intarsia import ComposedModel, InputError, Pool
from intarsia.backbones.libraries import hub as reach
from intarsia.exchange.hub import pull, push
from intarsia.store.files import Seen
from intarsia.store.index import Index
from intarsia.store.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _a_hub_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whether the usual hub can be reached does not matter to a server of our own."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(reach, "reachable", lambda: True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # as the variable does: the server has no such store
    yield


def of_pool(folder: Path) -> dict[str, str]:
    """Hashes of the files that its index names; what was carried to the task before lies beside them for a while."""
    named = {"pool.json", *Index.read(folder).files}
    return {name: found for name, found in contents(folder).items() if name in named}


def test_a_pool_goes_and_comes_bit_for_bit(learned: Path, tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "modules").mkdir()
    (tmp_path / "remote" / "modules" / "old.json").write_text("{}")  # of an earlier push
    with hub({"maker/pool": tmp_path / "remote"}) as (address, asked):
        said = {"tasks": ["task01", "task02"], "accuracy_matrix": [[90.0], [81.25, 70.0]], "final_accuracy": 75.5}
        url = push(learned, "maker/pool", endpoint=address, evaluation=said, licence="mit")
        assert url.startswith(address)
        assert any(request.startswith("PUT") for request in asked)
        assert of_pool(tmp_path / "remote") == of_pool(learned)
        assert not any("/v1" in request for request in asked)
        push(learned, "maker/pool", endpoint=address, evaluation=said, licence="mit", revision="v1")
        assert {"POST /api/models/maker/pool/branch/v1", "POST /api/models/maker/pool/commit/v1"} <= set(asked)
        assert sum(request.startswith("GET /api/models/maker/pool/tree/v1") for request in asked) == 1
        names = pull("maker/pool", tmp_path / "pulled", endpoint=address, cache=tmp_path / "cache")
        assert pull("maker/pool@v1", tmp_path / "v1", endpoint=address, cache=tmp_path / "cache") == names
    assert of_pool(tmp_path / "pulled") == of_pool(tmp_path / "v1") == of_pool(learned)
    assert set(names) == set(of_pool(learned))
    ours, theirs = (Pool.open(folder, backbone()).mean() for folder in (learned, tmp_path / "pulled"))
    assert torch.equal(ours.head.weight, theirs.head.weight)
    card = (tmp_path / "remote" / "README.md").read_text()
    parts = ("license: mit", "tiny0", "4 tasks, 8 classes", "lora, rank 2", "81.2", "75.5 %", "class0, class1")
    for part in (*parts, "fisher of task01"):
        assert part in card, (part, card)
    assert "intarsia pull maker/pool --out pool" in card


@pytest.mark.parametrize("record", [[], {}, {"tasks": [], "accuracy_matrix": [], "final_accuracy": 5}, {"tasks": 3}])
def test_an_evaluation_that_is_none_is_refused_before_anything_leaves(learned: Path, record: Any) -> None:
    with hub({}) as (address, asked):
        with pytest.raises(InputError, match="expected what `intarsia evaluate --json` prints"):
            push(learned, "maker/pool", endpoint=address, evaluation=record)
        assert asked == []


SECRET = "/home/me/secret"


def test_paths_of_this_machine_stay_here(copied: Path, tmp_path: Path) -> None:
    """Of images, weights and an imported adapter's base; what is pushed is a whole pool all the same."""
    card = copied / "modules" / "task02" / "card.json"
    stream = {"name": "photos", "load": {"spec": f"folder:{SECRET}/photos", "tasks": 2}, "changes": []}
    imported = {"method": "imported", "imported": {"from": "peft", "base": f"{SECRET}/dinov2"}}
    edit(card, lambda r: r.update(stream=stream, settings=imported))

    def far(record: dict) -> None:
        record["backbone"]["name"] = f"timm/test_vit@{SECRET}/w.safetensors?image-size=48"
        record["files"]["modules/task02/card.json"] = asdict(Seen.of(card.read_bytes()))

    edit(copied / "pool.json", far)
    before, said = contents(copied), list[str]()
    (tmp_path / "remote").mkdir()
    with hub({"maker/pool": tmp_path / "remote"}) as (address, _):
        push(copied, "maker/pool", endpoint=address, say=said.append)
        pull("maker/pool", tmp_path / "pulled", endpoint=address, cache=tmp_path / "cache")
    assert contents(copied) == before
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "remote").rglob("*") if p.is_file())
    assert len(said) == 1
    for part in (f"folder:{SECRET}/photos as folder:photos", "timm/test_vit@w.safetensors?image-size=48", "as dinov2"):
        assert part in said[0], (part, said)
    pulled = Pool.open(tmp_path / "pulled")
    assert not verify(pulled)
    assert pulled.card("task02").settings["imported"]["base"] == "dinov2"
    assert Path(pulled.card("task02").stream["load"]["spec"].removeprefix("folder:")).name == "photos"
    changed = {"pool.json", "modules/task02/card.json"}
    assert {n for n, h in of_pool(tmp_path / "pulled").items() if h != of_pool(copied)[n]} == changed


def test_a_composed_models_paths_stay_here_too(pool: Pool, tmp_path: Path) -> None:
    pool.mean().save(tmp_path / "model")
    edit(tmp_path / "model" / "model.json", lambda r: r["recipe"].update(backbone=f"hf/{SECRET}/vit"))
    stream = {"name": "table", "load": {"spec": f"hf:{SECRET}/table:image,label"}}
    edit(tmp_path / "model" / "model.json", lambda r: r["streams"].update(task01=stream))
    (tmp_path / "remote").mkdir()
    with hub({"maker/model": tmp_path / "remote"}) as (address, _):
        push(tmp_path / "model", "maker/model", endpoint=address, say=lambda _: None)
        pull("maker/model", tmp_path / "pulled", endpoint=address, cache=tmp_path / "cache")
    record = json.loads((tmp_path / "pulled" / "model.json").read_text())
    assert record["recipe"]["backbone"] == "hf/./vit"
    assert record["streams"]["task01"]["load"]["spec"] == "hf:./table:image,label"
    assert SECRET not in (tmp_path / "remote" / "README.md").read_text()


def test_a_composed_model_goes_and_comes(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    pool.weighted({"task01": 0.7, "task03": 0.3}).save(tmp_path / "model")
    with hub({"maker/model": tmp_path / "remote"}) as (address, _):
        push(tmp_path / "model", "maker/model", endpoint=address)
        pull("maker/model", tmp_path / "pulled", endpoint=address, cache=tmp_path / "cache")
    assert contents(tmp_path / "pulled") == contents(tmp_path / "model")
    assert ComposedModel.load(tmp_path / "pulled", backbone()).labels == ("class0", "class1", "class4", "class5")
    card = (tmp_path / "remote" / "README.md").read_text()
    assert "| task01 | class0, class1 | 0.7 |" in card
    assert "Licence: none is named." in card


def put(name: str, text: str = "x") -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return spoil


def change_a_byte(folder: Path) -> None:
    path = folder / "modules" / "task02" / "head.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


SPOILT: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a pickle": (put("modules/task01/extra.bin"), ("modules/task01/extra.bin", "safetensors and JSON alone")),
    "code": (put("modeling.py", "print('run')"), ("modeling.py", "may run code")),
    "a changed byte": (change_a_byte, ("modules/task02/head.safetensors", "SHA-256", "restore it")),
    "no file of the index": (
        lambda folder: (folder / "modules" / "task01" / "vector.safetensors").unlink(),
        ("vector.safetensors", "missing"),
    ),
    "an index that names a file elsewhere": (
        lambda folder: edit(
            folder / "pool.json", lambda r: r["files"].update({"../evil.json": r["files"].popitem()[1]})
        ),
        ("pool.json", "damaged"),
    ),
    "neither pool nor model": (
        lambda folder: (folder / "pool.json").unlink(),
        ("maker/pool", "no pool and no composed model", "pool.json or model.json"),
    ),
}


@pytest.mark.parametrize("what", list(SPOILT))
def test_what_is_wrong_on_the_hub_is_one_line_and_nothing_is_written(what: str, learned: Path, tmp_path: Path) -> None:
    remote = Path(shutil.copytree(learned, tmp_path / "remote", ignore=shutil.ignore_patterns("log.jsonl")))
    spoil, words = SPOILT[what]
    spoil(remote)
    with (
        hub({"maker/pool": remote}) as (address, _),
        pytest.raises(InputError) as error,
    ):
        pull("maker/pool", tmp_path / "new", endpoint=address, cache=tmp_path / "cache")
    assert not [word for word in words if word not in str(error.value)], error.value
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("remote", "cache")]


def test_a_path_that_leaves_the_folder_is_refused(learned: Path, tmp_path: Path) -> None:
    """The server lists it, as a hub of ill will might."""
    from intarsia.exchange.hub import refuse_strange  # noqa: PLC0415

    for name in ("../evil.json", "/etc/evil.json", "a/../../evil.json", "c:\\evil.json"):
        with pytest.raises(InputError, match=r"evil.json.*leads out of its folder"):
            refuse_strange(["pool.json", name], "maker/pool")
    refuse_strange(["pool.json", "README.md", ".gitattributes", "modules/a/card.json"], "maker/pool")


def test_a_damaged_pool_is_not_pushed(copied: Path, tmp_path: Path) -> None:
    change_a_byte(copied)
    (tmp_path / "remote").mkdir()
    refused = pytest.raises(InputError, match=r"task02/head.*damaged")
    with hub({"maker/pool": tmp_path / "remote"}) as (address, asked), refused:
        push(copied, "maker/pool", endpoint=address)
    assert asked == []
    assert not list((tmp_path / "remote").iterdir())


def test_the_commands_and_the_cache_without_a_network(learned: Path, tmp_path: Path) -> None:
    """Real processes, as the hub's library reads its address when it is loaded; several commands in each."""
    (tmp_path / "remote").mkdir()

    def run(*commands: list[object], **more: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        code = "from intarsia.cli.main import main\n"
        code += "".join(f"main({[*map(str, command), '--json']!r})\n" for command in commands)
        return subprocess.run([sys.executable, "-c", code], env=env | more, capture_output=True, text=True, check=False)

    with hub({"maker/pool": tmp_path / "remote"}) as (address, _):
        done = run(["push", learned, "maker/pool"], ["pull", "maker/pool", "--out", tmp_path / "pulled"])
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout.partition("\n}\n")[2])["files"]) == set(of_pool(learned))
    again, unknown = (["pull", f"maker/{name}", "--out", tmp_path / name] for name in ("pool", "none"))
    offline = run(again, unknown, HF_HUB_OFFLINE="1")
    assert of_pool(tmp_path / "pool") == of_pool(tmp_path / "pulled") == of_pool(learned)
    assert offline.returncode == 2
    assert "maker/none is not in the hub's cache" in offline.stderr.splitlines()[-1]
    assert "Traceback" not in offline.stderr
    assert not (tmp_path / "none").exists()
