"""Every bad input of `bad_input` gets the line that docs/reliability.md says it does, and nothing is lost by it."""

from pathlib import Path

import pytest

from bad_input import BAD, PAGE, TITLE, Bad, furnish, row

DOCUMENTED = PAGE.read_text().partition(TITLE)[2].splitlines()
ALL = [bad for bads in BAD.values() for bad in bads]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("furnished"))


@pytest.mark.parametrize("bad", ALL, ids=lambda bad: bad.what)
def test_bad_input_is_one_documented_line_and_nothing_is_lost(bad: Bad, furnished: Path) -> None:
    assert row(bad, furnished) in DOCUMENTED


def test_nothing_is_documented_that_is_not_tried() -> None:
    rows = [line for line in DOCUMENTED if line.startswith("- ")]
    assert [line.split("**: ")[0] for line in rows] == [f"- **{bad.what}" for bad in ALL]
