"""Flags: what is typed and what is said in Python come to the same settings; help, lists, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import backbone
from intarsia import IA3, Backbone, Full, LoRA
from intarsia.adapters import Adapter
from intarsia.adapters.records import build_adapter
from intarsia.cli import plan as plans
from intarsia.cli.flags import FLAT, WIDTH, Flag, flags, help_of, parse
from intarsia.cli.learn import Learn
from intarsia.cli.main import VERBS, overview, parsed, verb_of
from intarsia.cli.options import Selection, parse_weights
from intarsia.curvature.choices import CurvatureKind
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.regularizers.records import build_regularizer
from intarsia.study.bench import Bench
from intarsia.study.choice import Source
from intarsia.study.methods import METHODS
from intarsia.training.recommended import KRONECKER, RECOMMENDED, SIZES, paper, recommended, resolve
from intarsia.training.settings import Settings, Training
from intarsia.training.state import hyperparameters

ROOT = Path(__file__).parents[1]
EVERYDAY = (
    "data tasks split max-per-class only backbone method adapter rank strength epochs lr batch-size seed out add "
    "resume device preset paper json precision accumulate grad-checkpointing arrivals report-to"
)
"""Issue 21's list, four of issue 23, one of issue 25."""
CHOSEN = [
    flag for flag in flags(Learn) if flag.path[0] in ("training", "method", "adapter", "rank", "strength", "paper")
]


def values(flag: Flag) -> st.SearchStrategy[Any]:
    """What a flag may be given."""
    if flag.choices:
        return st.sampled_from(flag.choices)
    least = 1 if flag.path[-1] == "mean_scale" else 0
    kinds = {bool: st.booleans(), int: st.integers(2, 10**6), float: st.floats(least, 1e6), str: st.text(min_size=1)}
    return kinds[flag.kind]


@st.composite
def typed(draw: st.DrawFn) -> tuple[list[str], dict[str, Any]]:
    """Some flags of ``learn`` in any order, each written in one of two ways; and their values by field."""
    arguments: list[list[str]] = []
    said: dict[str, Any] = {}
    for flag in draw(st.lists(st.sampled_from(CHOSEN), unique=True)):
        value = said[flag.path[-1]] = draw(values(flag))
        if isinstance(value, bool):
            arguments.append([flag.name if value else flag.off])
        else:
            arguments.append([f"{flag.name}={value}"] if draw(st.booleans()) else [flag.name, str(value)])
    return [text for each in draw(st.permutations(arguments)) for text in each], said


@given(typed())
def test_flags_and_python_come_to_the_same_settings(case: tuple[list[str], dict[str, Any]]) -> None:
    """Of what is not said, too: recommended for the method and adapter, or the paper's."""
    arguments, said = case
    training = Training(**{f.name: said[f.name] for f in fields(Training) if f.name in said})
    method, adapter, rank, strength = (said.get(name) for name in ("method", "adapter", "rank", "strength"))
    from_paper = said.get("paper", False)
    asked = {"method": method, "adapter": adapter, "rank": rank, "strength": strength, "from_paper": from_paper}
    found = parsed(["learn", *arguments]).plan().chosen
    assert found == resolve(training, **asked)
    cell, curvature = (method or "ita", adapter or "lora"), said.get("curvature", "diagonal")
    usual, settings = paper(*cell) if from_paper else recommended(*cell, curvature=curvature)
    assert found.strength == (usual if strength is None else strength)
    for f in fields(Settings):
        assert getattr(found.settings, f.name) == said.get(f.name, getattr(settings, f.name))
    if not from_paper:
        objects = (build_adapter(adapter or "lora", rank or 16), build_regularizer(found.method, found.strength))
        in_python = hyperparameters(*objects, training)
        assert (in_python.settings, in_python.strength) == (found.settings, found.strength)
        if method is None and strength is None:
            assert hyperparameters(objects[0], None, training).settings == found.settings


def test_python_without_anything_is_the_command_without_anything() -> None:
    assert hyperparameters(None, None, None) == parsed(["learn"]).plan().chosen


def test_recommended_learning_rates_grow_with_the_weights_they_are_for() -> None:
    """By entries (full) and rows (LoRA); (IA)3 multiplies. What is said, and what a pool has, is not touched."""
    theta0 = Backbone.load()
    rates = {cell: recommended(*cell)[1].lr for cell in RECOMMENDED}
    assert theta0.sizes == pytest.approx(SIZES, rel=1e-3)
    assert {cell: recommended(*cell, theta0.sizes)[1].lr for cell in RECOMMENDED} == rates
    sizes = {kind: 2 * size for kind, size in SIZES.items()}
    for (method, adapter), lr in rates.items():
        times = 1 if adapter == "ia3" else 2
        learned = parsed(["learn", "--method", method, "--adapter", adapter])
        assert learned.plan().chosen.settings.lr == lr
        assert learned.plan(sizes).chosen.settings.lr == times * lr
        given = parsed(["learn", "--method", method, "--adapter", adapter, "--lr", "0.5"])
        assert given.plan(sizes).chosen.settings.lr == 0.5
        known = resolve(Training(lr=0.25), method=method, adapter=adapter)
        assert resolve(base=known, sizes=sizes) == known
    assert recommended("ita", "full", {"full": 0.0, "lora": 0.0})[1].lr == rates["ita", "full"]


@pytest.mark.parametrize("method", ["ita", "iel"])
@pytest.mark.parametrize("curvature", ["kfac", "ekfac"])
def test_another_curvature_has_its_own_strength(method: str, curvature: CurvatureKind) -> None:
    usual = resolve(method=method, adapter="full")
    found = resolve(Training(curvature=curvature), method=method, adapter="full")
    assert found.strength == KRONECKER != usual.strength
    assert found.settings == replace(usual.settings, curvature=curvature)
    assert resolve(Training(curvature=curvature), method=method, adapter="full", strength=0.5).strength == 0.5
    assert resolve(Training(curvature="diagonal"), method=method, adapter="full") == usual
    assert METHODS[f"{method}-{curvature}"].settings.curvature == curvature


@pytest.mark.parametrize("adapter", [Full(), LoRA(4), IA3()], ids=["full", "lora", "ia3"])
def test_sizes_are_of_entries_and_rows(adapter: Adapter) -> None:
    theta0 = backbone()
    weights = theta0.trainable.values()
    assert theta0.sizes["full"] == pytest.approx(
        float(torch.cat([w.flatten() for w in weights]).square().mean().sqrt())
    )
    rows = torch.cat([w.norm(dim=1) for w in weights])
    assert theta0.sizes["lora"] == pytest.approx(float(rows.square().mean().sqrt()))
    lr = hyperparameters(adapter, None, None, theta0).settings.lr
    assert lr == recommended("ita", adapter.kind, theta0.sizes)[1].lr


def test_python_and_the_commands_take_the_same_stream_by_default() -> None:
    stream = TaskStream.load(max_per_class=2)
    assert plans.load({"max_per_class": 2}, 0).record() == stream.record()  # of ``learn``
    assert plans.stream_name(parsed(["learn"]).plan().source) == stream.name
    assert plans.stream_name({"data": "hf:owner/pets@v1?config=fine:image,label"}) == "pets-fine"
    assert Bench().stream(0).name == stream.name  # of ``compare``


WORKERS = ("--engine", "--address", "--workers", "--gpus-per-worker")
IMAGES = ("--image-size", "--features", "--augment", "--skip-broken", "--cache")


def test_the_everyday_flags_are_flat_and_all_others_grouped() -> None:
    flat = {flag.name for flag in flags(Learn) if not flag.group}
    assert flat == {*(f"--{name}" for name in EVERYDAY.split()), "--config", *IMAGES, *WORKERS}
    assert {flag.group for flag in flags(Learn) if flag.group} == {"training", "source", "network", "run"}
    assert {f.name for cls in (Training, Source) for f in fields(cls)} >= FLAT


@pytest.mark.parametrize(("columns", "lines"), [(WIDTH, 105), (80, 125), (300, 105)])
def test_help_fits_two_screens_and_the_terminal(columns: int, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert len(help_of(Learn, "intarsia learn").splitlines()) <= lines
    for text in (overview(), *(help_of(verb_of(verb), f"intarsia {verb}") for verb in VERBS)):
        assert max(map(len, text.splitlines())) <= min(columns, WIDTH)


def test_help_says_something_of_every_flag() -> None:
    for verb in VERBS:
        told = help_of(verb_of(verb), verb).lower()
        for flag in flags(verb_of(verb)):
            assert flag.help(), (verb, flag.name)
            assert flag.name.rpartition(".")[2] in told


def test_a_run_that_another_version_stopped_is_refused_in_one_line(tmp_path: Path) -> None:
    """Its settings lack one of today's."""
    record = {"settings": {"epochs": 3}, "adapter": {"kind": "lora"}, "backbone": {}, "stream": {}}
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "run.json").write_text(json.dumps({**record, "keep_fishers": False, "before": []}))
    assert "run.json" in refusal("learn", "--resume", "--out", str(tmp_path))


def refusal(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        verb = parsed(list(arguments))
        verb.plan() if isinstance(verb, Learn) else verb.run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "now"),
    [
        ("--alpha 0.1", "--strength"),
        ("--beta=3", "--strength"),
        ("--order shuffled", "--source.order"),
        ("--test-fraction .2", "--source.test-fraction"),
        ("--targets *.qkv", "--network.targets"),
        ("--lambda-h 1", "--training.lambda-h"),
        ("--center-features", "--training.center-features"),
        ("--no-center-features", "--training.no-center-features"),
        ("--no-evaluate", "--run.no-evaluate"),
        ("--dry-run", "--run.dry-run"),
        ("--keep-fishers", "--run.keep-fishers"),
        ("--no-checkpoint", "--run.no-checkpoint"),
        ("--training.epochs 3", "--epochs"),
        ("--training.dtype bfloat16", "--precision"),
    ],
)
def test_a_flag_that_has_moved_is_refused_with_its_new_name(given: str, now: str) -> None:
    text = refusal("learn", *given.split())
    assert f"{given.partition(' ')[0].partition('=')[0]}:" in text
    assert text.endswith(f" {now}")


def test_a_flag_of_two_verbs_is_written_in_one_way() -> None:
    """The same last name in the same group, in every verb that has it; the old place is refused with the new one."""
    groups: dict[str, set[str]] = {}
    for verb in VERBS:
        for flag in flags(verb_of(verb)):
            if not flag.positional:
                groups.setdefault(flag.path[-1], set()).add(flag.group)
    assert {name: found for name, found in groups.items() if len(found) > 1} == {}
    for verb in ("learn", "compare"):
        assert refusal(verb, "--dry-run").endswith("there is no flag --dry-run: it is --run.dry-run")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("lern", ("'lern'", "did you mean learn?")),
        ("nonsense", ("'nonsense'", "learn, ls", "--help")),
        ("", ("no verb", "learn, ls", "--help")),
        ("learn --epoch 3", ("--epoch:", "did you mean --epochs?")),
        ("learn --training.center-feature", ("--training.center-feature:", "did you mean --training.center-features?")),
        ("evaluate pool --kep a", ("--kep:", "did you mean --keep?")),
        ("learn --epochs many", ("--epochs", "'many'", "a whole number")),
        ("learn --epochs 1.5", ("--epochs", "'1.5'", "a whole number")),
        ("learn --lr fast", ("--lr", "'fast'", "a number")),
        ("learn --method iell", ("--method", "'iell'", "ita or iel", "did you mean iel?")),
        ("learn --epochs", ("--epochs", "expected one argument", "--help")),
        ("learn --only", ("--only", "expected at least one argument")),
        ("evaluate pool --matrix maybe", ("--matrix", "'maybe'", "yes or no")),
        ("evaluate pool --no-matrix", ("--no-matrix", "did you mean --matrix?")),
        ("learn --json=3", ("--json", "'3'")),
        ("learn runs/x", ("'runs/x'", "too much")),
        ("evaluate", ("pool", "missing", "--help")),
        ("compose pool", ("--out", "missing")),
        ("learn --add --paper", ("--add", "--paper", "one of them")),
        ("learn --add --preset cifar100-ita-lora", ("--add", "--preset", "one of them", "pool's own")),
        ("learn --resume --paper", ("--resume", "--paper", "one of them", "as it was")),
        ("learn --config c.json --preset cifar100-ita-lora", ("--config", "--preset", "one of them")),
        ("learn --preset cifar100-ita-lora --paper", ("--preset", "--paper", "one of them")),
        ("learn --preset cifar100-ita-lora --method iel", ("--method iel", "cifar100-ita-lora", "ita", "leave one")),
        ("learn --preset cifar100-ita-lora --adapter full", ("--adapter full", "cifar100-ita-lora", "lora")),
        ("learn --add --data folder:x", ("--add", "--out")),
        ("learn --add --out x", ("--add", "--data")),
        ("learn --batch-size 1", ("batch-size 1", "use 2", "--training.no-center-features")),
        ("learn --seed -1 --epochs 0", ("epochs 0", "1 or more")),
    ],
)
def test_what_is_wrong_is_one_line_with_the_remedy(given: str, parts: tuple[str, ...]) -> None:
    text = refusal(*given.split())
    for part in parts:
        assert part in text, text


def test_lists_are_given_one_by_one_the_flag_as_often_as_one_likes() -> None:
    for text in ("--only a b c", "--only a --only b c", "--only a --epochs 3 --only b --only c"):
        assert parsed(["learn", *text.split()]).source.only == ("a", "b", "c")
    chosen = parsed(["evaluate", "pool", "--weights", "a=.7", "--weights", "b, c=.2", "d=e=.1"]).selection
    assert parse_weights(chosen.weights) == {"a": 0.7, "b, c": 0.2, "d=e": 0.1}
    assert parsed(["compare", "--methods", "ita", "iel"]).methods == ("ita", "iel")
    assert parsed(["evaluate", "--keep", "a", "b", "--", "pool"]).pool == Path("pool")
    predict = parsed(["predict", "pool", "--device", "cpu", "x.png", "y.png"])
    assert (predict.model, predict.images) == (Path("pool"), (Path("x.png"), Path("y.png")))


def test_names_joined_by_commas_are_refused_with_the_right_form() -> None:
    with pytest.raises(InputError, match=r"one by one.* a=.7 b=.3"):
        parse_weights(["a=.7,b=.3"], ["a", "b"])
    assert "--methods ita iel" in refusal("compare", "--methods", "ita,iel")
    assert parse_weights(["a,b=.5", "c=.5"], ["a,b", "c"]) == {"a,b": 0.5, "c": 0.5}
    for bad in ("", "a", "a=", "=1", "a=one"):
        with pytest.raises(InputError, match=r"name=number"):
            parse_weights([bad])
    with pytest.raises(InputError, match=r"name=number"):
        parse_weights(["a=1", "a=2"])


def test_an_image_typed_after_tasks_is_an_image(tmp_path: Path) -> None:
    image = tmp_path / "img.png"
    image.touch()
    chosen, files = Selection(keep=("animals", str(image), "animls")).without_files(["animals", "food"])
    assert (chosen.keep, files) == (("animals", "animls"), (image,))
    chosen, files = Selection(weights=("animals=1", str(image))).without_files(["animals"])
    assert (chosen.weights, files) == (("animals=1",), (image,))


def test_every_flag_that_a_message_or_a_page_names_is_one() -> None:
    """Git's and those of the benchmarks are told apart by their line, or named here."""
    names = {name for verb in VERBS for flag in flags(verb_of(verb)) for name in (flag.name, flag.off)}
    names |= {"--help", "--version", "--rounds", "--readers", "--batch", "--images", "--head"}
    pages = [*(ROOT / "src").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    others = re.compile(r"git|torchrun|benchmarks/|--line|--<|python |pip install")
    wrong = []
    for page in pages:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if others.search(line) or page.name == "flags.py":
                continue
            for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*", line):
                if name not in names and not any(known.startswith(f"{name}.") for known in names):
                    wrong.append(f"{page.relative_to(ROOT)}:{number} {name}")
    assert not wrong


def python(code: str, *, encoding: str = "utf-8") -> str:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("given", ["--help", "--version", "lern", *(f"{v} --help" for v in VERBS), "learn --epochs x"])
def test_help_and_a_wrong_flag_load_no_torch(given: str) -> None:
    code = f"""
import sys
from intarsia.cli.main import main
try:
    main({given.split()!r})
except SystemExit:
    pass
print(sorted({{"torch", "timm", "torchvision", "numpy", "matplotlib"}} & set(sys.modules)))
"""
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_package_is_loaded_as_its_names_are_used() -> None:
    code = "import sys, intarsia; print('torch' in sys.modules); intarsia.ITA; print('torch' in sys.modules, 'timm' in "
    assert python(code + "sys.modules)").split() == ["False", "True", "False"]
    assert python("import intarsia; print(*[n for n in intarsia.__all__ if not hasattr(intarsia, n)])").split() == []
    assert python("import intarsia, sys; print(set(intarsia.__all__) <= set(dir(intarsia)))").strip() == "True"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        import intarsia  # noqa: PLC0415

        intarsia.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.slow
def test_the_package_needs_no_unix() -> None:
    code = "import sys; sys.modules['resource'] = None; import intarsia, intarsia.machine as m; intarsia.learn; "
    assert int(python(code + "m.Path.exists = lambda _: False; print(m.peak_memory())")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("verb", [[], ["learn"], ["ls", "--builtin"]], ids=str)
def test_a_terminal_that_knows_ascii_only_is_written_to(verb: list[str]) -> None:
    typed = [*verb, *([] if "--builtin" in verb else ["--help"])]
    code = f"""
from intarsia.cli.main import main
try:
    main({typed!r})
except SystemExit as stop:
    assert not stop.code
"""
    assert python(code, encoding="ascii").isascii()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.1, 0.5, 1.5, 3.0])
def test_an_interrupt_in_the_first_seconds_is_one_line(after: float, tmp_path: Path) -> None:
    """While the program's own modules and torch are loaded: whatever is running then, no traceback."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # of a shell's background too
    command = [sys.executable, "-c", heard + "from intarsia.cli.main import main; print('up', flush=True); main()"]
    command += ["learn", "--out", str(tmp_path / "p"), "--run.dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert "Traceback" not in err
    assert process.returncode == 130
    assert "stopped" in err.splitlines()[-1]


@pytest.mark.parametrize("number", ["-1", "-1.5", "-.5", "-1e30", "-1E-3", "-inf"])
def test_a_negative_number_is_a_value(number: str) -> None:
    assert parsed(["unlearn", "pool", "a", "--scale", number, "--mode", "negate"]).scale == float(number)


def test_a_dataclass_is_made_of_what_is_given_only() -> None:
    assert parse(Learn, [], "learn") == Learn()
    assert parse(Learn, ["--training.no-compile", "--seed=3"], "learn") == Learn(
        training=Training(compile=False, seed=3)
    )
