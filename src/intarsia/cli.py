"""The command line: what was typed -> a verb -> its result, printed."""

import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tyro

from intarsia.config import AdapterKind, Method, Training, paper, recommended
from intarsia.errors import InputError
from intarsia.options import Source
from intarsia.pool import Pool
from intarsia.presets import BACKBONE, preset
from intarsia.studies import Compare, Presets, Report
from intarsia.verbs import Compose, Diagnose, Evaluate, Learn, Ls, Predict, Unlearn

VERBS = {
    "learn": Learn,
    "ls": Ls,
    "evaluate": Evaluate,
    "predict": Predict,
    "compose": Compose,
    "unlearn": Unlearn,
    "diagnose": Diagnose,
    "compare": Compare,
    "report": Report,
    "presets": Presets,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input prints one line and exits with code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        verb = _parse(arguments)
        result = verb.run()
        if verb.json:
            print(json.dumps(result, indent=1))
    except InputError as error:
        print(f"intarsia: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output, say ``head``, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("intarsia: stopped; the tasks already learned are in the pool", file=sys.stderr)
        raise SystemExit(130) from None


def _parse(arguments: list[str]) -> Any:
    description = (
        "Modules for pre-trained vision transformers: learn classes task by task, compose, specialize, unlearn."
    )
    if arguments[:1] == ["learn"]:
        default = _settings_of_pool(arguments) if "--add" in arguments else _recommended(arguments)
        return tyro.cli(Learn, args=arguments[1:], default=default, prog="intarsia learn")
    return tyro.extras.subcommand_cli_from_dict(VERBS, args=arguments, prog="intarsia", description=description)


def _flag(arguments: list[str], name: str) -> str | None:
    """The value of ``--name value`` or ``--name=value``, before anything is parsed."""
    for position, argument in enumerate(arguments):
        key, _, value = argument.partition("=")
        if key == f"--{name}" and (value or arguments[position + 1 :]):
            return value or arguments[position + 1]
    return None


def _recommended(arguments: list[str]) -> Learn:
    """What ``learn`` starts from: the tool's own settings for the method and adapter asked for."""
    name = _flag(arguments, "preset")
    if name is not None:
        return _of_preset(name)
    method, adapter = _flag(arguments, "method"), _flag(arguments, "adapter")
    chosen: Method = "iel" if method == "iel" else "ita"
    kind: AdapterKind = "full" if adapter == "full" else "ia3" if adapter == "ia3" else "lora"
    if "--paper" in arguments:
        return _with(chosen, kind, *paper(chosen), paper=True)
    return Learn(method=chosen, adapter=kind, training=recommended(chosen, kind)[1])


def _of_preset(name: str) -> Learn:
    """What ``learn --preset`` starts from: the cell's backbone, split and settings; flags still win."""
    cell = preset(name)
    source = Source(tasks=cell.data.tasks)
    start = _with(cell.method, cell.adapter, cell.strength, cell.training, preset=name)
    return replace(start, backbone=BACKBONE, source=source, out=Path(f"runs/{name}"))


def _with(method: Method, adapter: AdapterKind, strength: float, training: Training, **flags: Any) -> Learn:
    name = "alpha" if method == "ita" else "beta"
    return Learn(method=method, adapter=adapter, training=training, **{name: strength}, **flags)


def _settings_of_pool(arguments: list[str]) -> Learn:
    """What ``learn --add`` starts from: the pool's own settings; flags on the command line still win."""
    out = _flag(arguments, "out")
    pool = Pool.open(Path(out) if out is not None else Learn.out)
    settings = dict(pool.index.settings)
    method, strength = settings.pop("method"), settings.pop("strength")
    known = {f.name for f in fields(Training)}
    return _with(
        method,
        pool.index.adapter["kind"],
        strength,
        Training(**{k: v for k, v in settings.items() if k in known}),
        out=pool.path,
        add=True,
        backbone=pool.index.backbone["name"],
        targets=tuple(pool.index.backbone["targets"]),
        rank=pool.index.adapter.get("rank", 16),
    )


if __name__ == "__main__":
    main()
