"""Pages of the site that are written elsewhere: README.md and its like, and a page per folder from its docstrings.

mkdocs calls ``on_config``, ``on_files`` and ``on_page_markdown``. Links between Markdown files are written as the
repository has them, so that they work there; here they are turned to where the same text stands on the site.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import intarsia

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "intarsia"
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "pretraining/README.md": "pretraining.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE",
}
"""A file of the repository -> what it is on the site."""


def folders() -> list[str]:
    """The folders of the package that hold modules, by name; ``''`` is the package itself."""
    return ["", *sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))]


def reference(folder: str) -> str:
    """The page of a folder: its own docstring, then a section per file, those of folders inside it last."""
    name = f"intarsia.{folder}" if folder else "intarsia"
    found = (PACKAGE / folder).glob("**/*.py" if folder else "*.py")
    parts = [path.relative_to(PACKAGE / folder).with_suffix("").parts for path in found]
    alone = [
        ".".join(path) for path in sorted(parts, key=lambda path: (len(path), path)) if not path[-1].startswith("__")
    ]
    blocks = [f"# {folder or name}", f"::: {name}\n    options:\n      show_root_heading: false\n      members: false"]
    if not folder:
        blocks += ["`import intarsia` offers:", names()]
    blocks += [f"::: {name}.{file}\n    options:\n      heading_level: 2" for file in alone]
    return "\n\n".join(blocks) + "\n"


def names() -> str:
    """The public names, each a link to where it is described."""
    return "\n".join(f"- [`{name}`][intarsia.{intarsia._WHERE[name]}.{name}]" for name in sorted(intarsia.__all__))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the reference into the navigation."""
    assert config.nav is not None
    for entry in config.nav:
        if "API reference" in entry:
            entry["API reference"] = [{folder or "intarsia": f"api/{folder or 'intarsia'}.md"} for folder in folders()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is written elsewhere."""
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for folder in folders():
        files.append(File.generated(config, f"api/{folder or 'intarsia'}.md", content=reference(folder)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository to those of the site."""
    here = page.file.src_uri
    origin = next((path for path, target in ELSEWHERE.items() if target == here), f"docs/{here}")

    def turned(link: re.Match[str]) -> str:
        address, hash_, anchor = link[2].partition("#")
        if not address or ":" in address:
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), address))
        target = ELSEWHERE.get(path) or path.removeprefix("docs/")
        return f"{link[1]}{os.path.relpath(target, posixpath.dirname(here) or '.')}{hash_}{anchor})"

    unbroken = markdown.replace(" ± ", "\u00a0±\u00a0")  # a figure and its spread stay on one line
    return re.sub(r"(\]\()([^)\s]+)\)", turned, unbroken)
