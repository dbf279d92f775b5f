"""Every bad input of `bad_input` gets one line that names the thing and what to do, and nothing is lost by it."""

import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from bad_input import BAD, ON_DEVICE, Bad, furnish, said
from hostile import FORGED, HARM, LIES
from intarsia.cli.main import VERBS

pytestmark = pytest.mark.slow

RENAME = "rename it"
REPLACE = "replace or remove it"
RESTORE = "restore it"

SAYS: dict[str, tuple[str, ...]] = {
    # Flags of learn
    "an unknown backbone": ("vit_unknown", "expected 'vit_sketch'", "timm/<name>"),
    "a name that timm does not know": ("timm/vit_unheard_of", "close names", "convit_base"),
    "weights that are not there": ("nowhere.safetensors", "no such file"),
    "weights of another model": ("weights.safetensors", "timm/test_vit2", "reg_token", "(1, 1, 64)", "43 of 118"),
    "weights that are a pickle": ("weights.safetensors", "not a readable safetensors file"),
    "weights cut short": ("weights.safetensors", "not a readable safetensors file"),
    "targets that match nothing": ("'*.nothing'", "blocks.0.attn.qkv", "'*.qkv'"),
    "a task that the stream does not have": ("'warm'", "task01, task02, task03"),
    "more tasks than classes": ("7 tasks", "6 classes", "1 to 6"),
    "a flag that there was": ("--beta", "--strength"),
    "a flag that there is not": ("--epoch:", "did you mean --epochs"),
    "two flags that bring settings of their own": ("--preset", "--paper", "one of them"),
    "a preset of another method": ("--method iel", "cifar100-ita-lora", "ita"),
    "a record that is not there": ("nowhere.json",),
    "a record that is none": ("pool/pool.json", "damaged"),
    "a negative strength": ("-1.0", "0 or more"),
    "no epochs": ("epochs 0", "1 or more"),
    "rank 0": ("rank 0", "1 or more"),
    "a learning rate that is no number": ("lr nan", "0 or more"),
    "batches of one image": ("batch-size 1", "use 2"),
    "an unknown device": ("'abacus'", "cpu"),
    **{f"a device that is not here, to {verb}": ("'meta'", "cpu") for verb in ON_DEVICE},
    "an unknown preset": ("'cifar'", "cifar100-ita-lora", "intarsia presets"),
    "a folder that holds something else": ("photos", "not a pool", "--out"),
    "a folder inside a file": ("weights.safetensors/new", "cannot be written"),
    "a pool, without `--add`": ("pool", "--add", "--out"),
    "`--add` to no pool": ("new", "not a pool", "pool.json", "intarsia learn --out new"),
    "`--add` of a task that is there": ("'task01'", "in the pool already"),
    "`--add` of a class that is there": ("'red'", "'new'", "'task03'"),
    "`--add` with another adapter": ("LoRA(rank=2)", "IA3()", "pool's adapter"),
    "`--add` on another backbone": ("weights.safetensors", "vit_sketch", "open it with"),
    "`--resume` where nothing was stopped": ("new", "no unfinished run", "--resume"),
    # Streams and splits
    "an unknown stream": ("'paintings'", "sketches, chalk, folder:"),
    "a folder that is not there": ("'nowhere'", "no such folder", "<class>/<image>"),
    "a folder with nothing in it": ("'empty'", "no images", "empty/<class>/<image>"),
    "classes, and no test fraction": ("'photos/train'", "test fraction"),
    "a test fraction of 2": ("2.0", "--source.test-fraction", "less than 1"),
    "test images, and a test fraction": ("'photos'", "0.2", "leave the fraction out"),
    "a split, and a number of tasks": ("(3)", "split", "one of the two"),
    "a split that is not there": ("'split.json'", "no such file"),
    "a split that is not JSON": ("'split.json'", "not JSON", "{task: [class"),
    "a split that is a list": ("a list", "{task: [class"),
    "a split nested without end": ("'split.json'", "not JSON", "recursion"),
    "a split of a terabyte": ("'hole.json'", "1,000,000,000,000", "at most 67,108,864"),
    "a task twice in a split": ("'split.json'", "'a' twice", "once"),
    "a class in two tasks": ("'red'", "'a'", "'b'", "once"),
    "a class that is not there": ("'pink'", "'a'", "blue, cyan, gold"),
    "a task without classes": ("'a'", "no classes", "leave it out"),
    "a task named ../a": ("'../a'", "'/'", RENAME),
    "a task named with a line break": (r"'a\nb'", r"'\n'", RENAME),
    "a task named with a right-to-left mark": (r"'a\u202eb'", r"'\u202e'", RENAME),
    "a task named with 300 characters": ("xxx", "too long", "at most 100"),
    "a class folder named with a tab": (r"'re\td'", r"'\t'", RENAME),
    "a class folder named with a right-to-left mark": (r"'re\u202ed'", r"'\u202e'", RENAME),
    # Images
    "an image of zero bytes": ("'photos/train/red/1.png'", "0 bytes", REPLACE),
    "a text under an image's name": ("'photos/train/red/1.png'", "not an image", "PNG, JPEG", REPLACE),
    "an image cut short": ("'photos/train/red/1.png'", "truncated", REPLACE),
    "an image of 400 million pixels": ("'photos/train/red/1.png'", "pixels", "smaller"),
    "a file outside a class": ("'photos/train/loose.png'", "<class>/<image>", "remove it"),
    "a link in a loop": ("'photos/train/red/loop.png'", "broken link", "remove it"),
    "a pipe": ("'photos/train/red/pipe.png'", "device", "remove it"),
    "a class on one side only": ("'photos'", "in train but not in test: red", "in both", "--split"),
    "a class without images": ("'photos'", "not in test: red", "without images: test/red", "--split"),
    "no image to predict": ("predict", "image files"),
    "an image to predict that is not there": ("'photos/no.png'", "no such image"),
    "a text to predict": ("'notes.png'", "not an image", REPLACE),
    # In and out
    "an unknown format": ("--format 'zip'", "peft or transformers or timm or onnx or torch"),
    "a composed model to export as adapters": ("composed", "merged model", "name the pool"),
    "a folder to export to that is not empty": ("photos", "not an empty folder", "nothing was written"),
    "a task to export that is not there": ("'cars'", "task01, task02, task03"),
    "a folder to push that holds no pool": ("photos", "no pool", "pool.json or model.json"),
    "a damaged model to push": ("composed/model.safetensors", "damaged", RESTORE),
    "a repository whose name is none": ("a/b/c", "repo", "check the name"),
    "no images for an adapter": ("import", "--data"),
    "an adapter that is none": ("photos", "no adapter of PEFT", "adapter_config.json"),
    "an adapter of another kind": ("their", "IA3", "expected LORA"),
    "an adapter whose weights are a pickle": ("adapter_model.bin", "pickle", "safetensors"),
    # Modules, weights and recipes
    "no pool": ("photos", "not a pool", "pool.json"),
    "a task to keep that is not there": ("'cars'", "task01, task02, task03"),
    "a task to drop that is not there": ("'cars'", "task01, task02, task03"),
    "a task to unlearn that is not there": ("'cars'", "task01, task02, task03"),
    "`--keep` and `--weights`": ("--keep", "--weights", "one of them"),
    "`--answer` and `--keep`": ("--answer", "--keep", "goes with the mean"),
    "`--answer` and a merge rule": ("--answer and --rule ties", "goes with the mean, or with --weights"),
    "a task to answer that is not there": ("cars", "task01, task02, task03"),
    "a weight that is not finite": ("nan", "'task02'", "not finite"),
    "a scale that is not finite": ("scale inf", "finite number"),
    "weights joined by a comma": ("'task01=.5,task02=.5'", "task01=.5 task02=.5"),
    "tasks joined by a comma": ("'task01,task02'", "--keep task01 task02"),
    "a weight that is no number": ("'task01=one'", "birds=.7"),
    "a weight of a task that is not there": ("'cars'", "task01, task02, task03"),
    "a merge rule with coefficients": ("--rule ties", "leave --weights out"),
    "Fishers that were not kept": ("'task01'", "--run.keep-fishers"),
    "every task dropped": ("--drop", "all tasks", "keep one"),
    "a scale without negation": ("2.0", "drop", "negate"),
    "a scale that is infinite": ("inf", "finite"),
    "a folder to write to that is not empty": ("photos", "not an empty folder", "nothing was written"),
    "`--keep` of a composed model": ("--keep", "composed", "name the pool"),
    "a composed model that is damaged": ("composed/model.safetensors", "damaged", RESTORE),
    "a class to rename that is not there": ("'pink'", "blue, cyan"),
    "a new name that another class has": ("'blue'", "'task01'", "new name"),
    "a new name that is no name": ("'../rose'", "'/'", RENAME),
    "a class to rename without a new name": ("new is missing", "--help"),
    "a class of a composed model to rename": ("composed", "merged model", "name the pool"),
    "a task to remove that is not there": ("'cars'", "task01, task02, task03"),
    "a task to remove from no pool": ("photos", "not a pool", "pool.json"),
    "a task of a composed model to remove": ("composed", "merged model", "name the pool"),
    "a task to remove while a run is stopped": ("pool", "--resume", "pool/.run", "'task01'"),
    "a composed model to diagnose": ("composed", "merged model", "name the pool"),
    "a composed model to report on": ("composed", "merged model", "name the pool"),
    "a composed model to open in the studio": ("composed", "neither a pool", "name the pool"),
    "a port that there is not": ("--port 70000", "65535", "leave it out"),
    "no image of a class in the studio": ("--per-class 0", "1 or more"),
    "a composed model to compose": ("composed", "merged model", "name the pool"),
    "an unknown method": ("'magic'", "frozen", "iel-ia3"),
    # Pools that are damaged
    **{f"a module's tensors {how}": ("pool/modules/task01/vector.safetensors", "damaged", RESTORE) for how in HARM},
    "a damaged file, to verify": ("1 of 20", "pool/modules/task02/card.json", RESTORE, "--repair", "'task02'"),
    "a damaged Fisher, to repair": ("pool/fisher-3.safetensors", "no module", RESTORE),
    "a damaged Fisher, to add to": ("pool/fisher-3.safetensors", "damaged", RESTORE),
    "a newer format": ("pool", "99", "update intarsia"),
    "an older format": ("pool", "format 1", "learn it again"),
    "an index of zero bytes": ("pool/pool.json", "damaged", RESTORE),
    "an index nested without end": ("pool/pool.json", "recursion", RESTORE),
    "an index with a key twice": ("pool/pool.json", "'format' twice", RESTORE),
    "a link that leads out of the pool": ("pool/modules/task01/head.safetensors", "/somewhere/elsewhere"),
    "another backbone under the same name": ("weights.safetensors", "not on", "open it with"),
    # Pools that lie
    **{f"an index with {lie}": ("pool/pool.json", "damaged", RESTORE) for lie in LIES},
    **{f"a file, its hash right, with {how}": ("pool/modules/task01", "damaged", RESTORE) for how in FORGED},
    # Numbers and limits
    "a learning rate that makes the loss infinite": ("'task01'", "loss", "1e+30", "smaller learning rate"),
    "a regularizer that diverges": ("'new'", "1e+30", "--training.step proximal", "smaller strength"),
    "weights that are not finite": ("weights.safetensors", "norm.bias", "not finite"),
    "another process that writes": ("pool", "process", "wait for it"),
    "a pool that may not be written": ("pool/.run", "permission denied", "run again"),
    "a pool that may not be read": ("pool/pool.json", "permission denied", "run again"),
    "a pool to predict with that may not be read": ("pool/pool.json", "permission denied", "run again"),
    "a module that may not be read": ("pool/modules/task01", "permission denied", "run again"),
    "a folder of images that may not be read": ("'photos/train/red'", "permission denied"),
    "weights that may not be read": ("weights.safetensors", "permission denied"),
    "a split that may not be read": ("'split.json'", "permission denied"),
    "a place that may not be written": ("new", "permission denied", "run again"),
    "an image that may not be read": ("'photos/train/red/1.png'", "permission denied"),
    "a disk that is full": ("new/model.safetensors", "cannot be written", "make room"),
    "a disk that gets full while learning": ("new/.run/epoch.safetensors", "make room", "--resume --out new"),
}
"""What its line must say: the thing, what was found, what was expected, what to do."""

ALL = [bad for bads in BAD.values() for bad in bads]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("furnished"))


@pytest.mark.parametrize("bad", ALL, ids=lambda bad: bad.what)
def test_bad_input_is_one_line_and_nothing_is_lost(bad: Bad, furnished: Path, tmp_path: Path) -> None:
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    with chdir(tmp_path):
        line = said(bad)
    missing = [part for part in SAYS[bad.what] if part.lower() not in line.lower()]
    assert not missing, (missing, line)


def test_every_bad_input_is_tried_once_and_has_its_parts() -> None:
    assert sorted(bad.what for bad in ALL) == sorted(SAYS)
    assert all(SAYS.values())
    assert {bad.command.partition(" ")[0] for bad in ALL} == set(VERBS)
