"""A verb's dataclass as flags: what is typed -> the dataclass, and its help. Torch is not needed for either.

    field: T | None = None            --field VALUE; None if it is not given
    field: bool                       --field, --no-field
    field: tuple[T, ...]              --field a b --field c: values one by one, the flag as often as you like
    field: Positional[T]              an argument without a flag; the last may be a tuple
    group: Dataclass                  --group.field, or --field where its name is one of ``FLAT``
    group: Inline[Dataclass]          --field

Names have dashes for underscores. A field's help is its docstring.
"""

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from shutil import get_terminal_size
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from intarsia.errors import InputError

T = TypeVar("T")
Positional = Annotated[T, "positional"]
Inline = Annotated[T, "inline"]


class Help(str):
    """Help of a field without a docstring: ``Annotated[bool, Help("...")]``."""


Json = Annotated[bool, Help("Print JSON instead of a table.")]

FLAT = frozenset(
    "data tasks split max_per_class only augment skip_broken cache epochs lr batch_size seed "  # noqa: SIM905
    "precision accumulate grad_checkpointing".split()
)
"""Fields of groups that are for every day: their flags have no prefix."""


RENAMED = {"alpha": "strength", "beta": "strength", "top-k": "top", "dtype": "precision"}
"""Flags that there were -> those that there are. One that has only moved into a group is found by its last name."""
WIDTH = 100
"""Letters in a line of help, at most; a narrow terminal has fewer."""
EXPECTED = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Flag:
    """A flag, or an argument without one.

    Args:
        name: ``--training.lr``; of an argument, its name.
        path: fields that lead to its value, from the verb's dataclass.
        group: of the help; empty for those without a prefix.
        kind: of one value.
        choices: that a value may have; any if empty.
        many: it may have several values.
        required: it must be given.
        owner: the class whose field it is.
        about: its help, if the field has no docstring.
    """

    name: str
    path: tuple[str, ...]
    group: str
    kind: type
    choices: tuple[str, ...]
    many: bool
    required: bool
    owner: type
    about: str = ""

    @property
    def positional(self) -> bool:
        """It has no flag."""
        return not self.name.startswith("--")

    @property
    def off(self) -> str:
        """The flag that says no."""
        stem, dot, last = self.name.removeprefix("--").rpartition(".")
        return f"--{stem}{dot}no-{last}"

    def value(self, text: str) -> Any:
        """What was typed, as its kind.

        Raises:
            InputError: it is not one.
        """
        if self.choices and text not in self.choices:
            near = get_close_matches(text, self.choices, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{self.name} {text!r}: expected {' or '.join(self.choices)}{hint}")
        try:
            return self.kind(text)
        except ValueError:
            raise InputError(f"{self.name} {text!r}: expected {EXPECTED.get(self.kind, self.kind.__name__)}") from None

    def help(self) -> str:
        """Its docstring."""
        return docstrings(self.owner).get(self.path[-1], self.about)

    def usage(self) -> str:
        """How it is written."""
        if self.positional:
            return f"{self.name.upper()}{' ...' if self.many else ''}"
        if self.kind is bool:
            return self.name
        word = "{" + ",".join(self.choices) + "}" if self.choices else {int: "N", float: "X"}.get(self.kind, "")
        word = word or self.path[-1].rpartition("_")[2].upper().removesuffix("S" if self.many else "")
        return f"{self.name} {word}{' ...' if self.many else ''}"


def flags(of: type, path: tuple[str, ...] = (), prefix: str = "") -> Iterator[Flag]:
    """All flags of a dataclass, in the order of its fields."""
    hints = get_type_hints(of, include_extras=True)
    for field in fields(of):
        kind, marks = _unmarked(hints[field.name])
        here = (*path, field.name)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            group = prefix if "inline" in marks else f"{prefix}{_dashed(field.name)}."
            yield from flags(kind, here, group)
            continue
        many = get_origin(kind) is tuple
        if many:
            kind = get_args(kind)[0]
        choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
        group = "" if field.name in FLAT else prefix
        name = _dashed(field.name)
        name = name if "positional" in marks else f"--{group}{name}"
        about = next((mark for mark in marks if isinstance(mark, Help)), "")
        kind = str if choices else kind
        yield Flag(name, here, group.rstrip("."), kind, choices, many, _required(field), of, about)


def parse(verb: type[T], arguments: Sequence[str], prog: str) -> T:
    """The dataclass that was typed; ``--help`` prints the help and exits.

    Raises:
        InputError: a flag that there is not, or a value that is none.
    """
    known = list(flags(verb))
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    for flag in known:
        if flag.positional:
            continue
        if flag.kind is bool:
            parser.add_argument(flag.name, dest=flag.name, action="store_const", const=True)
            parser.add_argument(flag.off, dest=flag.name, action="store_const", const=False)
        elif flag.many:
            parser.add_argument(flag.name, dest=flag.name, action="extend", nargs="+", type=flag.value)
        else:
            parser.add_argument(flag.name, dest=flag.name, type=flag.value)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    typed, rest = parser.parse_known_args(list(arguments[:end]))
    if typed.help:
        print(help_of(verb, prog))
        raise SystemExit(0)
    for text in rest:
        if text.startswith("--") or (text.startswith("-") and len(text) == 2):
            raise InputError(f"{prog}: {_unknown(text.partition('=')[0], known)}")
    given = {flag.path: found for flag in known if (found := getattr(typed, flag.name, None)) is not None}
    given |= _placed([*rest, *arguments[end + 1 :]], [flag for flag in known if flag.positional], prog)
    for flag in known:
        if flag.required and flag.path not in given:
            raise InputError(f"{prog}: {flag.name} is missing; see `{prog} --help`")
    return _made(verb, {path: tuple(v) if isinstance(v, list) else v for path, v in given.items()})


def help_of(verb: type, prog: str) -> str:
    """Flags without a prefix with their docstrings, those in groups a line each."""
    known = list(flags(verb))
    places = [flag for flag in known if flag.positional]
    usage = " ".join(flag.usage() if flag.required else f"[{flag.usage()}]" for flag in places)
    lines = [f"usage: {prog} {usage}{' ' if usage else ''}[flags]", ""]
    lines += textwrap.wrap(" ".join((inspect.getdoc(verb) or "").split()), width())
    flat = [flag for flag in known if not flag.group]
    lines += ["", *_entries([(flag.usage(), flag.help()) for flag in flat], None)]
    for group in dict.fromkeys(flag.group for flag in known if flag.group):
        of = [flag for flag in known if flag.group == group]
        lines += ["", f"--{group}.*"]
        lines += _entries([(flag.usage().removeprefix(f"--{group}"), flag.help()) for flag in of], 2)
    lines += ["", "A flag without a value is switched off by --no-<flag> or --<group>.no-<flag>."]
    return "\n".join(lines)


def width() -> int:
    """Letters in a line of what is printed here."""
    return max(60, min(WIDTH, get_terminal_size((WIDTH, 24)).columns))


def docstrings(of: type) -> Mapping[str, str]:
    """Field -> the string that stands below it, in one line; those of a parent too."""
    found: dict[str, str] = {}
    for parent in reversed([c for c in of.__mro__ if is_dataclass(c)]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                assert isinstance(text.value, ast.Constant)
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


class _Parser(argparse.ArgumentParser):
    """One whose errors are ours, and to which -1e30 is a number, not a flag."""

    def __init__(self, **of: Any) -> None:
        super().__init__(**of)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")

    def error(self, message: str) -> NoReturn:
        """Say what argparse says, as one line."""
        raise InputError(f"{self.prog}: {message.removeprefix('argument ')}; see `{self.prog} --help`")


def _unmarked(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """A type without its marks and without None, and the marks."""
    marks: tuple[str, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        marks = tuple(extra for extra in extras if isinstance(extra, str))
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if all(get_origin(kind) is Literal for kind in kinds):
            return Literal[tuple(choice for kind in kinds for choice in get_args(kind))], marks
        (hint,) = kinds
    return hint, marks


def _required(field: "Field[Any]") -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _dashed(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _placed(texts: Sequence[str], places: Sequence[Flag], prog: str) -> dict[tuple[str, ...], Any]:
    """Arguments without a flag, by the path of the field each is for."""
    given: dict[tuple[str, ...], Any] = {}
    left = list(texts)
    for flag in places:
        if left:
            given[flag.path] = [flag.value(text) for text in left] if flag.many else flag.value(left[0])
            left = [] if flag.many else left[1:]
    if left:
        raise InputError(f"{prog}: {left[0]!r} is too much; see `{prog} --help`")
    return given


def _unknown(name: str, known: Sequence[Flag]) -> str:
    """A flag that there is not, in words: where it has gone, or what comes near."""
    names = {flag.name: flag.name for flag in known if not flag.positional}
    names |= {flag.off: flag.off for flag in known if flag.kind is bool}
    bare = name.lstrip("-").rpartition(".")[2]
    moved = [n for n in names if n.lstrip("-").rpartition(".")[2] == bare]
    if bare in RENAMED and f"--{RENAMED[bare]}" in names:
        moved = [f"--{RENAMED[bare]}"]
    if moved:
        return f"there is no flag {name}: it is {' or '.join(moved)}"
    near = get_close_matches(name, names, 1) or get_close_matches(bare, [n.rpartition(".")[2] for n in names], 1)
    full = [n for n in names if near and n.endswith(near[0])]
    return f"there is no flag {name}: did you mean {full[0]}?" if full else f"there is no flag {name}; see --help"


def _made(kind: type[T], given: Mapping[tuple[str, ...], Any]) -> T:
    """A dataclass of what is given by path; what is not has its default."""
    values: dict[str, Any] = {path[0]: value for path, value in given.items() if len(path) == 1}
    hints = get_type_hints(kind, include_extras=True)
    for name in dict.fromkeys(path[0] for path in given if len(path) > 1):
        inner = {path[1:]: value for path, value in given.items() if path[0] == name}
        values[name] = _made(_unmarked(hints[name])[0], inner)
    return kind(**values)


def _entries(rows: Sequence[tuple[str, str]], most: int | None) -> Iterator[str]:
    """Rows of two columns, the second of at most so many lines."""
    wide = min(max((len(left) for left, _ in rows), default=0), 32)
    for left, right in rows:
        room = width() - wide - 4
        text = textwrap.wrap(right, room, max_lines=most, placeholder=" ...") or [""]
        if len(left) > wide and most is None:
            yield f"  {left}"
            yield from (f"  {'':<{wide}}  {line}" for line in text)
            continue
        if len(left) > wide:
            text = textwrap.wrap(right, width() - len(left) - 4, max_lines=most, placeholder=" ...") or [""]
        yield f"  {left:<{wide}}  {text[0]}"
        yield from (f"  {'':<{wide}}  {line}" for line in text[1:])
