"""Pools and merged models as they are kept: moved, damaged in part, renamed, cut down, asked from anywhere."""

import csv
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_cli import refused as refused_alone
from test_cli import result
from test_survival import watched

from bad_input import furnish
from cases import backbone, contents, edit, stream
from hostile import flip
from intarsia import ComposedModel, InputError, Pool
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.cli.main import main
from intarsia.merging import model as models
from intarsia.merging.recipe import unlearn
from intarsia.store.rewrite import remove, rename
from intarsia.store.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, weights.safetensors, pool/ learned there by relative paths, and composed/ made of it; read only."""
    return furnish(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def home(furnished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of all of it in another place, asked from yet another."""
    shutil.copytree(furnished, tmp_path / "home")
    (tmp_path / "elsewhere").mkdir()
    with chdir(tmp_path / "elsewhere"):
        yield Path("..") / "home"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line a bad call prints, whatever was printed before it."""
    capsys.readouterr()
    return refused_alone(capsys, *arguments)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", none)
    monkeypatch.setattr(socket, "getaddrinfo", none)


# Where things are


def test_a_pool_that_was_moved_with_what_it_was_learned_from_is_asked_from_anywhere(home: Path) -> None:
    record = json.loads((home / "pool" / "pool.json").read_text())
    assert record["backbone"]["name"] == "timm/test_vit@../weights.safetensors"
    assert result("evaluate", home / "pool")["images"] == 12
    image = home / "photos" / "test" / "red" / "0.png"
    assert result("predict", home / "pool", image)["predictions"][0]["image"] == str(image)
    result("compose", home / "pool", "--out", "merged")
    moved = shutil.move(home, "there")
    assert result("evaluate", Path(moved) / "pool", "--matrix", "no")["images"] == 12


def test_what_lies_elsewhere_today_is_named_by_option(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = home / "pool"
    before = result("evaluate", pool)["accuracy_matrix"]
    shutil.move(home / "weights.safetensors", "w.safetensors")
    shutil.copytree(home / "photos", "a")
    shutil.move(home / "photos", "b")
    said = refused(capsys, "evaluate", pool)
    assert "weights.safetensors cannot be read" in said
    backbone = ("--backbone", "timm/test_vit@w.safetensors")
    assert "photos" in refused(capsys, "evaluate", pool, *backbone)
    tasks = [f"task01=folder:{Path('a')}", "task02=folder:b", "task03=folder:b"]
    assert result("evaluate", pool, *backbone, "--task-data", *tasks)["accuracy_matrix"] == before
    assert result("unlearn", pool, "task01", *backbone, "--task-data", *tasks)["after"]["control_accuracy"] is not None
    assert result("evaluate", pool, *backbone, "--data", "folder:a", "--tasks", 3)["accuracy_matrix"] == before
    assert "task=source" in refused(capsys, "evaluate", pool, *backbone, "--task-data", "cars=folder:a")
    assert result("verify", pool, *backbone)["damaged"] == []
    assert "open it with the backbone it was learned on" in refused(capsys, "verify", pool, "--backbone", "vit_sketch")


# Merged models


def test_a_study_of_what_lies_elsewhere_today_takes_the_same_options(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, page = home / "pool", tmp_path / "page.html"
    few = ("--per-task", 4)
    before = result("diagnose", pool, *few)
    shutil.move(home / "weights.safetensors", "w.safetensors")
    shutil.move(home / "photos", "b")
    verbs = (("diagnose", pool, *few), ("report", pool, *few, "--out", page), ("presets", "verify", pool))
    backbone = ("--backbone", "timm/test_vit@w.safetensors")
    tasks = [f"task{i:02d}=folder:b" for i in (1, 2, 3)]
    for verb in verbs:
        assert "weights.safetensors cannot be read" in refused(capsys, *verb)
        if verb[0] == "presets":  # which looks at the settings before the images
            continue
        assert "photos" in refused(capsys, *verb, *backbone)
        assert "expected one of them" in refused(
            capsys, *verb, *backbone, "--data", "folder:b", "--tasks", 3, "--task-data", *tasks
        )
    after = result(*verbs[0], *backbone, "--task-data", *tasks)
    assert after["true_gap"] == pytest.approx(before["true_gap"])
    assert result(*verbs[1], *backbone, "--task-data", *tasks) == {"out": str(page)}
    assert "not learned with a preset" in refused(capsys, *verbs[2], *backbone, "--task-data", *tasks)
    for verb in ("diagnose", "report"):
        said = refused(capsys, verb, home / "composed")
        assert "composed" in said and "pool" in said


def test_a_merged_model_needs_neither_pool_nor_theta0_nor_network(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((home / "photos" / "test").rglob("*.png"))
    expected = result("predict", home / "pool", *images)["predictions"]
    evaluated = result("evaluate", home / "pool", "--per-class")
    shutil.copytree(home / "photos", "photos")
    shutil.move(home / "composed", "composed")
    shutil.rmtree(home / "pool")
    (home / "weights.safetensors").unlink()
    offline(monkeypatch)
    assert result("predict", "composed", *images)["predictions"] == expected
    assert result("verify", "composed")["damaged"] == []
    assert [*result("ls", "composed")["classes"]] == ["task01", "task02", "task03"]
    found = result("evaluate", "composed", "--per-class")
    for key in ("final_accuracy", "task_il_accuracy", "per_class", "images"):
        assert found[key] == evaluated[key]
    assert result("evaluate", "composed", "--data", "folder:photos", "--tasks", 3)["images"] == 12
    for verb in (("unlearn", "composed", "task01"), ("compose", "composed", "--out", "new")):
        assert "merged model" in refused(capsys, *verb)
    assert "--drop" in refused(capsys, "predict", "composed", images[0], "--drop", "task01")
    flip(Path("composed/model.safetensors"))
    assert "bytes have changed" in refused(capsys, "verify", "composed")


def test_a_merged_model_loads_strictly_in_timm_as_its_docstring_says(furnished: Path) -> None:
    import timm  # noqa: PLC0415  only beside an imported intarsia

    model = ComposedModel.load(furnished / "composed")
    state = load_file(furnished / "composed" / "model.safetensors")
    card = json.loads((furnished / "composed" / "model.json").read_text())
    network = timm.create_model(card["architecture"]["name"], **card["architecture"]["arguments"])
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        features = network.eval()(x)
        logits = features @ state["head.weight"].T + state["head.bias"]
        squares = torch.einsum("crd,nd->ncr", state["head.factors"], features) - state["head.offsets"]
        logits += (squares.square().sum(2) - state["head.expected"]) / 2
        torch.testing.assert_close(logits, model(x), rtol=1e-5, atol=1e-5)


def test_a_model_made_on_a_network_of_ones_own_says_that_it_needs_it(pool: Pool, tmp_path: Path) -> None:
    pool.mean().save(tmp_path / "model")
    with pytest.raises(InputError, match="'tiny0', a backbone made in Python"):
        ComposedModel.load(tmp_path / "model")
    edit(tmp_path / "model" / "model.json", lambda r: r.update(format=1))
    with pytest.raises(InputError, match="model format 1, this version reads format 2: compose it again"):
        ComposedModel.load(tmp_path / "model", backbone())


ARCHITECTURES = {
    "a name that fetches": {"name": "hf-hub:someone/something"},
    "a file to read": {"arguments": {"num_classes": 0, "checkpoint_path": "x.pth"}},
    "another network": {"name": "test_vit2"},
    "another library": {"library": "pickle"},
    "no name": {"name": None},
    "arguments in a list": {"arguments": []},
    "an argument of another kind": {"arguments": {"num_classes": "none"}},
}


@pytest.mark.parametrize("lie", ARCHITECTURES)
def test_a_merged_model_that_lies_of_its_network_is_refused(lie: str, furnished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(furnished / "composed", tmp_path / "model"))
    edit(folder / "model.json", lambda r: r["architecture"].update(ARCHITECTURES[lie]))
    with pytest.raises(InputError, match=r"model\.json|architecture|does not fit"):
        ComposedModel.load(folder)


@pytest.mark.parametrize("scale", ["1e39", "1e30", "-1e39", "-1e30", "-1e38"])
def test_no_model_is_written_or_measured_whose_numbers_are_not_finite(
    scale: str, furnished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    negated = ["unlearn", furnished / "pool", "task02", "--mode", "negate", f"--scale={scale}"]
    said = refused(capsys, *negated, "--out", tmp_path / "un")
    assert "finite" in said or "no numbers" in said
    assert "--scale" in said
    assert not (tmp_path / "un").exists()


def test_a_model_that_is_not_finite_is_not_saved(pool: Pool, tmp_path: Path) -> None:
    model = pool.mean()
    model.head.bias[0] = float("inf")
    with pytest.raises(InputError, match=r"'mean': head\.bias is not finite"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# Predictions


def test_images_that_cannot_be_read_are_named_and_the_others_answered(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = result("predict", home / "pool", *sorted((home / "photos" / "test" / "red").iterdir()))["predictions"]
    (home / "photos" / "test" / "red" / "broken.png").write_bytes(b"no image")
    (home / "photos" / "test" / "red" / "notes.txt").write_text("not asked for")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(home / "pool"), str(home / "photos" / "test" / "red"), "gone.png", "--json"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert json.loads(out)["predictions"] == expected
    assert [Path(p).name for p in json.loads(out)["unreadable"]] == ["broken.png", "gone.png"]
    for part in ("2 of 4 images", "broken.png", "gone.png", "Traceback"):
        assert (part in err) == (part != "Traceback")
    with pytest.raises(SystemExit):
        main(["predict", str(home / "pool"), str(home / "photos" / "test" / "red")])
    assert str(home / "photos" / "test" / "red" / "1.png") in capsys.readouterr().out
    (home / "none").mkdir()
    assert "none has no images" in refused(capsys, "predict", home / "pool", home / "none")


def test_predictions_name_the_most_probable_classes_of_any_composition(
    furnished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, image = furnished / "pool", furnished / "photos" / "test" / "red" / "0.png"
    (row,) = result("predict", pool, image, "--top", 6)["predictions"]
    assert next(c["class"] for c in row["top"]) == row["class"]
    assert sum(c["probability"] for c in row["top"]) == pytest.approx(1, abs=1e-3)
    for choice in (("--drop", "task01"), ("--weights", "task02=.7", "task03=.3"), ("--keep", "task02", "task03")):
        (row,) = result("predict", pool, image, *choice, "--top", 4)["predictions"]
        assert {c["class"] for c in row["top"]} == {"gold", "green", "grey", "red"}
    assert result("predict", pool, image, "--rule", "ties")["predictions"]
    assert "expected 1 to 6" in refused(capsys, "predict", pool, image, "--top", 7)


@pytest.mark.parametrize("top", [1, 2])
def test_answers_come_as_lines_of_csv_or_json(top: int, furnished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, photos = furnished / "pool", furnished / "photos" / "test"
    expected = result("predict", pool, photos, "--top", top)["predictions"]
    capsys.readouterr()
    main(["predict", str(pool), str(photos), "--top", str(top), "--format", "jsonl"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected
    main(["predict", str(pool), str(photos), "--top", str(top), "--format", "csv"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == top * len(expected)
    for i, answer in enumerate(a for row in expected for a in row.get("top", [row])):
        assert (rows[i]["class"], float(rows[i]["probability"])) == (answer["class"], answer["probability"])
        assert rows[i]["rank"] == str(i % top + 1)
    assert rows[0]["image"] == expected[0]["image"]


def test_a_merged_model_names_the_rows_of_its_head(pool: Pool, tmp_path: Path) -> None:
    pool.mean().save(tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    assert card["id2label"] == {str(i): label for i, label in enumerate(pool.mean().labels)}


def test_many_images_are_decoded_batch_by_batch(pool: Pool, furnished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pool.mean()
    paths = sorted((furnished / "photos").rglob("*.png"))
    whole, calls = model.probabilities(paths), list[int]()
    plain = models.decode_all

    def counted(batch: list[Path], preprocessing: Preprocessing, bits: int | None) -> torch.Tensor:
        calls.append(len(batch))
        return plain(batch, preprocessing, bits=bits)

    monkeypatch.setattr(models, "decode_all", counted)
    monkeypatch.setattr(models, "BATCH", 7)
    torch.testing.assert_close(model.probabilities(paths), whole)
    assert calls == [7, 7, 7, 7, 2]


# Damage


FILES = ("prototypes.safetensors", "card.json", "drift.safetensors", "head.safetensors", "statistics.safetensors")


@pytest.mark.parametrize("name", [*FILES, "vector.safetensors", "all"])
def test_a_damaged_module_blocks_no_composition_without_it(name: str, copied: Path) -> None:
    images = stream()[0].test.tensor(backbone().preprocessing)
    whole = Pool.open(copied, backbone())
    expected = whole.unlearn("task02").logits(images)
    carried = whole.compose(unlearn(whole.tasks, "task02"), heads="compensated").logits(images)
    alone = whole.specialize(["task01"]).logits(images)
    for file in (*FILES, "vector.safetensors") if name == "all" else (name,):
        flip(copied / "modules" / "task02" / file)
    pool = Pool.open(copied, backbone())
    model = pool.unlearn("task02")
    needed = name in ("prototypes.safetensors", "drift.safetensors", "all")
    assert torch.equal(model.logits(images), carried if needed else expected)
    assert model.recipe["heads"] == ("compensated" if needed else "prototypes")
    assert torch.equal(pool.specialize(["task01"]).logits(images), alone)
    assert pool.frozen(["task01", "task03"]).labels
    for act in (pool.mean, lambda: pool.specialize(["task02"])):
        with pytest.raises(InputError, match=r"task02.* is missing or damaged"):
            act()


def test_without_what_is_carried_from_task_to_task_all_is_composed_and_nothing_learned(copied: Path) -> None:
    images = stream()[0].test.tensor(backbone().preprocessing)
    expected = [m.logits(images) for m in _models(Pool.open(copied, backbone()))]
    for name in ("fisher-4.safetensors", "reference-4.safetensors"):
        flip(copied / name)
    pool = Pool.open(copied, backbone())
    assert all(torch.equal(m.logits(images), e) for m, e in zip(_models(pool), expected, strict=True))
    for act in (pool.reference, pool.fisher):
        with pytest.raises(InputError, match="bytes have changed"):
            act()


def _models(pool: Pool) -> list[ComposedModel]:
    negated = pool.unlearn("task01", mode="negate", scale=0.5)
    return [pool.mean(), pool.frozen(), pool.unlearn("task02"), negated, pool.specialize(["task01", "task03"])]


def test_a_damaged_task_is_unlearned_and_measured_by_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = result("evaluate", home / "pool", "--drop", "task02")
    flip(home / "pool" / "modules" / "task02" / "vector.safetensors")
    assert result("evaluate", home / "pool", "--drop", "task02") == whole
    found = result("unlearn", home / "pool", "task02")
    assert found["before"] == {"target_accuracy": None, "control_accuracy": None}
    assert found["after"]["control_accuracy"] == whole["final_accuracy"]
    assert "the mean of all modules is not measured" in capsys.readouterr().err
    (home / "pool" / "modules" / "task02" / "card.json").unlink()
    assert result("evaluate", home / "pool", "--keep", "task01")["tasks"] == ["task01"]


# Renaming and removing


def test_a_renamed_class_is_answered_measured_and_renamed_back(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = home / "pool"
    before, measured = contents(pool), result("evaluate", pool, "--per-class")
    for old, new in (("red", "crimson"), ("crimson", "scarlet, dark")):
        assert result("rename", pool, old, new)["renamed"] == {"task03": {"red": new}}
    found = result("evaluate", pool, "--per-class")
    assert found["per_class"].pop("scarlet, dark") == measured["per_class"].pop("red")
    for key in ("per_class", "accuracy_matrix", "frozen_head_accuracy"):
        assert found[key] == measured[key]
    data = ("--data", "folder:../home/photos", "--tasks", 3)
    assert result("evaluate", pool, *data)["accuracy_matrix"] == measured["accuracy_matrix"]
    result("compose", pool, "--out", "merged")
    assert "scarlet, dark" in result("ls", "merged")["classes"]["task03"]
    assert result("evaluate", "merged")["final_accuracy"] == measured["final_accuracy"]
    assert result("verify", pool)["damaged"] == []
    after = {name: h for name, h in contents(pool).items() if name != "pool.json"}
    assert after == {name: h for name, h in before.items() if name != "pool.json"}
    for old, new, said in (
        ("red", "wine", "unknown class 'red'"),
        ("gold", "green", "in the pool already, in task 'task02'"),
        ("gold", "a/b", "has '/' in it"),
    ):
        assert said in refused(capsys, "rename", pool, old, new)
    result("rename", pool, "scarlet, dark", "red")
    assert contents(pool) == before


def test_a_removed_module_is_gone_and_what_carries_its_influence_is_said(home: Path) -> None:
    pool = home / "pool"
    kept = result("evaluate", pool, "--keep", "task01")
    result("rename", pool, "gold", "golden")
    found = result("remove", pool, "task02")
    assert found["modules"] == ["task01", "task03"]
    assert found["influenced"] == {"task03": ["fisher", "statistics", "prototypes"]}
    assert not (pool / "modules" / "task02").exists()
    assert result("verify", pool) == {**result("verify", pool), "damaged": [], "unnamed": []}
    assert result("evaluate", pool, "--keep", "task01") == kept
    assert result("evaluate", pool)["recipe"]["heads"] == "compensated"
    assert json.loads((pool / "pool.json").read_text())["renamed"] == {}
    added = ["--data", f"folder:{home / 'photos'}", "--tasks", 3, "--only", "task02", "--run.no-evaluate"]
    main([str(a) for a in ["learn", "--add", "--out", pool, *added]])
    assert Pool.open(pool).card("task02").classes == ("gold", "green")


def test_the_last_module_is_not_removed_nor_one_while_a_run_is_stopped(copied: Path) -> None:
    for task in ("task01", "task02", "task04"):
        remove(Pool.open(copied, backbone()), task)
    before = contents(copied)
    with pytest.raises(InputError, match="nothing would be left"):
        remove(Pool.open(copied, backbone()), "task03")
    with pytest.raises(InputError, match="unknown task 'task01': the pool has task03"):
        remove(Pool.open(copied, backbone()), "task01")
    (copied / ".run").mkdir()
    (copied / ".run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"a run that was stopped.*--resume"):
        remove(Pool.open(copied, backbone()), "task03")
    shutil.rmtree(copied / ".run")
    assert contents(copied) == before


@pytest.mark.parametrize("change", ["remove", "rename"])
def test_killed_at_any_step_of_a_change_a_pool_is_what_it_was_or_will_be(
    change: str, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot of the folder is what a kill at that moment leaves."""
    before, taken, busy = Pool.open(copied, backbone()), list[Path](), list[str]()
    classes = before.classes

    def snapshot(step: str) -> None:
        if not busy:
            busy.append(step)
            taken.append(Path(shutil.copytree(copied, tmp_path / f"{len(taken):03d}-{step}")))
            busy.clear()

    with watched(monkeypatch, snapshot, half=True):
        remove(before, "task02") if change == "remove" else rename(before, "class3", "seven")
    after = Pool.open(copied, backbone())
    seen: set[bool] = set()
    for left in taken:
        pool = Pool.open(left, backbone())
        assert verify(pool) == []
        assert pool.classes in (classes, after.classes)
        seen.add(pool.classes == after.classes)
    assert (seen == {False, True}) or change == "rename"
    assert after.classes != classes
    with pytest.raises(InputError, match="has changed since it was opened"):
        rename(before, "class0", "new")
