"""The house in three figures: files in a folder, lines in a file, and arrows that run up.

    python benchmarks/robustness/house.py --json

A folder's ``__init__.py`` is not counted. Arrows are imports between the layers that pyproject.toml names for
import-linter, which holds them in CI; here they are counted and named.
"""

import ast
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "intarsia"


@dataclass(frozen=True)
class House:
    """Count, and name what is too large."""

    json: bool = False
    """Print JSON instead of lines."""


def layers() -> list[list[str]]:
    """The layers of pyproject.toml, the highest first; each of modules that may not import one another."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in found]


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "intarsia":
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "intarsia"}
    return found


def arrows_up(files: list[Path]) -> list[str]:
    """Imports of a layer above one's own, or beside it."""
    place = {name: level for level, names in enumerate(layers()) for name in names}

    def layer(module: str) -> str | None:
        return next((name for name in place if f"{module}.".startswith(f"{name}.")), None)

    found: list[str] = []
    for path in files:
        name = ".".join(("intarsia", *path.relative_to(PACKAGE).with_suffix("").parts))
        own = layer(name)
        if own is None:
            continue
        for target in sorted(imports(path)):
            other = layer(target)
            if other not in (None, own) and place[other] <= place[own]:
                found.append(f"{name} imports {target}")
    return found


def main(house: House) -> None:
    """Print the three figures."""
    import json  # noqa: PLC0415  the flag has its name

    files = sorted(PACKAGE.rglob("*.py"))
    counted = Counter(path.parent for path in files if path.name != "__init__.py")
    lines = {path: len(path.read_text().splitlines()) for path in files}
    up = arrows_up(files)
    figures = {
        "files_per_folder_max": max(counted.values()),
        "lines_per_file_max": max(lines.values()),
        "arrows_up": len(up),
    }
    if house.json:
        print(json.dumps(figures))
        return
    for folder, count in counted.most_common(3):
        print(f"{count:4} files in {folder.relative_to(ROOT)}")
    for path in sorted(lines, key=lambda each: -lines[each])[:5]:
        print(f"{lines[path]:4} lines in {path.relative_to(ROOT)}")
    print(f"{len(up):4} arrows up", *up, sep="\n     ")


if __name__ == "__main__":
    main(tyro.cli(House))
