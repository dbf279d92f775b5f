"""The guard before timm: it declares what torchvision misses, only that, and passes any other error on."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from intarsia.backbones import torchvision_guard

pytestmark = pytest.mark.slow


def python(code: str) -> str:
    """Run in a fresh interpreter with warnings as errors."""
    command, environment = [sys.executable, "-W", "error", "-c", code], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_imports_in_a_fresh_process() -> None:
    code = """
from intarsia.backbones.torchvision_guard import import_torchvision
import_torchvision()
import timm, torchvision
print(timm.is_model('test_vit'), torchvision.__name__)
"""
    assert python(code) == "True torchvision\n"


GUARDED = ("timm", "torchvision", "transformers", "accelerate", "open_clip")
"""Packages that import torchvision, or are it."""


def imports(tree: ast.AST) -> list[ast.stmt]:
    """Of guarded packages."""
    found: list[ast.stmt] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        if any(name.partition(".")[0] in GUARDED for name in names):
            found.append(node)
    return found


def test_every_import_of_timm_comes_right_after_the_guard() -> None:
    """In the package: inside a function, so that nothing loads torchvision before it is needed, and after the call."""
    package, guard = Path(torchvision_guard.__file__).parents[1], ast.dump(ast.parse("import_torchvision()").body[0])
    seen = 0
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        guarded = imports(tree)
        bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Try)]
        for node in guarded:
            (body,) = [body for body in bodies if node in body]
            before = body[: body.index(node)]
            while before and isinstance(before[-1], ast.Import | ast.ImportFrom):
                before.pop()
            assert before, f"{path}:{node.lineno}"
            assert ast.dump(before[-1]) == guard, f"{path}:{node.lineno}"
            seen += 1
    assert seen >= 3


def test_nothing_loads_torchvision_before_a_network_of_timm_is_made() -> None:
    code = """
import sys
import intarsia
from intarsia import *
import intarsia.cli.pool, intarsia.cli.study, intarsia.study.compare
print(sorted({"timm", "torchvision", "torch._dynamo"} & set(sys.modules)))
Backbone.load()
print(sorted({"timm", "torchvision"} & set(sys.modules)))
"""
    assert python(code).splitlines() == ["[]", "['timm', 'torchvision']"]


def test_a_torchvision_that_imports_is_left_alone() -> None:
    """Nothing is declared, nothing already imported is thrown away."""
    code = """
import sys, types
fine = sys.modules["torchvision"] = types.ModuleType("torchvision")
from intarsia.backbones import torchvision_guard
print(torchvision_guard._declared == [], sys.modules["torchvision"] is fine)
"""
    assert python(code) == "True True\n"


class Importing:
    """Stands in for ``importlib.import_module``: raises the given errors one by one, then succeeds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0
        monkeypatch.setattr(importlib, "import_module", self)
        self.declared: list[str] = []
        monkeypatch.setattr(torchvision_guard, "_declared", [])
        monkeypatch.setattr(torch.library, "Library", self.library)

    def __call__(self, name: str) -> ModuleType:
        assert name == "torchvision"
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return ModuleType(name)

    def library(self, name: str, kind: str) -> "Importing":
        assert (name, kind) == ("torchvision", "FRAGMENT")
        return self

    def define(self, schema: str) -> None:
        self.declared.append(schema.partition("(")[0])


def missing(operator: str) -> RuntimeError:
    return RuntimeError(f"operator torchvision::{operator} does not exist")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'torchvision'"),
        RuntimeError("Couldn't load custom C++ ops"),
        missing("roi_align"),
        RuntimeError("operator other::nms does not exist"),
        ValueError("operator torchvision::nms does not exist"),
    ],
    ids=str,
)
def test_other_errors_are_passed_on_and_nothing_is_declared(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = Importing(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        torchvision_guard.import_torchvision()
    assert caught.value is error
    assert importing.calls == 1
    assert importing.declared == []


@pytest.mark.parametrize("operators", [(), ("nms",), ("qnms",), ("nms", "qnms"), ("qnms", "nms")], ids=str)
def test_only_what_is_missing_is_declared(operators: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    importing = Importing(monkeypatch, *map(missing, operators))
    monkeypatch.setitem(sys.modules, "torchvision.half_imported", ModuleType("torchvision.half_imported"))
    monkeypatch.setitem(sys.modules, "torchvisionary", ModuleType("torchvisionary"))
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    try:
        torchvision_guard.import_torchvision()
        assert importing.declared == list(operators)
        assert importing.calls == len(operators) + 1
        assert ("torchvision.half_imported" in sys.modules) == (operators == ())
        assert "torchvisionary" in sys.modules
    finally:
        sys.modules.update(kept)


def test_an_operator_missing_for_ever_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = Importing(monkeypatch, *[missing("nms")] * 10)
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    try:
        with pytest.raises(RuntimeError, match="still misses operators that were declared"):
            torchvision_guard.import_torchvision()
    finally:
        sys.modules.update(kept)
    assert importing.calls == 3
