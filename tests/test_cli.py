"""The command line on a small timm model and an image folder made on the spot.

Real processes take seconds to start: here where that is the point, in `test_readme` every verb. The rest is `main`.
"""

import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from forked import intarsia
from PIL import Image

from cases import contents, photographs, small_vit
from intarsia import Backbone, TaskStream, learn
from intarsia.cli.main import VERBS, main
from intarsia.merging.choices import Rule

pytestmark = pytest.mark.slow

RULES = [rule for rule in get_args(Rule) if rule != "fisher"]
TASKS = {"cold": ["blue", "cyan"], "earth": ["gold", "green"], "other": ["grey", "red"]}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    return intarsia(arguments)


def started(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As a user starts it."""
    command = [sys.executable, "-m", "intarsia", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def result(*arguments: object) -> Any:
    """What a command prints with --json, in this process; it printed nothing else."""
    with redirect_stdout(StringIO()) as out:
        main([*map(str, arguments), "--json"])
    return json.loads(out.getvalue())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line a bad call prints, run in this process: exit code 2, nothing on standard output."""
    capsys.readouterr()  # of what ran before
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert not out
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    return err


def digest(folder: Path) -> dict[str, str]:
    return contents(folder, {"log.jsonl", *(path.name for path in folder.glob("config*.json"))})


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, weights of a small timm model and the tasks' split."""
    root = photographs(tmp_path_factory.mktemp("world"))
    (root / "tasks.json").write_text(json.dumps(TASKS))
    return root


def learning(world: Path, out: str, *more: object) -> list[object]:
    data = ["--data", f"folder:{world / 'photos'}", "--split", world / "tasks.json", "--backbone", small_vit(world)]
    return ["learn", *data, "--epochs", 1, "--out", world / out, *more]


@pytest.fixture(scope="session")
def pool(world: Path) -> Path:
    found = result(*learning(world, "pool"))
    assert found["tasks"] == list(TASKS)
    return world / "pool"


def test_learn_prints_a_table_a_person_understands(world: Path) -> None:
    done = run(*learning(world, "printed"))
    assert done.returncode == 0, done.stderr
    words = (
        "cold",
        "earth",
        "other",
        "all test images",
        "final accuracy",
        "frozen",
        "unlearned other",
        "specialist in",
    )
    for word in words:
        assert word in done.stdout
    for phase in ("decoding", "cold: training", "other: training", "all modules: evaluating"):
        assert phase in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("intarsia")]


def test_evaluate_reports_every_measure_in_percent(pool: Path) -> None:
    found = result("evaluate", pool)
    assert [len(row) for row in found["accuracy_matrix"]] == [1, 2, 3]
    names = ("final_accuracy", "average_incremental_accuracy", "task_il_accuracy", "frozen_head_accuracy")
    assert all(0 <= found[name] <= 100 for name in names)
    assert -100 <= found["final_forgetting"] <= 100
    last = found["accuracy_matrix"][-1]
    assert found["final_accuracy"] == pytest.approx(sum(last) / len(last))  # the tasks have as many images each
    assert found["images"] == 12


def test_evaluate_leaves_earlier_models_out_where_no_matrix_is_asked_for(pool: Path) -> None:
    whole, last = result("evaluate", pool, "--matrix", "yes"), result("evaluate", pool, "--matrix", "no")
    assert whole == result("evaluate", pool)
    assert last["accuracy_matrix"] == whole["accuracy_matrix"][-1:]
    assert last["final_forgetting"] is last["average_incremental_accuracy"] is None
    assert last["final_accuracy"] == whole["final_accuracy"]


def test_evaluate_can_keep_drop_and_weight(pool: Path) -> None:
    kept = result("evaluate", pool, "--keep", "cold", "other")
    dropped = result("evaluate", pool, "--drop", "earth")
    assert kept["tasks"] == dropped["tasks"] == ["cold", "other"]
    assert kept["accuracy_matrix"] == dropped["accuracy_matrix"]
    weighted = result("evaluate", pool, "--weights", "cold=.7", "other=.3")
    assert weighted["recipe"]["weights"] == {"cold": 0.7, "other": 0.3}
    answered = result("evaluate", pool, "--answer", "cold", "other")
    assert answered["tasks"] == ["cold", "other"]
    assert answered["recipe"]["weights"] == dict.fromkeys(TASKS, pytest.approx(1.5 / 3))
    assert answered["recipe"]["name"] == "mean, scale 1.5, classes of cold, other"
    assert answered["final_forgetting"] is None
    other = result("evaluate", pool, "--weights", "cold=.7", "other=.3", "--answer", "earth")
    assert (other["tasks"], other["recipe"]["weights"]) == (["earth"], {"cold": 0.7, "other": 0.3})


def test_merge_rules_of_others(pool: Path, world: Path) -> None:
    plain = result("evaluate", pool, "--rule", "mean")
    written: set[bytes] = set()
    for rule in RULES:
        found = result("evaluate", pool, "--rule", rule)
        assert found["recipe"]["name"].startswith(f"{rule}, scale ")
        assert found["tasks"] == plain["tasks"]
        result("compose", pool, "--rule", rule, "--out", world / rule)
        written.add((world / rule / "model.safetensors").read_bytes())
    assert len(written) == len(RULES)
    some = result("evaluate", pool, "--rule", "ties", "--drop", "earth")
    assert some["tasks"] == ["cold", "other"]
    half, summed = (result("evaluate", pool, *more)["recipe"] for more in (("--scale", 0.5), ("--rule", "sum")))
    assert half["weights"] == dict.fromkeys(TASKS, pytest.approx(1.5 / 6))
    assert summed["name"] == "sum, scale 1"
    free = result("evaluate", pool, "--weights", "cold=1.5", "earth=-.5")
    assert free["recipe"]["weights"] == {"cold": 1.5, "earth": -0.5}
    assert free["tasks"] == ["cold", "earth"]


def test_unlearn_names_what_still_carries_the_influence(pool: Path) -> None:
    before = digest(pool)
    found = result("unlearn", pool, "cold")
    assert found["after"]["target_accuracy"] is None
    assert found["influenced"] == {task: ["fisher", "statistics", "prototypes"] for task in ("earth", "other")}
    negated = result("unlearn", pool, "cold", "--mode", "negate", "--scale", 0.5)
    assert negated["recipe"]["weights"]["cold"] == pytest.approx(1.5 / 3 - 0.5)
    assert negated["after"]["target_accuracy"] is not None
    assert digest(pool) == before


def test_predict_compose_and_predict_again_agree(pool: Path, world: Path) -> None:
    images = sorted((world / "photos" / "test").rglob("*.png"))
    direct = result("predict", pool, *images)["predictions"]
    result("compose", pool, "--out", world / "merged")
    assert sorted(p.name for p in (world / "merged").iterdir()) == ["model.json", "model.safetensors"]
    assert result("predict", world / "merged", *images)["predictions"] == direct
    only = result("predict", pool, *images, "--keep", "cold")["predictions"]
    assert {row["class"] for row in only} <= set(TASKS["cold"])


def test_diagnose_measures_the_gap(pool: Path) -> None:
    found = result("diagnose", pool)
    assert found["true_gap"] == pytest.approx(found["mean_module_loss"] - found["composed_loss"])
    assert found["predicted_gap"] >= 0
    assert found["images"] == 36


def test_diagnose_draws_pools_side_by_side(world: Path, pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures are written, the other pool's figures are its own; pools of other tasks, or one twice, are refused."""
    result(*learning(world, "loose", "--strength", 0))
    found = result("diagnose", pool, "--beside", world / "loose", "--figures", world / "figures" / "new")
    beside, lines, gaps = (found.pop(key) for key in ("beside", "lines", "gap_by_scale"))
    assert [len(lines[name]) for name in ("pool", "loose")] == [2, 2]
    assert gaps["pool"]["measured"][gaps["pool"]["scales"].index(1.0)] == pytest.approx(found["true_gap"], rel=1e-6)
    beside = beside[str(world / "loose")]
    for own, path in ((found, pool), (beside, world / "loose")):
        alone = result("diagnose", path)
        assert own.keys() == alone.keys()
        for measure in ("theta0_loss", "true_gap", "predicted_gap", "gradient_norm"):
            assert own[measure] == pytest.approx(alone[measure], rel=1e-6)
    assert beside["predicted_gap"] > found["predicted_gap"]
    for name in ("gap", "cosines", "losses"):
        with Image.open(world / "figures" / "new" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5
    printed = run("diagnose", pool, "--beside", world / "loose", "--per-task", 2)
    assert printed.stdout.count("true gap") == 2
    assert str(world / "loose") in printed.stdout
    assert "each pool once" in refused(capsys, "diagnose", pool, "--beside", pool)
    assert "--per-task): expected 1 or more" in refused(capsys, "diagnose", pool, "--per-task", 0)
    assert "go with --data" in refused(capsys, "diagnose", pool, "--only", "cold")
    result(*learning(world, "one", "--only", "cold"))
    assert "has tasks cold" in refused(capsys, "diagnose", pool, "--beside", world / "one")


def test_ls_lists_modules_and_what_is_built_in(pool: Path) -> None:
    assert [m["task"] for m in result("ls", pool)["modules"]] == list(TASKS)
    built_in = run("ls", "--builtin")
    assert built_in.returncode == 0
    assert "CC BY 4.0" in built_in.stdout
    for name in ("sketches", "chalk", "vit_sketch"):
        assert name in built_in.stdout


def test_tasks_added_in_another_process_give_the_same_pool(world: Path, pool: Path) -> None:
    result(*learning(world, "grown", "--only", "cold"))
    added = ["--data", f"folder:{world / 'photos'}", "--split", world / "tasks.json", "--only", "earth", "other"]
    assert run("learn", "--add", "--out", world / "grown", *added).returncode == 0
    assert digest(world / "grown") == digest(pool)


@pytest.mark.parametrize("method", ["ita", "iel"])
@pytest.mark.parametrize("adapter", ["lora", "full", "ia3"])
def test_every_method_and_adapter_learns(world: Path, tmp_path: Path, method: str, adapter: str) -> None:
    arguments = learning(world, "unused", "--method", method, "--adapter", adapter, "--run.no-evaluate")
    arguments[arguments.index("--out") + 1] = tmp_path / "p"
    main([str(a) for a in arguments])
    assert len(json.loads((tmp_path / "p" / "pool.json").read_text())["tasks"]) == 3


def test_bad_input_is_one_line_and_exit_code_2_in_a_real_process(world: Path) -> None:
    done = started(*learning(world, "nothing", "--backbone", "vit_unknown"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "vit_unknown" in done.stderr
    assert "vit_sketch" in done.stderr
    assert not (world / "nothing").exists()


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert not stopped.value.code
    assert capsys.readouterr().out == f"intarsia {version('intarsia')}\n"


def test_help_of_every_verb_names_its_flags() -> None:
    overview = started("--help")
    assert overview.returncode == 0
    for verb in VERBS:
        assert verb in overview.stdout


def test_a_dry_run_says_the_cost_and_writes_nothing(tmp_path: Path) -> None:
    only = ("--only", "animals", "food")
    given = ["learn", "--out", tmp_path / "pool", "--max-per-class", 4, *only, "--run.dry-run"]
    cost = result(*given)
    assert (cost["tasks"], cost["images"], cost["steps"]) == (2, 80, 16)
    done = run(*given)
    assert done.returncode == 0
    assert "training_minutes" in done.stdout
    assert re.search(r"^\w.*: \d+\.\d s$", done.stderr, re.MULTILINE)  # it says what it times
    assert not (tmp_path / "pool").exists()


def test_a_record_repeats_its_run_bit_for_bit(world: Path, pool: Path) -> None:
    """Whatever was left open or said in flags, a split's file too; flags given besides win."""
    told = ["--method", "iel", "--training.no-center-features", "--strength", 0.3, "--seed", 5, "--run.keep-fishers"]
    result(*learning(world, "told", *told, "--max-per-class", 3, "--only", "cold", "earth"))
    for name, out in (("pool", pool), ("told", world / "told")):
        repeated = world / f"{name}-again"  # beside the first: a card has the way from the pool to the images
        result("learn", "--config", out / "config.json", "--out", repeated)
        assert digest(repeated) == digest(out)
        first, again = (json.loads((folder / "config.json").read_text()) for folder in (out, repeated))
        assert first == again
    result("learn", "--config", pool / "config.json", "--seed", 7, "--rank", 3, "--out", world / "other")
    changed = json.loads((world / "other" / "config.json").read_text())["learn"]
    assert (changed["training"]["seed"], changed["rank"], changed["method"]) == (7, 3, "ita")


def test_tasks_that_were_added_have_a_record_of_their_own(world: Path) -> None:
    data = ["--data", f"folder:{world / 'photos'}", "--split", world / "tasks.json"]
    result(*learning(world, "first", "--only", "cold", "--method", "iel", "--strength", 0.2))
    result("learn", "--add", "--out", world / "first", *data, "--only", "earth")
    before, added = (json.loads((world / "first" / f).read_text())["learn"] for f in ("config.json", "config-2.json"))
    assert (before["add"], added["add"]) == (False, True)
    assert (added["method"], added["strength"]) == ("iel", 0.2)
    result("learn", "--config", world / "first" / "config.json", "--out", world / "again")
    result("learn", "--config", world / "first" / "config-2.json", "--out", world / "again")
    assert digest(world / "again") == digest(world / "first")


def test_a_run_without_out_is_named_for_its_stream_and_method(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = learning(world, "unused", "--method", "iel", "--run.no-evaluate")
    place = given.index("--out")
    found = result(*given[:place], *given[place + 2 :])
    assert found["pool"] == "runs/photos-iel"
    found = result("learn", "--only", "animals", "--max-per-class", 2, "--epochs", 1, "--run.no-evaluate")
    assert found["pool"] == "runs/chalk-ita"


def test_an_image_after_tasks_is_predicted(world: Path, pool: Path) -> None:
    image = world / "photos" / "test" / "red" / "0.png"
    found = result("predict", pool, "--keep", "cold", "other", image)["predictions"]
    assert [row["image"] for row in found] == [str(image)]
    assert {row["class"] for row in found} <= {*TASKS["cold"], *TASKS["other"]}
    assert result("predict", pool, image, "--keep", "cold", "--keep", "other")["predictions"] == found


def test_names_with_markup_are_printed_as_they_are(tmp_path: Path, world: Path, capsys: pytest.CaptureFixture) -> None:
    for part in ("train", "test"):
        for name in ("[red]", "[bold]b"):
            shutil.copytree(world / "photos" / part / "red", tmp_path / "odd" / part / name)
    given = ["--data", f"folder:{tmp_path / 'odd'}", "--backbone", small_vit(world), "--epochs", 1]
    given += ["--out", tmp_path / "[pool]"]
    main([str(text) for text in ("learn", *given)])
    main(["ls", str(tmp_path / "[pool]")])
    image = tmp_path / "x[" / "].png"
    image.parent.mkdir()
    shutil.copy(tmp_path / "odd" / "test" / "[red]" / "0.png", image)
    main(["predict", str(tmp_path / "[pool]"), str(image)])
    out = capsys.readouterr().out
    assert "[pool]" in "".join(out.split("[bold]")[0].split())  # a long path is wrapped
    assert "[bold]b, [red]" in out
    assert "x[/].png" in "".join(out.split())


def test_what_is_uneven_or_lost_is_said_with_what_to_try(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "photos", tmp_path / "photos")
    for path in sorted((tmp_path / "photos" / "train" / "red").iterdir())[1:]:
        for copy in range(4):
            shutil.copy(path, tmp_path / "photos" / "train" / "blue" / f"{copy}{path.name}")
        path.unlink()
    shutil.copy(tmp_path / "photos/train/red/0.png", tmp_path / "photos/train/red/1.png")
    given = ["--data", f"folder:{tmp_path / 'photos'}", "--backbone", small_vit(world), "--epochs", 1]
    given += ["--out", tmp_path / "p"]
    (uneven, *_) = result("learn", *given)["notes"]
    for part in ("'blue'", "26", "'red'", "2", "--training.class-balanced"):
        assert part in uneven
    balanced = [*given[:-1], tmp_path / "balanced", "--training.class-balanced"]
    (uneven, *_) = result("learn", *balanced)["notes"]
    assert "Add images" in uneven
    assert "--training.class-balanced" not in uneven


def test_a_run_that_ends_below_the_frozen_backbone_says_so_with_what_to_try(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain colours, which any features tell apart, and steps that spoil the network; steps of length 0 do not."""
    spoilt, still = (
        result(*learning(world, out, *more))
        for out, more in (("spoilt", ("--lr", 0.3, "--strength", 0)), ("still", ("--lr", 0)))
    )
    (note,) = spoilt["notes"]
    lost = spoilt["frozen_head_accuracy"] - spoilt["final_accuracy"]
    assert lost > 10
    remedies = ("lower --lr", "fewer --epochs", "larger --strength")
    for part in ("below the frozen backbone", f"{lost:.1f} points", *remedies):
        assert part in note
    assert still["final_accuracy"] == still["frozen_head_accuracy"]
    assert still["notes"] == []
    main(["learn", "--resume", "--out", str(world / "spoilt")])  # whole: measured again, for a person
    assert note in capsys.readouterr().out


def test_python_adds_with_the_settings_of_the_pool_as_the_command_does(world: Path) -> None:
    result(*learning(world, "begun", "--only", "cold", "--adapter", "ia3", "--method", "iel", "--strength", 0.2))
    shutil.copytree(world / "begun", world / "begun-too")
    data = ["--data", f"folder:{world / 'photos'}", "--split", world / "tasks.json", "--only", "earth"]
    result("learn", "--add", "--out", world / "begun", *data)
    theta0 = Backbone.load(small_vit(world))
    stream = TaskStream.load(f"folder:{world / 'photos'}", split=TASKS).subset(["earth"])
    learn(theta0, stream, out=world / "begun-too", add=True)
    assert digest(world / "begun-too") == digest(world / "begun")
