"""The command line: what was typed -> a verb -> its result, printed."""

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

from intarsia.adapters.records import AdapterKind
from intarsia.cli.learn import Learn
from intarsia.cli.manage import Ls, Remove, Rename, Verify
from intarsia.cli.pool import Compose, Evaluate, Predict, Unlearn
from intarsia.cli.study import Compare, Diagnose, Presets, Report
from intarsia.errors import InputError
from intarsia.pool import Pool
from intarsia.regularizers.records import Method
from intarsia.store.index import INDEX
from intarsia.study.choice import Source
from intarsia.study.paper import BACKBONE, preset
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.recommended import paper, recommended
from intarsia.training.settings import Settings

VERBS = {
    "learn": Learn,
    "ls": Ls,
    "verify": Verify,
    "evaluate": Evaluate,
    "predict": Predict,
    "compose": Compose,
    "unlearn": Unlearn,
    "rename": Rename,
    "remove": Remove,
    "diagnose": Diagnose,
    "compare": Compare,
    "report": Report,
    "presets": Presets,
}


class Terminated(KeyboardInterrupt):
    """The process was asked to end."""


def _terminate(*_: object) -> None:
    raise Terminated


def _no_memory(error: RuntimeError) -> bool:
    """Torch says so in words where it is the system's memory."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input prints one line and exits with code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
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
    except OSError as error:  # where nobody closer to it knew better
        print(f"intarsia: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _no_memory(error):
            raise
        print(f"intarsia: out of memory ({error}): use a smaller --batch-size, or fewer images", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        print(f"intarsia: stopped{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        raise SystemExit(143 if isinstance(stop, Terminated) else 130) from None


def _parse(arguments: list[str]) -> Any:
    description = (
        "Modules for pre-trained vision transformers: learn classes task by task, compose, specialize, unlearn."
    )
    if arguments[:1] == ["learn"]:
        default = _learn(arguments)
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


def _with(method: Method, adapter: AdapterKind, strength: float, training: Settings, **flags: Any) -> Learn:
    name = "alpha" if method == "ita" else "beta"
    return Learn(method=method, adapter=adapter, training=training, **{name: strength}, **flags)


def _learn(arguments: list[str]) -> Learn:
    """What ``learn`` starts from; flags on the command line still win."""
    out = Path(_flag(arguments, "out") or Learn.out)
    if "--resume" in arguments:
        return _settings_of_run(out)
    if "--add" in arguments:
        index = Pool.open(out).index
        return _as_it_was(index.settings, index.adapter, index.backbone, out=out, add=True)
    return _recommended(arguments)


def _settings_of_run(out: Path) -> Learn:
    """What ``learn --resume`` starts from: what the run that was stopped was asked for; the pool's, if none was."""
    checkpoint = Checkpoint.of(out)
    if not checkpoint.exists and (out / INDEX).exists():
        index = Pool.open(out).index
        return _as_it_was(index.settings, index.adapter, index.backbone, out=out, resume=True)
    asked = checkpoint.asked()
    start = _as_it_was(asked["settings"], asked["adapter"], asked["backbone"], out=out, resume=True)
    return replace(start, keep_fishers=asked["keep_fishers"])


def _as_it_was(
    settings: Mapping[str, Any], adapter: Mapping[str, Any], backbone: Mapping[str, Any], **flags: Any
) -> Learn:
    return _with(
        settings["method"],
        adapter["kind"],
        settings["strength"],
        Settings.from_record(settings),
        backbone=backbone["name"],
        targets=tuple(backbone["targets"]),
        rank=adapter.get("rank", 16),
        **flags,
    )


if __name__ == "__main__":
    main()
