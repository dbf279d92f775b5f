"""Time from the end of a slider's move to the numbers that follow from it, in a real browser.

    python benchmarks/performance/studio.py runs/chalk-ita --moves 20 --json

The page of a pool is served here and opened in Chromium. Every move sets another coefficient; the browser's own clock
runs from the slider's event until the page shows the accuracies of that composition. Beside it: what of that is the
composing, and what the measuring on the sample.
"""

import json
import shutil
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from playwright.sync_api import sync_playwright

from intarsia import Pool
from intarsia.evaluation.metrics import recorded_stream
from intarsia.studio.composition import Composition
from intarsia.studio.learning.process import Learning
from intarsia.studio.measures import measure, one_thread
from intarsia.studio.page import page
from intarsia.studio.serve import serve
from intarsia.studio.session import Session

MOVE = """([name, value, text]) => new Promise(done => {
  const shown = document.querySelector('#composed'), began = performance.now();
  const seen = new MutationObserver(() => {
    if (shown.textContent.includes(text)) { seen.disconnect(); done(performance.now() - began); }
  });
  seen.observe(shown, {childList: true, subtree: true, characterData: true});
  const slider = document.querySelector(`[aria-label="range slider for ${name}"]`);
  slider.value = value;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
})"""
"""Moves a slider, and waits for the text that only this composition has; milliseconds."""


@dataclass(frozen=True)
class Studio:
    """What to measure."""

    pool: tyro.conf.Positional[Path]
    """Folder of the pool."""
    moves: int = 20
    """Of the first slider, after one that is not counted."""
    per_class: int | None = None
    """Test images of each class in the sample; the studio's own choice if not given."""
    threads: int = 2
    """Tasks measured beside each other, as many as torch has threads else."""
    json: bool = False
    """Print JSON in place of lines."""

    def run(self) -> None:
        """Measure, and print."""
        torch.set_num_threads(self.threads)
        backbone, threads = Pool.open(self.pool).backbone, one_thread()
        images = lambda pool, _: recorded_stream(pool)  # noqa: E731
        session = Session(self.pool, backbone, images, per_class=self.per_class, threads=threads)
        with tempfile.TemporaryDirectory() as uploads:
            moves = self._moves(session, Path(uploads))
        composing, measuring = self._parts(session)
        found = {
            "pool": self.pool.name,
            "modules": len(session.tasks),
            "images": session.images,
            "per_class": session.per_class,
            "threads": self.threads,
            "moves": len(moves),
            "median_seconds": round(statistics.median(moves), 3),
            "slowest_seconds": round(max(moves), 3),
            "composing_seconds": round(composing, 3),
            "measuring_seconds": round(measuring, 3),
        }
        print(json.dumps(found) if self.json else "\n".join(f"{name:<18} {value}" for name, value in found.items()))

    def _moves(self, session: Session, uploads: Path) -> list[float]:
        """Seconds of every move."""
        blocks = page(session, Learning(session))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = serve(blocks, uploads, host="127.0.0.1", port=port, share=False)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.set_default_timeout(300_000)
            tab.goto(address)
            tab.get_by_role("tab", name="Compose", exact=True).click()
            name = session.tasks[0]
            tab.get_by_label(f"range slider for {name}").wait_for()
            tab.locator("#composed table").first.wait_for()
            seconds = [self._move(tab, name, number) for number in range(self.moves + 1)]
            browser.close()
        blocks.close(verbose=False)
        return seconds[1:]

    def _move(self, tab: Any, name: str, number: int) -> float:
        value = f"{0.2 + number / 100:.4g}"
        return tab.evaluate(MOVE, [name, value, f"{name}={value} "]) / 1000

    def _parts(self, session: Session) -> tuple[float, float]:
        """Seconds of composing and of measuring alone, medians of 5."""
        composing, measuring = [], []
        for number in range(5):
            weights = dict.fromkeys(session.tasks, 0.05 + number / 100)
            began = time.perf_counter()
            model = Composition.of(session.tasks, weights, session.tasks).model(session.pool)
            composed = time.perf_counter()
            measure(model, session.sample, threads=self.threads)
            composing.append(composed - began)
            measuring.append(time.perf_counter() - composed)
        return statistics.median(composing), statistics.median(measuring)


if __name__ == "__main__":
    tyro.cli(Studio).run()
