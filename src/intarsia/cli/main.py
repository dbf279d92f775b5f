"""The command line: what was typed -> a verb -> its result, printed.

A verb's module is loaded when the verb is asked for, and torch when it runs: help and a wrong flag take no time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from intarsia.errors import InputError, LostProcessError
from intarsia.parallel import asked_for

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

VERBS = {
    "learn": ("learn", "Learn"),
    "ls": ("manage", "Ls"),
    "verify": ("manage", "Verify"),
    "evaluate": ("pool", "Evaluate"),
    "predict": ("pool", "Predict"),
    "compose": ("pool", "Compose"),
    "export": ("exchange.outward", "Export"),
    "import": ("exchange.inward", "Import"),
    "push": ("exchange.hub", "Push"),
    "pull": ("exchange.hub", "Pull"),
    "unlearn": ("pool", "Unlearn"),
    "rename": ("manage", "Rename"),
    "remove": ("manage", "Remove"),
    "diagnose": ("study", "Diagnose"),
    "compare": ("study", "Compare"),
    "report": ("study", "Report"),
    "studio": ("pages.studio", "Studio"),
    "presets": ("study", "Presets"),
}
"""Verb -> the module here that has it, and its class."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end."""


def _terminate(*_: object) -> None:
    raise Terminated


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Ctrl-C. While modules are loaded the process ends at once: some of them take the exception for one of theirs."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"intarsia: stopped\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _no_memory(error: RuntimeError) -> bool:
    """Torch says so in words where it is the system's memory."""
    return type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input prints one line and exits with code 2."""
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        _say(error)
        raise SystemExit(2) from None
    except LostProcessError as lost:
        if not lost.told:
            print(f"intarsia: {lost}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output, say ``head``, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # where nobody closer to it knew better
        remedy = ": allow it, and run again" if isinstance(error, PermissionError) else ""
        print(f"intarsia: {error.filename or 'a file'}: {error.strerror or error}{remedy}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _no_memory(error):
            raise
        print(f"intarsia: out of memory ({error}): use a smaller --batch-size, or fewer images", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        _say(f"stopped{f': {stop}' if str(stop) else ''}")
        raise SystemExit(143 if isinstance(stop, Terminated) else 130) from None


def _say(what: object) -> None:
    """One line, of one process: of those that torchrun starts together, the first."""
    if asked_for()[0] == 0:
        print(f"intarsia: {what}", file=sys.stderr)


def _run(arguments: list[str]) -> None:
    import json
    from io import TextIOWrapper

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a letter that the terminal has not is no reason to stop
            stream.reconfigure(errors="replace")
    verb = parsed(arguments)
    rank, count = asked_for()
    if count > 1 and arguments[0] != "learn":
        raise InputError(f"{arguments[0]} runs in one process: leave torchrun out, which is for learn")
    result = verb.run()
    if verb.json and rank == 0:
        print(json.dumps(result, indent=1))


def parsed(arguments: list[str]) -> Any:
    """The verb that was typed, with its flags; help and version are printed, and exit.

    Raises:
        InputError: a verb or a flag that there is not, or a value that is none.
    """
    from intarsia.cli.flags import parse

    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "help"):
        print(overview())
        raise SystemExit(0)
    if first == "--version":
        from intarsia import __version__

        print(f"intarsia {__version__}")
        raise SystemExit(0)
    if first not in VERBS:
        from difflib import get_close_matches

        near = get_close_matches(first, VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}; see `intarsia --help`"
        raise InputError(f"there is no verb {first!r}: {hint}" if first else f"no verb is given: {hint}")
    return parse(verb_of(first), arguments[1:], f"intarsia {first}")


def verb_of(name: str) -> type:
    """The class of a verb."""
    from importlib import import_module

    module, kind = VERBS[name]
    return getattr(import_module(f"intarsia.cli.{module}"), kind)


def overview() -> str:
    """The verbs, a line each."""
    from inspect import getdoc
    from textwrap import wrap

    from intarsia.cli.flags import width

    about = "Modules for pre-trained vision transformers: learn classes task by task, compose, specialize, unlearn."
    lines = ["usage: intarsia VERB [flags]", "", *wrap(about, width()), ""]
    for name in VERBS:
        first = (getdoc(verb_of(name)) or "").partition("\n\n")[0]
        lines += wrap(f"  {name:<9} {first}", width(), subsequent_indent=" " * 12)
    more = "`intarsia VERB --help` names its flags; every verb has --json. `intarsia --version` says the version."
    return "\n".join([*lines, "", *wrap(more, width())])


if __name__ == "__main__":
    main()
