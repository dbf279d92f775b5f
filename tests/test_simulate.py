"""The simulated driver and workers of Ray, against runs whose length is known."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from simulate import Simulation, held


@dataclass(frozen=True)
class Fixed:
    """Every call takes a second, and so does what is named of the driver's steps, and what is sent."""

    steps: Mapping[str, float] = field(default_factory=dict)
    sends: Mapping[str, float] = field(default_factory=dict)
    loads: float = 0.0

    def loading(self) -> float:
        return self.loads

    def worker(self, method: str, task: int) -> float:
        return 1.0

    def sent(self, method: str, task: int) -> float:
        return self.sends.get(method, 0.0)

    def driver(self, step: str, task: int) -> Mapping[str, float]:
        return {step: self.steps[step]} if step in self.steps else {}


@pytest.mark.parametrize(
    ("tasks", "workers", "seconds"),
    [(1, 1, 3), (5, 1, 19), (5, 5, 4), (5, 50, 4), (6, 3, 8), (6, 2, 12)],
)
def test_calls_are_made_beside_each_other_as_far_as_they_do_not_wait(tasks: int, workers: int, seconds: int) -> None:
    """Features, Fisher, fine-tuning and, but for the first task, its place: fine-tuning waits for all Fishers."""
    run = Simulation(Fixed(), tasks, workers).run()
    assert run.seconds == seconds
    assert run.working == 4 * tasks - 1


def test_the_driver_and_its_link_serve_one_after_another() -> None:
    added = Simulation(Fixed({"added": 10.0}), 5, 5).run()
    assert (added.seconds, added.driver) == (2 + 50 + 2, {"added": 50.0})
    sent = Simulation(Fixed(sends={"tune": 10.0}), 5, 5).run()
    assert (sent.seconds, sent.link) == (2 + 50 + 2, 50.0)
    assert Simulation(Fixed({"written": 10.0}), 5, 5).run().seconds == 3 + 10 + 1 + 40


def test_a_worker_loads_once_and_one_that_has_works_first() -> None:
    assert Simulation(Fixed(loads=10.0), 5, 1).run().seconds == 29
    assert Simulation(Fixed(loads=10.0), 1, 7).run().seconds == 13


def test_a_seed_draws_how_calls_differ() -> None:
    def seconds(seed: int) -> float:
        return Simulation(Fixed(), 5, 2, seed, 0.3).run().seconds

    assert seconds(1) == seconds(1) != seconds(2)


def test_measured_runs_of_one_worker_are_simulated_as_they_were(tmp_path: Path) -> None:
    """Two tasks: 3 s of loading, 7 calls, and the driver's part of each."""
    worker = {"features": [4.0, 1.0], "fisher": [2.0, 2.0], "tune": [5.0, 6.0], "place": [1.0]}
    driver = {"start": 0.5, "features": 0.2, "fisher": 0.4, "tune": 0.0, "place": 0.3}
    phases = {"tasks": 2, "of_one_worker": [{"worker": worker, "driver": driver}]}
    told = {"seconds": {"ray 1": [22.0], "ray 2": [9.0]}, "phases": phases}
    (tmp_path / "scaling.json").write_text(json.dumps(told))
    found = held(tmp_path / "scaling.json")
    assert found["workers 1"] == {"measured": 22.0, "simulated": 22.0, "off": 0.0}
    assert found["workers 2"]["off"] > 0.15
    assert not found["within"]
