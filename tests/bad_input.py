"""Bad inputs, made on the spot in a folder of their own; what the one line on each must say is in `test_bad_input`."""

import json
import os
import resource
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cases import contents, edit, permissions_hold, photographs
from hostile import FORGED, HARM, LIES, cut, flip, rehashed
from intarsia.cli.main import main
from intarsia.store.lock import one_writer

PHOTOS = "--data folder:photos"
MODEL = "--backbone timm/test_vit@weights.safetensors"
LEARN = f"learn {PHOTOS} {MODEL} --tasks 3 --epochs 1 --run.no-evaluate --out new"
SPLIT = f"learn {PHOTOS} {MODEL} --split split.json --out new"
ADD = "learn --add --out pool"
ADD_NEW = f"{ADD} {PHOTOS} --split split.json --run.no-evaluate"


ON_DEVICE = {
    "learn": LEARN,
    "dry-run": f"{LEARN} --run.dry-run",
    "evaluate": "evaluate pool",
    "predict": "predict pool photos/test/red/0.png",
    "unlearn": "unlearn pool task01",
    "diagnose": "diagnose pool",
    "report": "report pool",
    "compare": f"compare {PHOTOS} {MODEL} --methods frozen --out new",
    "verify a preset": "presets verify pool",
}
"""Verbs that have a device."""


@dataclass(frozen=True)
class Bad:
    """Something wrong with what a user gives."""

    what: str
    command: str
    """After ``intarsia``, in a folder that has what ``furnish`` puts there."""
    spoil: Callable[[], object] = lambda: None
    """Makes it wrong."""
    within: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)
    """What holds while the command runs."""
    begins: bool = False
    """Whether the run has begun by then: then its checkpoint is left, and nothing else."""


def furnish(root: Path) -> Path:
    """A folder with photos/, weights.safetensors and pool/, of three tasks."""
    photographs(root, train=3)
    with chdir(root), redirect_stdout(StringIO()):
        main(shlex.split(LEARN.replace("--out new", "--rank 2 --out pool")))
        main(shlex.split("compose pool --out composed"))
    return root


def said(bad: Bad) -> str:
    """Run a bad command in the current folder, which has been furnished; checks that nothing is lost by it.

    Returns:
        str: the one line on standard error that is not progress.
    """
    bad.spoil()
    out, err, before, code = StringIO(), StringIO(), seen(), None
    with bad.within(), redirect_stdout(out), redirect_stderr(err):
        try:
            main(shlex.split(bad.command))
        except SystemExit as stop:
            code = stop.code
    after = seen()
    assert code == 2, (code, err.getvalue())
    assert "Traceback" not in err.getvalue()
    *progress, line = err.getvalue().splitlines()
    assert line.startswith("intarsia: "), err.getvalue()
    assert not [told for told in progress if told.startswith("intarsia: ")], err.getvalue()
    new = {name for name in after if not (bad.begins and name.startswith("new/.run/"))} - set(before)
    assert not new, new
    assert {name: after.get(name) for name in before} == before
    return line.replace(str(Path.cwd()), "/somewhere")


def seen() -> dict[str, str]:
    """What lies in the current folder; links and holes are not read."""
    return contents(Path(), {"hole.json", "pipe.png"})


# What makes things wrong


def put(path: str, data: bytes | str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.encode() if isinstance(data, str) else data)


def split(text: object) -> Callable[[], None]:
    return lambda: put("split.json", text if isinstance(text, str) else json.dumps(text))


def adapter(**config: object) -> Callable[[], None]:
    """The configuration of a LoRA of PEFT, its weights a pickle."""

    def made() -> None:
        put("their/adapter_config.json", json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}))
        put("their/adapter_model.bin", b"\x80\x02.")

    return made


def hole(path: str) -> None:
    """A terabyte that takes no room."""
    with Path(path).open("wb") as file:
        file.truncate(10**12)


def image(data: Callable[[bytes], bytes]) -> Callable[[], None]:
    path = Path("photos/train/red/1.png")
    return lambda: put(str(path), data(path.read_bytes()))


def bomb() -> None:
    Image.new("1", (20_000, 20_000)).save("photos/train/red/1.png")


def renamed(to: str) -> Callable[[], None]:
    def spoil() -> None:
        for part in ("train", "test"):
            Path(f"photos/{part}/red").rename(f"photos/{part}/{to}")

    return spoil


def other_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], None]:
    def spoil() -> None:
        tensors = load_file("weights.safetensors")
        change(tensors)
        save_file(tensors, "weights.safetensors")

    return spoil


def harmed(path: str, harm: Callable[[Path], object]) -> Callable[[], object]:
    return lambda: harm(Path("pool") / path)


def lying(lie: str) -> Callable[[], None]:
    return lambda: edit(Path("pool/pool.json"), LIES[lie])


def forged(how: str) -> Callable[[], None]:
    name, make = FORGED[how]
    path = f"modules/task01/{name}.safetensors"
    return lambda: rehashed(Path("pool"), path, make(Path("pool") / path))


def led_out() -> None:
    Path("pool/modules/task01/head.safetensors").rename("elsewhere")
    Path("pool/modules/task01/head.safetensors").symlink_to(Path("elsewhere").resolve())


def new_class() -> None:
    for part in ("train", "test"):
        shutil.copytree(f"photos/{part}/red", f"photos/{part}/pink")
    split({"new": ["pink"]})()


def two_new_classes() -> None:
    """A task with a loss: that of one class alone is zero, and nothing moves."""
    new_class()
    for part in ("train", "test"):
        shutil.copytree(f"photos/{part}/blue", f"photos/{part}/violet")
    split({"new": ["pink", "violet"]})()


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file may be longer than so many bytes, as on a disk that is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


BAD: dict[str, list[Bad]] = {
    "Flags of `learn`": [
        Bad("an unknown backbone", f"{LEARN} --backbone vit_unknown"),
        Bad("a name that timm does not know", f"{LEARN} --backbone timm/vit_unheard_of"),
        Bad("weights that are not there", f"{LEARN} --backbone timm/test_vit@nowhere.safetensors"),
        Bad("weights of another model", f"{LEARN} --backbone timm/test_vit2@weights.safetensors"),
        Bad("weights that are a pickle", LEARN, lambda: put("weights.safetensors", b"\x80\x04cos\nsystem\n")),
        Bad("weights cut short", LEARN, lambda: cut(Path("weights.safetensors"))),
        Bad("targets that match nothing", f"{LEARN} --network.targets '*.nothing'"),
        Bad("a task that the stream does not have", f"{LEARN} --only warm"),
        Bad("more tasks than classes", f"{LEARN} --tasks 7"),
        Bad("a flag that there was", f"{LEARN} --beta 3"),
        Bad("a flag that there is not", f"{LEARN} --epoch 3"),
        Bad("two flags that bring settings of their own", f"{LEARN} --paper --preset cifar100-ita-lora"),
        Bad("a preset of another method", f"{LEARN} --preset cifar100-ita-lora --method iel"),
        Bad("a record that is not there", "learn --config nowhere.json --out new"),
        Bad("a record that is none", "learn --config pool/pool.json --out new"),
        Bad("a negative strength", f"{LEARN} --strength -1"),
        Bad("no epochs", f"{LEARN} --epochs 0"),
        Bad("rank 0", f"{LEARN} --rank 0"),
        Bad("a learning rate that is no number", f"{LEARN} --lr nan"),
        Bad("batches of one image", f"{LEARN} --batch-size 1"),
        Bad("an unknown device", f"{LEARN} --device abacus"),
        *(Bad(f"a device that is not here, to {v}", f"{c} --device meta") for v, c in ON_DEVICE.items()),
        Bad("an unknown preset", f"{LEARN} --preset cifar"),
        Bad("a folder that holds something else", LEARN.replace("--out new", "--out photos")),
        Bad("a folder inside a file", LEARN.replace("--out new", "--out weights.safetensors/new")),
        Bad("a pool, without `--add`", LEARN.replace("--out new", "--out pool")),
        Bad("`--add` to no pool", f"learn --add {PHOTOS} --out new"),
        Bad("`--add` of a task that is there", f"{ADD} {PHOTOS} --tasks 3"),
        Bad("`--add` of a class that is there", f"{ADD} {PHOTOS} --split split.json", split({"new": ["red"]})),
        Bad("`--add` with another adapter", f"{ADD} {PHOTOS} --adapter ia3"),
        Bad("`--add` on another backbone", f"{ADD} {PHOTOS} --backbone vit_sketch"),
        Bad("`--resume` where nothing was stopped", "learn --resume --out new"),
    ],
    "In and out": [
        Bad("an unknown format", "export pool --format zip --out new"),
        Bad("a composed model to export as adapters", "export composed --format peft --out new"),
        Bad("a folder to export to that is not empty", "export pool --format torch --out photos"),
        Bad("a task to export that is not there", "export pool --format timm --keep cars --out new"),
        Bad("a folder to push that holds no pool", "push photos maker/photos"),
        Bad(
            "a damaged model to push", "push composed maker/composed", lambda: flip(Path("composed/model.safetensors"))
        ),
        Bad("a repository whose name is none", "pull a/b/c --out new"),
        Bad("no images for an adapter", "import their --out new"),
        Bad("an adapter that is none", f"import photos {PHOTOS} --out new"),
        Bad("an adapter of another kind", f"import their {PHOTOS} --out new", adapter(peft_type="IA3")),
        Bad("an adapter whose weights are a pickle", f"import their {PHOTOS} --out new", adapter()),
    ],
    "Streams and splits": [
        Bad("an unknown stream", f"{LEARN} --data paintings"),
        Bad("a folder that is not there", f"{LEARN} --data folder:nowhere"),
        Bad("a folder with nothing in it", f"{LEARN} --data folder:empty", lambda: Path("empty").mkdir()),
        Bad("classes, and no test fraction", f"{LEARN} --data folder:photos/train"),
        Bad("a test fraction of 2", f"{LEARN} --data folder:photos/train --source.test-fraction 2"),
        Bad("test images, and a test fraction", f"{LEARN} --source.test-fraction 0.2"),
        Bad("a split, and a number of tasks", f"{LEARN} --split split.json", split({"a": ["red"]})),
        Bad("a split that is not there", SPLIT),
        Bad("a split that is not JSON", SPLIT, split("red, blue")),
        Bad("a split that is a list", SPLIT, split([["red"]])),
        Bad("a split nested without end", SPLIT, split("[" * 200_000)),
        Bad("a split of a terabyte", SPLIT.replace("split.json", "hole.json"), lambda: hole("hole.json")),
        Bad("a task twice in a split", SPLIT, split('{"a": ["red"], "a": ["blue"]}')),
        Bad("a class in two tasks", SPLIT, split({"a": ["red"], "b": ["red", "blue"]})),
        Bad("a class that is not there", SPLIT, split({"a": ["pink"]})),
        Bad("a task without classes", SPLIT, split({"a": []})),
        Bad("a task named ../a", SPLIT, split({"../a": ["red"]})),
        Bad("a task named with a line break", SPLIT, split({"a\nb": ["red"]})),
        Bad("a task named with a right-to-left mark", SPLIT, split({"a\u202eb": ["red"]})),
        Bad("a task named with 300 characters", SPLIT, split({"x" * 300: ["red"]})),
        Bad("a class folder named with a tab", LEARN, renamed("re\td")),
        Bad("a class folder named with a right-to-left mark", LEARN, renamed("re\u202ed")),
    ],
    "Images": [
        Bad("an image of zero bytes", LEARN, image(lambda data: b"")),
        Bad("a text under an image's name", LEARN, image(lambda data: b"not an image")),
        Bad("an image cut short", LEARN, image(lambda data: data[: len(data) // 2])),
        Bad("an image of 400 million pixels", LEARN, bomb),
        Bad("a file outside a class", LEARN, lambda: put("photos/train/loose.png", "notes")),
        Bad("a link in a loop", LEARN, lambda: Path("photos/train/red/loop.png").symlink_to("loop.png")),
        Bad("a pipe", LEARN, lambda: os.mkfifo("photos/train/red/pipe.png")),
        Bad("a class on one side only", LEARN, lambda: shutil.rmtree("photos/test/red")),
        Bad("a class without images", LEARN, lambda: [path.unlink() for path in Path("photos/test/red").iterdir()]),
        Bad("no image to predict", "predict pool"),
        Bad("an image to predict that is not there", "predict pool photos/no.png"),
        Bad("a text to predict", "predict pool notes.png", lambda: put("notes.png", "notes")),
    ],
    "Modules, weights and recipes": [
        Bad("no pool", "evaluate photos"),
        Bad("a task to keep that is not there", "evaluate pool --keep cars"),
        Bad("a task to drop that is not there", "evaluate pool --drop cars"),
        Bad("a task to unlearn that is not there", "unlearn pool cars"),
        Bad("`--keep` and `--weights`", "evaluate pool --keep task01 --weights task01=1"),
        Bad("`--answer` and `--keep`", "evaluate pool --answer task01 --keep task01 task02"),
        Bad("`--answer` and a merge rule", "evaluate pool --answer task01 --weights task01=1 --rule ties"),
        Bad("a task to answer that is not there", "evaluate pool --answer cars"),
        Bad("a weight that is not finite", "evaluate pool --weights task01=2 task02=nan"),
        Bad("a scale that is not finite", "evaluate pool --scale inf"),
        Bad("weights joined by a comma", "evaluate pool --weights task01=.5,task02=.5"),
        Bad("tasks joined by a comma", "evaluate pool --keep task01,task02"),
        Bad("a weight that is no number", "evaluate pool --weights task01=one"),
        Bad("a weight of a task that is not there", "evaluate pool --weights cars=1"),
        Bad("a merge rule with coefficients", "evaluate pool --weights task01=1 --rule ties"),
        Bad("Fishers that were not kept", "compose pool --rule fisher --out new"),
        Bad("every task dropped", "evaluate pool --drop task01 task02 task03"),
        Bad("a scale without negation", "unlearn pool task01 --scale 2"),
        Bad("a scale that is infinite", "unlearn pool task01 --mode negate --scale inf"),
        Bad("a folder to write to that is not empty", "compose pool --out photos"),
        Bad("`--keep` of a composed model", "predict composed photos/test/red/0.png --keep task01"),
        Bad(
            "a composed model that is damaged",
            "predict composed notes.png",
            lambda: flip(Path("composed/model.safetensors")),
        ),
        Bad("a class to rename that is not there", "rename pool pink rose"),
        Bad("a new name that another class has", "rename pool red blue"),
        Bad("a new name that is no name", "rename pool red ../rose"),
        Bad("a class to rename without a new name", "rename pool red"),
        Bad("a class of a composed model to rename", "rename composed red rose"),
        Bad("a task to remove that is not there", "remove pool cars"),
        Bad("a task to remove from no pool", "remove photos task01"),
        Bad("a task of a composed model to remove", "remove composed task01"),
        Bad("a task to remove while a run is stopped", "remove pool task01", lambda: put("pool/.run/run.json", "{}")),
        Bad("a composed model to diagnose", "diagnose composed"),
        Bad("a composed model to report on", "report composed"),
        Bad("a composed model to open in the studio", "studio composed"),
        Bad("a port that there is not", "studio pool --port 70000"),
        Bad("no image of a class in the studio", "studio pool --per-class 0"),
        Bad("a composed model to compose", "compose composed --out new"),
        Bad("an unknown method", f"compare {PHOTOS} {MODEL} --methods magic --out new"),
    ],
    "Pools that are damaged": [
        *(
            Bad(f"a module's tensors {how}", "evaluate pool", harmed("modules/task01/vector.safetensors", harm))
            for how, harm in HARM.items()
        ),
        Bad("a damaged file, to verify", "verify pool", harmed("modules/task02/card.json", flip)),
        Bad("a damaged Fisher, to repair", "verify pool --repair", harmed("fisher-3.safetensors", flip)),
        Bad("a damaged Fisher, to add to", ADD_NEW, lambda: (flip(Path("pool/fisher-3.safetensors")), new_class())),
        Bad("a newer format", "ls pool", lambda: edit(Path("pool/pool.json"), lambda r: r.update(format=99))),
        Bad("an older format", "ls pool", lambda: edit(Path("pool/pool.json"), lambda r: r.update(format=1))),
        Bad("an index of zero bytes", "ls pool", lambda: put("pool/pool.json", "")),
        Bad("an index nested without end", "ls pool", lambda: put("pool/pool.json", "[" * 200_000)),
        Bad("an index with a key twice", "ls pool", lambda: put("pool/pool.json", '{"format": 5, "format": 5}')),
        Bad("a link that leads out of the pool", "evaluate pool", led_out),
        Bad("another backbone under the same name", "evaluate pool", other_weights(lambda t: t["norm.bias"].add_(1))),
    ],
    "Pools that lie": [
        *(Bad(f"an index with {lie}", "ls pool", lying(lie)) for lie in LIES),
        *(Bad(f"a file, its hash right, with {how}", "evaluate pool", forged(how)) for how in FORGED),
    ],
    "Numbers and limits": [
        Bad("a learning rate that makes the loss infinite", f"{LEARN} --lr 1e30 --training.warmup 0 --epochs 3"),
        Bad(
            "a regularizer that diverges",
            ADD_NEW + " --training.step decoupled --strength 1e30 --epochs 9",
            two_new_classes,
        ),
        Bad("weights that are not finite", LEARN, other_weights(lambda t: t["norm.bias"].fill_(float("nan")))),
        Bad("another process that writes", ADD + f" {PHOTOS}", within=lambda: one_writer(Path("pool"))),
        Bad(
            "a pool that may not be written",
            ADD_NEW,
            lambda: (new_class(), Path("pool").chmod(0o500)),
            permissions_hold,
        ),
        Bad("a pool that may not be read", "ls pool", lambda: Path("pool").chmod(0), permissions_hold),
        Bad(
            "a pool to predict with that may not be read",
            "predict pool x.png",
            lambda: Path("pool").chmod(0),
            permissions_hold,
        ),
        Bad(
            "a module that may not be read",
            "evaluate pool",
            lambda: Path("pool/modules/task01").chmod(0),
            permissions_hold,
        ),
        Bad(
            "a folder of images that may not be read",
            LEARN,
            lambda: Path("photos/train/red").chmod(0),
            permissions_hold,
        ),
        Bad("weights that may not be read", LEARN, lambda: Path("weights.safetensors").chmod(0), permissions_hold),
        Bad(
            "a split that may not be read",
            SPLIT,
            lambda: (split({"a": ["red"]})(), Path("split.json").chmod(0)),
            permissions_hold,
        ),
        Bad("a place that may not be written", "compose pool --out new", lambda: Path().chmod(0o500), permissions_hold),
        Bad("an image that may not be read", LEARN, lambda: Path("photos/train/red/1.png").chmod(0), permissions_hold),
        Bad("a disk that is full", "compose pool --out new", within=lambda: small_files(50_000)),
        Bad("a disk that gets full while learning", LEARN, within=lambda: small_files(50_000), begins=True),
    ],
}
