"""What the documents say about the code is there: paths, names, the picture; the site builds and loads nothing."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from test_report import CHROMIUM, browse

import intarsia
from intarsia.cli.main import VERBS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "intarsia"
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
TEXT = (ROOT / "docs" / "architecture.md").read_text()
LOADS = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//"
    r"|@import|url\([\"']?(?:https?:)?//"
)
"""What a browser fetches from another place when it shows a page."""
ROWS = [line for line in TEXT.splitlines() if re.match(r"\| (\d+\.|[a-z])", line) and "|---" not in line]


def names(path: Path) -> set[str]:
    """What a file defines: functions, classes, their methods as Class.method, and constants."""
    found: set[str] = set()
    top = ast.parse(path.read_text()).body
    for node in [*top, *(inner for block in top if isinstance(block, ast.If) for inner in block.body)]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_thirteen_questions_are_answered() -> None:
    assert [line.split(".")[0] for line in ROWS if line[2].isdigit()] == [f"| {i}" for i in range(1, 14)]


@pytest.mark.parametrize("row", [row for row in ROWS if ".py`" in row], ids=lambda row: row.split("|")[1].strip())
def test_every_path_and_name_of_an_answer_exists(row: str) -> None:
    """A name stands after the path of its file, in the same cell."""
    for cell in row.split("|")[2:-1]:
        file: Path | None = None
        for span in spans(cell):
            if span.endswith(".py"):
                file = PACKAGE / span
                assert file.is_file(), span
            else:
                assert file is not None, f"{span}: no file named before it"
                assert span in names(file), f"{span} is not in {file.relative_to(ROOT)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for span in spans(text):
        for word in re.findall(r"(?:^|\s)([\w./-]+\.(?:py|jsonl|npz|safetensors))(?=\s|$)", span):
            if "/" in word and not word.startswith(("/", ".")):
                near = (ROOT, PACKAGE, ROOT / "benchmarks")
                assert any((base / word).exists() for base in near), f"{page.name}: {word}"
    for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if ":" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", ["docs/quick_start.md", "CHANGELOG.md"])
def test_every_verb_is_in_the_documents(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?<=`)[a-z]+(?=[ `])|(?<=intarsia )[a-z]+", text))
    assert set(VERBS) <= named


def test_every_verb_has_its_names_in_python() -> None:
    """The table names what there is, documented and typed, and all that `import intarsia` offers for a verb."""
    text = (ROOT / "docs" / "quick_start.md").read_text().partition("## The same in Python")[2]
    rows = {spans(line)[0]: spans(line)[1:] for line in text.splitlines() if re.match(r"\| `[a-z]+`", line)}
    assert list(rows) == list(VERBS)
    for verb, listed in rows.items():
        assert listed, verb
        for name in listed:
            what = attrgetter(name)(intarsia)
            if name == "PRESETS":
                continue
            assert inspect.getdoc(what), name
            if not isinstance(what, type):
                hints = inspect.signature(what)
                assert hints.return_annotation is not inspect.Signature.empty, name
                open_ = [p for p in hints.parameters.values() if p.name != "self" and p.annotation is p.empty]
                assert not open_, (name, open_)
    offered = {name.partition(".")[0] for listed in rows.values() for name in listed} | {"InputError"}
    assert set(intarsia.__all__) - offered == {"TaskVector", "diagonal_fisher"}  # of the page on your own loop


def test_every_test_that_holds_a_trial_exists() -> None:
    rows = [line for line in (ROOT / "docs" / "trials.md").read_text().splitlines() if "`test_" in line]
    assert len(rows) > 35
    for row in rows:
        file = ROOT
        for span in re.findall(r"`(test_\w+(?:\.py)?)`", row):
            file = ROOT / "tests" / span if span.endswith(".py") else file
            assert span.endswith(".py") or span in names(file), f"{span} is not in {file.name}"


def test_every_folder_is_in_the_picture_and_the_picture_is_of_today() -> None:
    """Else: python docs/figures/architecture.py."""
    script = ROOT / "docs" / "figures" / "architecture.py"
    spec = importlib.util.spec_from_file_location("architecture", script)
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    shown = {name for layer in drawing.layers() for name in layer}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= shown
    assert script.with_suffix(".svg").read_text() == drawing.picture()


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra [docs] is not installed")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len([page for page in pages if page.suffix == ".html"]) > 25
    for page in pages:
        assert not LOADS.search(page.read_text()), page
    if CHROMIUM is not None:
        found, _ = browse(site / "index.html", tmp_path / "profile", 1280, "?q=fisher")
        assert re.search(r"[1-9]\d* matching documents", found)
