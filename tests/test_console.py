"""What a person sees: no number is broken, long notes wrap, names are as they are, phases are told once."""

from io import StringIO

import pytest
from rich.console import Console

import intarsia.console as shown_on
from intarsia.console import facts, shown, table

COLUMNS = ("method", "FA %", "FF", "Task-IL %", "average %", "minutes", "MiB", "kept", "images")
ROWS = [("ita", 44.81, None, 76.4, 50.1, "1.2+3.4", "1024", "0.12 M", 0), ("[red] x[/].png :smile:", 1.0, *["7"] * 7)]
NOTE = "of measures " * 21


def seen(monkeypatch: pytest.MonkeyPatch, width: int, terminal: bool) -> list[str]:
    """Lines of a table on a terminal of that width, or in a file."""
    out = Console(file=StringIO(), width=width, force_terminal=terminal, color_system=None, markup=False, emoji=False)
    monkeypatch.setattr(shown_on, "OUT", out)
    table("[a] comparison", COLUMNS, ROWS, NOTE)
    assert isinstance(out.file, StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_number_is_broken_and_names_stand_as_they_are(
    monkeypatch: pytest.MonkeyPatch, width: int, terminal: bool
) -> None:
    lines = seen(monkeypatch, width, terminal)
    assert lines[0] == "[a] comparison"
    for text in ("44.8", "76.4", "50.1", "1.2+3.4", "1024", "0.12 M", "[red] x[/].png :smile:"):
        assert any(text in line for line in lines), (text, lines)
    if terminal and width >= 60:
        assert max(map(len, lines)) <= width
    notes = [line for line in lines if line.startswith("of measures") or line.startswith("measures")]
    assert " ".join(notes).split() == NOTE.split()
    assert max(map(len, notes)) <= max(width, len("measures"))


def test_a_table_too_wide_for_a_terminal_is_a_block_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = seen(monkeypatch, 60, terminal=True)
    assert "FA %       44.8" in lines
    assert "kept       0.12 M" in lines
    assert len([line for line in lines if line.startswith("method")]) == len(ROWS)


def test_facts_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    facts({"name": "[bold]x[/]", "numbers": {"a": 1}, "share": 0.25, "nothing": None})
    assert capsys.readouterr().out.splitlines() == [
        "name     [bold]x[/]",
        "numbers  a 1",
        "share    0.2",
        "nothing  -",
    ]


def test_a_phase_is_told_once_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(["[a]"]) as progress:
        for done in (1, 2, 3):
            progress("decoding", done, 3)
        for done in (1, 2):
            progress("[a]: training", done, 2)
    assert [line.rpartition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["decoding", "[a]: training"]


def test_bars_take_a_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Console(file=StringIO(), width=100, force_terminal=True, color_system=None, markup=False)
    monkeypatch.setattr(shown_on, "ERR", err)
    with shown(["x[/]"]) as progress:
        progress("x[/]: training", 1, 2)
    assert isinstance(err.file, StringIO)
    assert "x[/]: training" in err.file.getvalue()


def test_lines_say_how_long_what_they_saw_begin_took(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = StringIO(), iter((5.0, 7.5, 9.0))
    monkeypatch.setattr(shown_on, "ERR", Console(file=out, width=80))
    monkeypatch.setattr(shown_on.time, "monotonic", lambda: next(now))
    with shown() as progress:
        progress("birds: features", 4, 8)
        progress("birds: features", 8, 8)
        progress("fish: Fisher", 1, 1)  # by a worker, beside other phases
    assert out.getvalue() == "birds: features: 2.5 s\nfish: Fisher: done\n"
