"""The report: one page that holds what was measured, needs nothing else, and that a browser shows without complaint."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cells as runs_here
import pytest
from test_cli import refused, result

from cases import GREY, edit, stream
from intarsia import Pool, diagnose, evaluate
from intarsia.evaluation.kept import Kept
from intarsia.evaluation.metrics import target_and_control
from intarsia.report.page import confused, report_comparison, report_pool

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Parts(HTMLParser):
    """Tags that were opened and not closed, addresses, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def read(html: str) -> Parts:
    parts = Parts()
    parts.feed(html)
    assert not parts.open
    assert all(address.startswith("data:") for address in parts.addresses)
    assert "http" not in re.sub(r"base64,[^\"]*", "", html)
    return parts


def test_a_pools_page_holds_its_figures_its_tasks_and_what_was_measured(pool: Pool) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    html = report_pool(
        pool, stream(), progress=lambda phase, done, total: told.setdefault(phase, []).append((done, total))
    )
    parts = read(html)
    found, diagnosis = evaluate(pool.mean(), stream()), diagnose(pool, stream())
    for words in (
        f"{found.final_accuracy:.1f} %",
        f"{diagnosis.true_gap:.4f}",
        f"{diagnosis.gradient_norm_before:.4f}",
        pool.backbone.hash[:16],
        *pool.tasks,
        *(f"{found.when_learned[j]:.1f}\n{a:.1f}\n" for j, a in enumerate(found.per_task.values())),
        "measured on",
        *(f"{seen.size:,}\n{seen.sha256}" for seen in pool.index.files.values()),
    ):
        assert words in parts.text
    assert sum(address.startswith("data:image/png") for address in parts.addresses) == 6 + 2 * len(pool.tasks)
    assert list(told) == ["evaluating", "networks", "curvatures", "lines of weights"]
    for steps in told.values():  # each told in order, to its end
        assert steps == [(done, steps[-1][1]) for done in range(1, steps[-1][1] + 1)]


def test_a_report_that_is_stopped_goes_on_where_it_was(pool: Pool, tmp_path: Path) -> None:
    """Stopped among the edits: what was measured is not measured again, and the page is the same."""
    kept, whole = tmp_path / "kept.json", report_pool(pool, stream(), edited=True)

    def stopped(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("editing", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report_pool(pool, stream(), edited=True, progress=stopped, keep=Kept(kept, pool, stream()))
    before = json.loads(kept.read_text())["rows"]
    assert report_pool(pool, stream(), edited=True, keep=Kept(kept, pool, stream())) == whole
    after = json.loads(kept.read_text())["rows"]
    assert len(after) - len(before) == 3 * 4 - 5
    assert {name: after[name] for name in before} == before

    def forbidden(name: str, measure: object) -> Any:
        return after[name]

    assert report_pool(pool, stream(), edited=True, keep=forbidden) == whole


def test_a_pools_page_says_what_editing_does(pool: Pool) -> None:
    """Every task's row: the mean, it alone, negated, dropped; the task / the others."""
    html = report_pool(pool, stream(), edited=True)
    parts = read(html)
    assert sum(address.startswith("data:image/png") for address in parts.addresses) == 7 + 2 * len(pool.tasks)
    for task in pool.tasks:
        models = (
            pool.mean(),
            pool.specialize([task], all_classes=True),
            pool.unlearn(task, mode="negate", scale=0.5),
            pool.unlearn(task),
        )
        sides = [target_and_control(model, stream(), task) for model in models]
        row = [" / ".join("-" if side is None else f"{side:.1f}" for side in pair) for pair in sides]
        assert "".join(f"<td>{text}</td>" for text in (task, *row)) in html


def test_confused_classes_are_those_most_often_taken_for_another(pool: Pool) -> None:
    model, tasks = pool.mean(), list(stream())
    found = confused(model, tasks)
    labels = model.labels
    for place, task in enumerate(tasks):
        taken = model.logits(task.test.tensor(GREY)).argmax(1)
        for pair in found[task.name]:
            own = taken[task.test.labels == task.classes.index(pair.true)]
            assert int((own == labels.index(pair.taken_for)).sum()) == pair.count > 0
            assert pair.of == len(own) == 4
            assert labels[2 * place + task.classes.index(pair.true)] == pair.true
        counts = [pair.count for pair in found[task.name]]
        assert counts == sorted(counts, reverse=True)


def test_text_from_outside_is_escaped(reported: Path, tmp_path: Path) -> None:
    """A folder's name, a method's, and whatever else a file says: nothing of it becomes a tag."""
    evil = "<script>alert(1)</script> & <b>"
    shutil.copytree(reported / "runs", tmp_path / "a & <b>")

    def spoil(record: dict) -> None:
        record["rows"][0]["about"] = record["bench"]["backbone"] = evil

    edit(tmp_path / "a & <b>" / "comparison.json", spoil)
    html = report_comparison(tmp_path / "a & <b>")
    parts = read(html)
    assert parts.text.count(evil) == 2
    assert "Comparison a & <b>" in parts.text
    assert "<script" not in html


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison and its report, made by the command line."""
    folder = tmp_path_factory.mktemp("report")
    small = ("--only", "animals", "vehicles", "--max-per-class", 4, "--epochs", 1, "--threads", 1)
    with pytest.MonkeyPatch.context() as patch:
        runs_here.use(patch)
        result("compare", "--methods", "frozen", "ita", "--out", folder / "runs", *small)
    assert result("report", folder / "runs")["out"] == str(folder / "runs-report.html")
    return folder


def test_a_comparisons_page_holds_its_table(reported: Path) -> None:
    parts = read((reported / "runs-report.html").read_text())
    rows = json.loads((reported / "runs" / "comparison.json").read_text())["rows"]
    assert sum(address.startswith("data:image/png") for address in parts.addresses) == 3
    assert "data chalk" in parts.text  # taken by default, and said
    for row in rows:
        assert row["method"] in parts.text
        assert f"{row['final_accuracy']:.1f}" in parts.text
    assert report_comparison(reported / "runs") == (reported / "runs-report.html").read_text()


def test_a_comparisons_page_names_all_machines_its_runs_were_made_on(reported: Path, tmp_path: Path) -> None:
    shutil.copytree(reported / "runs", tmp_path / "runs")
    made_on = json.loads((tmp_path / "runs" / "comparison.json").read_text())["machines"]
    assert len(made_on) == 1
    assert made_on[0].endswith("cpu")
    edit(tmp_path / "runs" / "comparison.json", lambda record: record["machines"].append("an abacus"))
    assert f"{made_on[0]}; an abacus" in read(report_comparison(tmp_path / "runs")).text
    edit(tmp_path / "runs" / "comparison.json", lambda record: record.pop("machines"))  # written before it was noted
    assert "not noted" in read(report_comparison(tmp_path / "runs")).text


def test_a_page_that_is_there_is_not_written_over(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "exists" in refused(capsys, "report", reported / "runs")
    assert "holds neither a pool" in refused(capsys, "report", reported / "nothing")
    blocked = reported / "runs" / "comparison.json" / "page.html"
    assert "page.html" in refused(capsys, "report", reported / "runs", "--out", blocked)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_without_complaint(reported: Path, tmp_path: Path) -> None:
    """At desktop and phone width, nothing wider than the window; a page with a fault is the control."""
    html = (reported / "runs-report.html").read_text()
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    (tmp_path / "good.html").write_text(html.replace("</body>", probe))
    (tmp_path / "bad.html").write_text("<script>nothing.there()</script>")
    for width in (1200, 500):  # a window of Chromium's is not narrower
        dom, said = browse(tmp_path / "good.html", tmp_path / "profile", width)
        assert "CONSOLE" not in said
        title = re.search(r"<title>(\d+) of (\d+)</title>", dom)
        assert title is not None
        assert int(title[1]) <= int(title[2])
    assert "CONSOLE" in browse(tmp_path / "bad.html", tmp_path / "profile", 1200)[1]


def browse(path: Path, profile: Path, width: int, query: str = "") -> tuple[str, str]:
    """A page's document after its scripts ran, and what the browser's console said."""
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--enable-logging=stderr"]
    command += [
        f"--user-data-dir={profile}",
        "--virtual-time-budget=5000",
        f"--window-size={width},900",
        "--dump-dom",
        path.as_uri() + query,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, done.stderr
