"""The README's commands and code, run as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def commands() -> list[str]:
    return [line for block in blocks("") for line in block.splitlines() if line.strip()]


def test_the_first_two_commands_install_and_run() -> None:
    first, second = commands()[:2]
    assert "pip install ." in first
    assert first.endswith("intarsia learn --out runs/sketches")
    assert second.endswith("pip install -e '.[dev]' && pytest")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the main job has run, with fewer passes than a user makes."""
    folder = tmp_path_factory.mktemp("readme")
    job = commands()[0].split("&& ")[-1]
    done = intarsia(f"{job} --epochs 1 --max-per-class 4 --no-evaluate", folder)
    assert done.returncode == 0, done.stderr
    return folder


def intarsia(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(line)
    assert program == "intarsia"
    command = [sys.executable, "-m", "intarsia", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_every_command_on_the_built_in_pool_runs(workplace: Path) -> None:
    lines = [line for line in commands() if line.startswith("intarsia") and " learn " not in line]
    assert len(lines) >= 9
    for line in lines:
        if line.startswith("intarsia compare"):  # an hour as it stands; every method has tests of its own
            line += " --methods frozen --seeds 1 --only animals vehicles --max-per-class 4"  # noqa: PLW2901
        if line.startswith("intarsia diagnose"):  # minutes on 200 images a task
            line += " --per-task 4"  # noqa: PLW2901
        done = intarsia(line, workplace)
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout.strip(), line


def test_learn_commands_for_a_users_own_images_parse(workplace: Path) -> None:
    lines = [line for line in commands() if line.startswith("intarsia learn")]
    assert len(lines) == 2
    whole, added = lines
    done = intarsia(whole, workplace)  # there are no photos here: the one thing that is wrong with it
    assert done.returncode == 2
    assert "photos" in done.stderr
    done = intarsia(added.replace("runs/photos", "runs/sketches"), workplace)
    assert done.returncode == 2
    assert "new_birds" in done.stderr


def test_the_python_example_runs(workplace: Path) -> None:
    (code,) = blocks("python")
    quick = code.replace("import ITA,", "import ITA, Training,").replace("out=", "training=Training(epochs=1), out=")
    quick = quick.replace('TaskStream.load("sketches")', 'TaskStream.load("sketches", max_per_class=4)')
    picture = "from PIL import Image\nImage.new('L', (28, 28)).save('cat.png')\n"
    show = "\nprint(len(result.accuracy_matrix), len(labels), expert.labels[0], len(clean.labels), len(mix.labels))\n"
    (workplace / "example.py").write_text(picture + quick + show)
    done = subprocess.run([sys.executable, "example.py"], capture_output=True, text=True, cwd=workplace, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["10", "1", "bee", "90", "20"]


def test_the_training_loop_of_the_documents_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "your_own_loop.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "loop.py").write_text(code)
    done = subprocess.run([sys.executable, "loop.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("TaskVector(")
