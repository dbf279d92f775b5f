"""Libraries that are optional, imported when they are needed; and a folder that is written whole or not at all."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.errors import not_installed
from intarsia.store.files import flush, refuse_full, writing


def library(name: str, extra: str = "export", what: str = "the export") -> Any:
    """A library, imported; ``torchvision`` first, which those of images import.

    Args:
        name: of the module.
        extra: of this package that brings it.
        what: needs it.

    Raises:
        InputError: it is not installed.
    """
    try:
        import_torchvision()
        with quiet():
            found = import_module(name)
    except ImportError as error:
        raise not_installed(what, name, extra, error) from error
    if name == "transformers":
        found.utils.logging.set_verbosity_error()
        found.utils.logging.disable_progress_bar()
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that libraries have of each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, beside the one named; it takes its name when the block ends, and is gone if that fails.

    Raises:
        InputError: the one named exists and is not empty, or it cannot be written.
    """
    refuse_full(folder)
    folder = folder.resolve()
    fresh = folder.with_name(f".{folder.name}.new")
    made = [path for path in folder.parents if not path.exists()]
    try:
        with writing(folder):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        yield fresh
        with writing(folder):
            if folder.exists():
                folder.rmdir()
            fresh.rename(folder)
            flush(folder.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
