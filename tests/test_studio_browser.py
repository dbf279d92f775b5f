"""The studio's page in a real browser: what is shown is what the commands print, and nothing leaves the machine."""

import gc
import json
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import result
from test_docs import LOADS

from cases import photographs, small_vit
from intarsia import Pool, open_studio

gr = pytest.importorskip("gradio", reason="the extra [studio] is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from intarsia.evaluation.metrics import recorded_stream  # noqa: E402
from intarsia.studio.comparison import comparison  # noqa: E402
from intarsia.studio.learning.process import Learning  # noqa: E402
from intarsia.studio.page import page as page_of  # noqa: E402
from intarsia.studio.serve import serve  # noqa: E402
from intarsia.studio.session import Session  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.filterwarnings("default"),  # those of gradio's server, of the libraries below it
]
LEDGER = Path(__file__).parents[1] / "benchmarks" / "reproduction" / "ledger" / "compare-sketches"
TASKS = {"cold": ["blue", "cyan"], "earth": ["gold", "green"]}
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000
"""Milliseconds."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def end(blocks: Any) -> None:
    """Close a server, and let its loops go where their warnings are not errors."""
    blocks.close(verbose=False)
    gc.collect()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of six classes, and a pool of two tasks of two of them."""
    root = photographs(tmp_path_factory.mktemp("studio"), train=5, test=3)
    (root / "tasks.json").write_text(json.dumps(TASKS))
    data = ["--data", f"folder:{root / 'photos'}", "--split", root / "tasks.json", "--backbone", small_vit(root)]
    result("learn", *data, "--epochs", 1, "--rank", 2, "--run.no-evaluate", "--out", root / "pool")
    shutil.copytree(root / "pool", root / "again")
    with zipfile.ZipFile(root / "new.zip", "w") as archive:
        for kind in ("grey", "red"):
            for part in ("train", "test"):
                for image in (root / "photos" / part / kind).iterdir():
                    archive.write(image, f"photos/{part}/{kind}/{image.name}")
    return root


@pytest.fixture(scope="module")
def learning(world: Path) -> Iterator[Learning]:
    pool = Pool.open(world / "pool")
    session = Session(pool.path, pool.backbone, lambda pool, tasks: recorded_stream(pool), per_class=3)
    made = Learning(session)
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(learning: Learning) -> Iterator[str]:
    """Of a server of that pool, which all tests share."""
    session = learning._session
    blocks = page_of(session, learning)
    yield serve(blocks, session.uploads, host="127.0.0.1", port=free_port(), share=False)
    end(blocks)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end none has complained, asked for anything elsewhere, or is wider than its window."""
    wrong, pages = list[str](), list[Any]()

    def opened(url: str, size: dict[str, int] = WIDE, scheme: str = "light") -> Any:
        def answered(route: Any) -> None:
            if route.request.url.startswith((url, "data:", "blob:")):
                route.continue_()
            else:
                wrong.append(f"asked {route.request.url}")
                route.abort()

        made = browser.new_context(viewport=size, color_scheme=scheme).new_page()
        made.set_default_timeout(PATIENCE)
        made.route("**/*", answered)
        made.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        made.on("pageerror", lambda error: wrong.append(str(error)))
        made.on("response", lambda found: wrong.append(found.url) if found.status >= 400 else None)
        made.goto(url)
        pages.append(made)
        return made

    yield opened
    for each in pages:
        if not each.is_closed():
            assert each.evaluate("document.documentElement.scrollWidth <= innerWidth")
            each.context.close()
    assert wrong == []


def go_to(page: Any, place: str) -> None:
    page.get_by_role("tab", name=place, exact=True).click()


def shown(page: Any, where: str, text: str | re.Pattern[str]) -> str:
    """The text of a part of the page, once it has that in it."""
    playwright.expect(page.locator(where)).to_contain_text(text, timeout=PATIENCE)
    return page.locator(where).inner_text()


def accuracies(text: str, tasks: list[str]) -> list[str]:
    """The accuracy in each task's row of the table on the composition."""
    return [re.search(rf"^{task}\s+\S+\s+([\d.]+)", text, re.MULTILINE)[1] for task in tasks]  # type: ignore[index]


def said_by_evaluate(world: Path, *weights: str) -> tuple[list[str], str, str]:
    """Accuracy per task, final and within tasks, as the command prints them; all test images are in the sample."""
    found = result("evaluate", world / "pool", "--matrix", "no", "--weights", *weights)
    each = [f"{a:.1f}" for a in found["accuracy_matrix"][-1]]
    return each, f"{found['final_accuracy']:.1f} %", f"{found['task_il_accuracy']:.1f} %"


def test_two_sliders_are_moved_and_the_numbers_are_those_of_evaluate(
    address: str, visit: Callable[..., Any], world: Path
) -> None:
    page = visit(address)
    go_to(page, "Compose")
    start = shown(page, "#composed", "cold=0.75 earth=0.75")
    assert "= 0.0 against the mean" in start
    for task, value in (("cold", "0.9"), ("earth", "-0.4")):
        box = page.get_by_label(f"number input for {task}")
        box.fill(value)
        box.press("Tab")
    text = shown(page, "#composed", "cold=0.9 earth=-0.4")
    playwright.expect(page.get_by_label("Preset")).to_have_value("Own mix")
    each, final, within = said_by_evaluate(world, "cold=0.9", "earth=-0.4")
    assert accuracies(text, ["cold", "earth"]) == each
    assert final in text
    assert within in text
    other = visit(address)
    go_to(other, "Compose")
    shown(other, "#composed", "cold=0.75 earth=0.75")  # another tab has a composition of its own
    other.context.close()
    page.get_by_role("button", name="Measure on all test images").click()
    assert final.removesuffix(" %") in shown(page, "#more", "all test images").split("all\t")[1]
    page.get_by_role("button", name="Undo").click()
    shown(page, "#composed", "cold=0.9 earth=0.75")
    page.get_by_role("button", name="Undo").click()
    assert accuracies(shown(page, "#composed", "cold=0.75 earth=0.75"), ["cold", "earth"]) == accuracies(
        start, ["cold", "earth"]
    )
    page.get_by_label("Preset").click()
    playwright.expect(page.get_by_label("Preset")).to_have_value("Mean of all")
    page.get_by_role("option", name="Only earth").click()
    text = shown(page, "#composed", "--weights earth=1")
    assert accuracies(text, ["earth"]) == said_by_evaluate(world, "earth=1")[0]
    page.get_by_label("Name of the model").fill("mine")
    page.get_by_role("button", name="Save as model").click()
    page.get_by_text("Saved as mine").wait_for()
    assert result("ls", world / "pool" / "studio" / "models" / "mine")["classes"] == {"earth": TASKS["earth"]}
    page.get_by_label("Name of the model").fill("../mine")
    page.get_by_role("button", name="Save as model").click()
    page.get_by_text("Rename it").wait_for()
    assert str(world) not in page.content()


def test_the_keyboard_alone_composes_and_unlearns(address: str, visit: Callable[..., Any], world: Path) -> None:
    """On a phone's width, in the dark."""
    page = visit(address, PHONE, "dark")
    page.get_by_role("tab", name="Pool", exact=True).wait_for()

    def tab_to(name: str) -> None:
        """Press Tab until what has the focus is called so."""
        js = "e => (e.ariaLabel || e.labels?.[0]?.innerText || e.innerText || '').trim()"
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate(f"({js})(document.activeElement)") == name:
                return
        raise AssertionError(f"Tab does not lead to {name!r}")

    tab_to("Compose")
    page.keyboard.press("Enter")
    shown(page, "#composed", "cold=0.75 earth=0.75")
    tab_to("range slider for cold")
    slider = page.get_by_role("slider", name="range slider for cold")
    while (value := float(slider.input_value())) != 0.6:  # one by one: gradio may lose keys that come faster
        page.keyboard.press("ArrowRight" if value < 0.6 else "ArrowLeft")
        page.wait_for_timeout(100)
    text = shown(page, "#composed", "cold=0.6 earth=0.75")
    assert accuracies(text, ["cold", "earth"]) == said_by_evaluate(world, "cold=0.6", "earth=0.75")[0]
    page = visit(address, PHONE, "dark")
    page.get_by_role("tab", name="Pool", exact=True).wait_for()
    tab_to("Unlearn")
    page.keyboard.press("Enter")
    before = shown(page, "#unlearned", "cold negated, λ = 0.50")
    tab_to("Task to unlearn")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    after = shown(page, "#unlearned", "earth negated, λ = 0.50")
    assert before != after
    tab_to("range slider for How much of its vector to subtract (λ)")
    page.keyboard.press("ArrowRight")
    found = result("unlearn", world / "pool", "earth", "--mode", "negate", "--scale", 0.55)["after"]
    row = shown(page, "#unlearned", "earth negated, λ = 0.55").split("earth negated, λ = 0.55")[1].split()
    assert row[:2] == [f"{found['target_accuracy']:.1f}", f"{found['control_accuracy']:.1f}"]
    dropped = result("unlearn", world / "pool", "earth")["after"]["control_accuracy"]
    assert re.search(rf"earth dropped\s+–\s+{dropped:.1f}", shown(page, "#unlearned", "dropped"))
    tab_to("Draw the curve")
    page.keyboard.press("Enter")
    page.locator("#curve svg[role=img]").wait_for()
    tab_to("Export")
    page.keyboard.press("Enter")
    page.get_by_text("Exported as unlearned").wait_for()
    recipe = result("ls", world / "pool" / "studio" / "models" / "unlearned")["recipe"]
    assert recipe["weights"] == pytest.approx({"cold": 0.75, "earth": 0.2})


def test_pictures_are_tried(address: str, visit: Callable[..., Any], world: Path) -> None:
    page, picture = visit(address, PHONE), world / "photos" / "test" / "blue" / "0.png"
    bad = world / "bad.png"
    bad.write_text("no image")
    go_to(page, "Try")
    page.locator("#pictures input[type=file]").set_input_files([picture, bad])
    text = shown(page, "#answers-of-models", "Specialist of cold")
    assert "'bad.png' is not an image" in text
    best = result("predict", world / "pool", picture)["predictions"][0]
    first = page.locator("#answers-of-models section").first.inner_text().split("\n")
    assert first[0] == "Your composition"
    assert best["class"] in first
    assert f"{round(100 * best['probability'])} %" in text
    assert str(world) not in page.locator("body").inner_text()
    assert not page.locator("#pictures a").first.is_visible()  # whose address has the path


def look_at_new(page: Any, world: Path) -> str:
    """Drop the zip of a new task, to be learned for long; what is said of it."""
    go_to(page, "Learn")
    page.get_by_label("Name of the task").fill("new")
    page.locator("#zip input[type=file]").set_input_files(world / "new.zip")
    page.locator("#zip").get_by_text("new.zip").wait_for()
    page.get_by_label("Epochs").fill("300")
    page.get_by_role("button", name="Look at the images").click()
    return shown(page, "#found", "training images")


def test_a_task_is_learned_stopped_and_gone_on_with(
    address: str, visit: Callable[..., Any], world: Path, learning: Learning
) -> None:
    """The page is closed while it is gone on with; another server sees it; then the module is in every place."""
    page = visit(address)
    assert "grey, red" in look_at_new(page, world)
    page.get_by_role("button", name="Start").click()
    page.locator("#learning svg[role=img]").wait_for()  # a curve: two epochs are done
    other = Learning(Session(world / "pool", learning._session.pool.backbone, learning._session._images, per_class=1))
    assert (other.status().running, other.status().ours) == (True, False)
    page.get_by_role("button", name="Stop").click()
    shown(page, "#learning", "A run was stopped in task 'new' after epoch")
    assert Pool.open(world / "pool").tasks == tuple(TASKS)
    page.get_by_role("button", name="Go on").click()
    shown(page, "#learning", "Learning")
    page.context.close()  # the tab
    page = visit(address, PHONE, "dark")
    go_to(page, "Learn")
    shown(page, "#learning", "Done: the new module is in the pool")
    shown(page, "#head", "3 modules")
    assert Pool.open(world / "pool").tasks == (*TASKS, "new")
    go_to(page, "Pool")
    shown(page, "#modules", "grey, red")
    go_to(page, "Compose")
    text = shown(page, "#composed", "cold=0.5 earth=0.5 new=0.5")
    assert accuracies(text, [*TASKS, "new"]) == said_by_evaluate(world, *(f"{t}=0.5" for t in (*TASKS, "new")))[0]
    page.get_by_label("range slider for new").wait_for()
    go_to(page, "Unlearn")
    page.get_by_label("Task to unlearn").click()
    page.get_by_role("option", name="new").wait_for()


def test_every_control_has_a_name(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    nameless = """() => [...document.querySelectorAll('input, textarea, select, button, [role=button]')]
      .filter(e => e.checkVisibility() && !(e.ariaLabel || e.title || e.labels?.length || e.textContent.trim()
        || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML.slice(0, 200))"""
    for place in ("Pool", "Compose", "Try", "Unlearn", "Learn"):
        go_to(page, place)
        page.wait_for_timeout(300)
        assert page.evaluate(nameless) == [], place


def test_the_page_as_it_is_served_loads_nothing_from_elsewhere(address: str, visit: Callable[..., Any]) -> None:
    html = visit(address).request.get(address).text()
    assert "gradio_config" in html
    assert not LOADS.search(html)
    assert '"analytics_enabled": false' in html.replace('":false', '": false')


def test_a_comparison_is_sorted_by_its_headings(visit: Callable[..., Any], tmp_path: Path) -> None:
    blocks = comparison(LEDGER)
    page = visit(serve(blocks, tmp_path, host="127.0.0.1", port=free_port(), share=False), PHONE)
    rows = {row["method"]: row for row in json.loads((LEDGER / "comparison.json").read_text())["rows"]}
    column = page.locator("#table tbody th")
    column.first.wait_for()
    assert column.all_inner_texts() == [*rows]
    for name, key in (("FA %", "final_accuracy"), ("kept", "numbers_per_task")):
        page.get_by_role("button", name=name, exact=True).focus()
        for turn in (1, -1):
            page.keyboard.press("Enter")
            found = [rows[method][key] for method in column.all_inner_texts()]
            assert found == sorted(found, key=lambda value, turn=turn: turn * value)
    assert page.locator("figure.drawn img").count() == 2
    end(blocks)


def test_a_server_that_is_killed_loses_nothing(world: Path, visit: Callable[..., Any]) -> None:
    """It learns on without it; the next server says so, cannot stop it, and shows the module in the end."""
    pool = world / "again"
    command = [sys.executable, "-m", "intarsia", "studio", str(pool), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            page = visit(server.stdout.readline().split()[0])
            look_at_new(page, world)
            page.get_by_role("button", name="Start").click()
            page.locator("#learning svg[role=img]").wait_for()
            page.context.close()
        finally:
            server.kill()
    left = pool / "studio" / f"uploads-{server.pid}"
    assert left.exists()
    page = visit(open_studio(Pool.open(pool), port=free_port()))
    go_to(page, "Learn")
    shown(page, "#learning", "Learning by another process")
    playwright.expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    shown(page, "#head", "3 modules")
    shown(page, "#learning", "Nothing is being learned")
    assert not left.exists()
    page.context.close()
    gr.close_all(verbose=False)
    gc.collect()


def test_it_is_opened_from_python(world: Path, visit: Callable[..., Any]) -> None:
    """As from a notebook, with a sample of its own."""
    page = visit(open_studio(Pool.open(world / "pool"), port=free_port(), per_class=1))
    shown(page, "#head", "1 of each class")
    page.context.close()  # which loads parts of itself later on
    gr.close_all(verbose=False)
    gc.collect()
