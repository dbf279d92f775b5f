"""A pool, or a composed model, to and from a hub: safetensors and JSON alone, every file against its hash.

What is pushed is the folder as it is, but for paths of this machine (``publication``), with a model card made of its
record. A pull never runs code, and writes nothing until all files are there, named by the folder's own index, and are
what that says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from intarsia.backbones.libraries.hub import offline_if_unreachable
from intarsia.errors import InputError, first_line
from intarsia.exchange.extras import new_folder, quiet
from intarsia.exchange.model_card import model_card
from intarsia.exchange.publication import publication
from intarsia.labels import listed
from intarsia.merging.model import CARD, WEIGHTS, read_card
from intarsia.progress import Progress, silent
from intarsia.store.files import Seen, parse_tensors, read, reading, write
from intarsia.store.index import INDEX, MERGED, Index
from intarsia.store.store import Store
from intarsia.store.verify import verify

NOTES = "README.md"
ALLOWED = (".json", ".safetensors")
BESIDE = (NOTES, ".gitattributes")
"""What a hub has of its own."""


def push(
    folder: str | Path,
    repository: str,
    *,
    revision: str | None = None,
    private: bool = False,
    evaluation: Mapping[str, Any] | None = None,
    licence: str | None = None,
    endpoint: str | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> str:
    """Put a pool or composed model into a repository of the hub, which is made if it is not there.

    Args:
        folder: the pool or model; every file is checked first.
        repository: ``user/name``.
        revision: the branch, which is made if it is not there; ``main`` if None.
        private: for a repository that is made.
        evaluation: what ``intarsia evaluate --json`` said of it, for the card.
        licence: as the hub names it (``mit``, ``apache-2.0``), for the card.
        endpoint: of the hub, if not ``HF_ENDPOINT`` or the usual one.
        progress: told how many files have been checked.
        say: told which paths of this machine were replaced, before anything leaves.

    Returns:
        The address of the commit.

    Raises:
        InputError: no pool or model is there, a file of it is damaged, the evaluation is none, or the hub cannot be
            reached, or refuses.
    """
    folder, api = Path(folder), HfApi(endpoint=endpoint)
    out = publication(folder, checked_files(folder, progress))
    if out.places:
        told = listed(f"{then} as {shown}" for then, shown in out.places.items())
        say(f"paths of this machine are not published: {told}")
    card = model_card(folder, repository, evaluation=evaluation, licence=licence)
    with _of_hub(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        before = api.list_repo_files(repository, revision=revision)
        added: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=out.file(name)) for name in out.names
        ]
        added.append(CommitOperationAdd(path_in_repo=NOTES, path_or_fileobj=card.encode()))
        gone = [name for name in before if PurePosixPath(name).suffix in ALLOWED and name not in out.names]
        added += [CommitOperationDelete(path_in_repo=name) for name in gone]
        found = api.create_commit(repository, added, commit_message=f"intarsia push {folder.name}", revision=revision)
    return str(found.commit_url)


def pull(
    spec: str,
    folder: str | Path,
    *,
    endpoint: str | None = None,
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Get a pool or composed model from the hub.

    With ``HF_HUB_OFFLINE=1``, or without a network, from the hub's cache on this machine.

    Args:
        spec: ``user/name``, ``user/name@revision``.
        folder: new or empty.
        endpoint: of the hub, if not ``HF_ENDPOINT`` or the usual one.
        cache: the hub's cache, if not the usual one.
        progress: told how many files have been checked.

    Returns:
        Names of the files written.

    Raises:
        InputError: there is no such repository, or no pool or model in it; it holds something else than safetensors
            and JSON, or a path that leaves the folder; a file is not what the index says. Nothing was written.
    """
    repository, _, revision = spec.partition("@")
    with new_folder(Path(folder)) as fresh:
        with _of_hub(spec), offline_if_unreachable():
            if not constants.HF_HUB_OFFLINE:
                listed = HfApi(endpoint=endpoint).list_repo_files(repository, revision=revision or None)
                refuse_strange(listed, spec)
            there = Path(
                snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=[f"*{end}" for end in ALLOWED],
                    endpoint=endpoint,
                    cache_dir=cache,
                )
            )
        names = named_files(there, spec)
        for name, seen in names.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            write(read(there / name, seen), fresh / name)
        checked_files(fresh, progress)
    return list(names)


def refuse_strange(names: Sequence[str], spec: str) -> None:
    """Refuse a repository with a file that may run code, or that would lie outside the folder.

    Raises:
        InputError: naming it.
    """
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise InputError(f"{spec} has {name!r}, which leads out of its folder: nothing was written; do not use it")
        if path.suffix not in ALLOWED and name not in BESIDE:
            raise InputError(
                f"{spec} has {name}: expected safetensors and JSON alone, other files may run code when they are read; "
                "nothing was written"
            )


def named_files(folder: Path, what: str) -> dict[str, Seen | None]:
    """The files of a pool or composed model by name, as its index says; None of the index itself.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if (folder / INDEX).is_file():
        return {INDEX: None, **Index.read(folder).files}
    if (folder / MERGED).is_file():
        card = read_card(folder)
        with reading(folder / MERGED):
            return {CARD: None, WEIGHTS: Seen(**card["weights"])}
    raise InputError(f"{what} holds no pool and no composed model of intarsia: expected {INDEX} or {MERGED} in it")


def checked_files(folder: Path, progress: Progress = silent) -> list[str]:
    """Names of all files of a pool or composed model, each against its hash.

    Raises:
        InputError: naming what is damaged.
    """
    names = named_files(folder, str(folder))
    if INDEX in names:
        if damaged := verify(Store(folder, Index.read(folder)), progress):
            raise InputError(f"{damaged[0].file} is damaged ({damaged[0].found}): `intarsia verify` says more")
        return list(names)
    data = read(folder / WEIGHTS, names[WEIGHTS])
    with reading(folder / WEIGHTS):
        parse_tensors(data)
    return list(names)


@contextmanager
def _of_hub(spec: str) -> Iterator[None]:
    """What the hub says is one line.

    Raises:
        InputError: it cannot be reached, or refuses.
    """
    bars = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with quiet():
            yield
    except (InputError, MemoryError):
        raise
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"{spec} is not in the hub's cache on this machine, and the hub is not asked (no network, or "
            "HF_HUB_OFFLINE is set): pull it where there is a network"
        ) from error
    except Exception as error:  # of the hub's library, or of the one that it speaks HTTP with
        raise InputError(
            f"{spec}: the hub says {type(error).__name__}: {first_line(error)}; check the name, the revision, the "
            "network, and that you are logged in (hf auth login) where you write"
        ) from error
    finally:
        if not bars:
            enable_progress_bars()
