"""The commands and code of the README, the quick start and the training loop, run as written."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import forked
import nbformat
import pytest
from nbclient import NotebookClient

from intarsia.cli.main import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README, QUICK_START, OWN_LOOP = (
    (ROOT / name).read_text() for name in ("README.md", "docs/quick_start.md", "docs/your_own_loop.md")
)


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for kind, block in found if kind == language]


def commands(*texts: str) -> list[str]:
    """Each once."""
    found = [line for text in texts for block in blocks(text, "") for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(found))


def intarsia(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(line)
    assert program == "intarsia"
    return forked.intarsia(arguments, cwd)


def here(line: str, cwd: Path) -> tuple[int, str, str]:
    """The same in this process: exit code, standard output and error."""
    code, before = 0, Path.cwd()
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        os.chdir(cwd)
        try:
            main(shlex.split(line)[1:])
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        finally:
            os.chdir(before)
    return code, out.getvalue(), err.getvalue()


def python(code: str, cwd: Path) -> str:
    (cwd / "example.py").write_text(code)
    done = subprocess.run([sys.executable, "example.py"], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shortened(line: str) -> str:
    """A command that would take minutes, on less."""
    if line.startswith("intarsia compare"):  # an hour as it stands; every method has tests of its own
        line = re.sub(r"--methods .*? (?=--)", "--methods frozen ", line).replace("--seeds 3", "--seeds 1")
        return f"{line} --only animals vehicles --max-per-class 4"
    return f"{line} --per-task 4" if re.match("intarsia (diagnose|report)", line) else line


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first command has run, on three of the tasks and with fewer passes than a user makes."""
    folder = tmp_path_factory.mktemp("readme")
    first = commands(README)[0].split("&& ")[-1]
    done = intarsia(f"{first} --only animals music vehicles --epochs 1 --max-per-class 4 --run.no-evaluate", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_first_two_commands_install_and_run() -> None:
    first, second = commands(README)[:2]
    assert first.endswith("pip install . && intarsia learn --max-per-class 30")
    assert second.endswith("pip install -e '.[dev]' && pytest")


def test_every_command_on_the_built_in_pool_runs(workplace: Path) -> None:
    """The README's as a user runs them; what the quick start has besides, in this process, which has started."""
    lines = [line for line in commands(README, QUICK_START) if re.match(r"intarsia (?!learn|studio)", line)]
    assert len(lines) >= 14
    for line in lines:
        if line in commands(README):
            done = intarsia(shortened(line), workplace)
            code, said, complaint = done.returncode, done.stdout, done.stderr
        else:
            code, said, complaint = here(shortened(line), workplace)
        assert code == 0, (line, complaint)
        assert said.strip(), line


def test_learn_commands_for_a_users_own_images_parse(workplace: Path) -> None:
    """There are no photos here, which is the one thing that is wrong with them."""
    lines = [line for line in commands(README, QUICK_START) if re.match(r"intarsia learn .+", line)]
    assert len(lines) == 4
    for line, said in zip(lines, ("photos", "new_birds", "cifar100", "runs/photos"), strict=True):
        code, _, complaint = here(line.replace("runs/photos", "runs/chalk-ita") if "--add" in line else line, workplace)
        assert code == 2, complaint
        assert said in complaint.splitlines()[-1]


def test_the_python_example_runs(workplace: Path) -> None:
    (code,) = blocks(README, "python")
    quick = code.replace("import ITA,", "import ITA, Training,").replace("out=", "training=Training(epochs=1), out=")
    few = 'TaskStream.load("chalk", max_per_class=4).subset(["animals", "music", "vehicles"])'
    quick = quick.replace('TaskStream.load("chalk")', few)
    picture = "from PIL import Image\nImage.new('L', (28, 28)).save('cat.png')\n"
    show = "\nprint(len(result.accuracy_matrix), len(labels), expert.labels[0], len(clean.labels), len(mix.labels))\n"
    assert python(picture + quick + show, workplace).split() == ["3", "1", "bee", "20", "20"]


def test_the_training_loop_of_the_documents_learns(tmp_path: Path) -> None:
    """On half of the images. On all of them class by class, unshuffled, the same loop ends at 30 %."""
    (code,) = blocks(OWN_LOOP, "python")
    half = code.replace('TaskStream.load("sketches")', 'TaskStream.load("sketches", max_per_class=40)')
    assert half != code
    vector, accuracy = python(half, tmp_path).splitlines()
    assert vector.startswith("TaskVector(")
    assert float(re.fullmatch(r"accuracy (\d+\.\d) %", accuracy)[1]) > 36  # pyright: ignore[reportOptionalSubscript]


def test_the_examples_of_extensions_run(tmp_path: Path) -> None:
    """All blocks of the page, one after another in one program; an extension has less than 30 lines."""
    text = (ROOT / "docs" / "extend.md").read_text()
    examples = blocks(text, "python")
    assert len(examples) >= 7
    for example in examples:
        lines = [line for line in example.splitlines() if line.strip() and not re.match(r"(from|import) ", line)]
        assert len(lines) < 30, example
    assert python("\n".join(examples), tmp_path).splitlines() == [
        "root-fisher",
        "True",
        "2",
        "True",
        "torch.Size([2, 32])",
        "[('disc',), ('square',), ('star',)]",
        "20",
    ]


PAGES = {"peft": ("loras/animals", 4), "mergekit": ("largest difference", 3), "mammoth": ("runs/paper", 3)}
"""Page -> what is there or said when all of it has run, and how many commands it has."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", list(PAGES))
def test_the_examples_for_those_who_come_from_elsewhere_run(page: str, workplace: Path) -> None:
    """Python first, then the commands in their order, all in this process."""
    text, (sign, count) = (ROOT / "docs" / f"from_{page}.md").read_text(), PAGES[page]
    before = Path.cwd()
    with redirect_stdout(StringIO()) as out, contextlib.chdir(workplace):
        for code in blocks(text, "python"):
            exec(code, {})
    lines = commands(text)
    assert len(lines) == count
    for line in lines:
        code, said, complaint = here(line, workplace)
        assert code == 0, (line, complaint)
        assert said.strip(), line
    assert sign in out.getvalue() or (workplace / sign).exists()
    assert Path.cwd() == before
    if page == "mergekit":
        assert float(out.getvalue().split()[-1]) < 1e-6


def test_the_notebook_runs_and_says_what_it_said(tmp_path: Path) -> None:
    """All its lines again, but for the numbers; else: jupyter execute --inplace docs/tutorial.ipynb, and leave out what
    it warns of.
    """
    path = ROOT / "docs" / "tutorial.ipynb"
    kept, again = nbformat.read(path, 4), nbformat.read(path, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(again, timeout=600, kernel_name="python3", record_timing=False, resources=where).execute()

    def told(cell: Any) -> list[str]:
        found = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        texts = [o.get("text") or o["data"].get("text/html") or o["data"]["text/plain"] for o in found]
        return [re.sub(r"\s*-?\d+(\.\d+)?(e-\d+)?", " #", text) for text in texts]

    for before, now in zip(kept.cells, again.cells, strict=True):
        assert told(before) == told(now), now.source
    assert sum(bool(told(cell)) for cell in kept.cells) >= 8
    assert "stderr" not in path.read_text()
    assert (tmp_path / "runs" / "tutorial" / "pool.json").exists()
