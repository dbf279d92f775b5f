"""What the page says when something is wrong: the library's own line, without where things lie on this machine."""

import re
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import gradio as gr

from intarsia.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/'\":,;()]+/)+([^\s/'\":,;()]*)")


def without_paths(text: str, *roots: Path) -> str:
    """A message in which files are called by their names alone.

    Args:
        text: of an error.
        roots: folders whose own path is cut off what lies in them, blanks in it or not.
    """
    for root in sorted((str(r) for path in roots for r in (path, path.resolve())), key=len, reverse=True):
        text = text.replace(f"{root}/", "").replace(root, Path(root).name)
    return _PATH.sub(lambda found: found[1] or "a folder", text)


def told(*roots: Path) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A handler whose errors are told in the page: bad input in its own words, any other by name alone.

    Args:
        roots: folders whose paths are not shown.
    """

    def decorated(handler: Callable[P, R]) -> Callable[P, R]:
        @wraps(handler)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return handler(*args, **kwargs)
            except InputError as error:
                _say(without_paths(str(error), *roots))
            except (gr.Error, KeyboardInterrupt):
                raise
            except OSError as error:
                traceback.print_exc(file=sys.stderr)
                _say(f"A file could not be read or written: {error.strerror or type(error).__name__}.")
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                _say(f"The studio failed here ({type(error).__name__}); nothing is lost. The terminal says more.")

        return called  # pyright: ignore[reportReturnType]  _say raises

    return decorated


def _say(text: str) -> NoReturn:  # gradio shows it as HTML
    raise gr.Error(escape(text), duration=None, print_exception=False)


def notice(text: str) -> None:
    """A short word in the page that something is done."""
    gr.Info(escape(text), duration=6)
