"""Docstrings are plain text; this makes them safe to read as Markdown, for the API reference only."""

import re

from griffe import Extension, Object

CODE = re.compile(r"(``.*?``|`.*?`)")
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Example|Attributes):$", re.MULTILINE)


class PlainText(Extension):
    """``<name>`` is no tag, ``a[i][j]`` is no link, and ``Example:`` is a block of code."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Escape a docstring, once it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)


def escaped(text: str) -> str:
    """As Markdown that shows the same text; examples and indented blocks are code already."""
    sections = SECTION.search(text) is not None
    lines = [line if is_code(line, sections) else escaped_line(line) for line in text.splitlines()]
    return "\n".join("Examples:" if line == "Example:" else line for line in lines)


def is_code(line: str, sections: bool) -> bool:
    """A line of an example, or of an indented block; in a docstring with sections, indented lines belong to these."""
    return line.lstrip().startswith((">>>", "...")) or (line.startswith("    ") and not sections)


def escaped_line(line: str) -> str:
    """Outside of backticks."""
    parts = CODE.split(line)
    return "".join(
        part if part.startswith("`") else re.sub(r"\](\s?)\[", r"]\1&#91;", re.sub(r"<(?=[A-Za-z/])", "&lt;", part))
        for part in parts
    )
