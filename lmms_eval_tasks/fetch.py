"""Get a data set from its source once, whole and checked: `get`, `status`, and `fetched`, which tasks call through data.find."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from videosafety.lmms_eval_tasks import archive, download
from videosafety.lmms_eval_tasks.catalog import DataSet, catalog
from videosafety.lmms_eval_tasks.data import MissingData, cache_dir
from videosafety.lmms_eval_tasks.download import FetchError

MARKER = ".videosafety.json"  # written last: a folder of the cache without it is not ready
INDEX_FILES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")  # the files that decide what the rows are: hashed into the marker


@dataclass(frozen=True)
class Status:
    """What there is of a set on this machine.

    state: `ships` with the package; `ready`: fetched and checked; `local`: a copy that the user laid out, whole as far as its layout
    tells; `partial`: a folder that lacks some of what it must hold; `absent`.
    """

    name: str
    state: str
    folder: Path
    missing: tuple[str, ...]  # globs of the layout that match nothing
    revision: str | None  # the commit that was fetched
    advice: str  # what to do next, in one line; empty where nothing

    @property
    def usable(self) -> bool:
        return self.state in ("ships", "ready", "local")


def folder_of(name: str) -> Path:
    """Where a set lies: VIDEOSAFETY_DATA_DIR/<name> where the variable is set, else below the cache folder."""
    root = os.environ.get("VIDEOSAFETY_DATA_DIR")
    return (Path(root).expanduser() if root else cache_dir() / "data") / name


def known(name: str) -> DataSet:
    """The facts of a set. Raises MissingData for a name that no set has."""
    found = catalog().get(name)
    if found is None:
        raise MissingData(f"videosafety: there is no data set {name!r}; known are {', '.join(catalog())}")
    return found


def status(name: str) -> Status:
    """What there is of a set here; nothing is fetched. Raises MissingData for a name that no set has."""
    found, folder = known(name), folder_of(name)
    if not folder.is_dir():
        state = "ships" if found.source.kind == "own" else "absent"
        return Status(name, state, folder, (), None, "" if state == "ships" else advice(found))
    lost = lacking(found, folder)
    revision = _marker(folder).get("revision")
    if lost:
        mend = f"add them, or remove the folder and {advice(found)}"
        return Status(name, "partial", folder, lost, revision, mend)
    return Status(name, "ready" if _marker(folder) else "local", folder, (), revision, "")


def lacking(found: DataSet, folder: Path) -> tuple[str, ...]:
    """The globs of the layout that match nothing in `folder`."""
    return tuple(pattern for pattern in found.layout if next(folder.glob(pattern), None) is None)


def advice(found: DataSet) -> str:
    """The next step towards a set, as one clause."""
    if found.source.kind == "none":
        return f"lay your own copy out as VIDEOSAFETY_DATA_DIR/{found.name} ({found.gate or found.note})"
    if found.source.kind == "own":
        return "nothing: it ships with the package"
    return f"{found.way_in}run `videosafety data get {found.name}`"


def fetched(name: str) -> Path:
    """The folder of a set for a task: as it is here, else fetched now where its source is open.

    Raises:
        MissingData: it is gated, unreleased, or there is no network; one line says what, why and the exact next step.
    """
    found, here = known(name), status(name)
    if here.usable and here.state != "ships":
        return here.folder
    if here.state == "partial":
        raise MissingData(f"videosafety: {here.folder} lacks {', '.join(here.missing)}: {here.advice}")
    if found.gate is not None or found.source.kind in ("own", "none"):
        why = "is gated" if found.source.kind in ("hub", "github") else "cannot be fetched"
        raise MissingData(f"videosafety: {found.title} {why}: {advice(found)}")
    return get(name)


def get(name: str) -> Path:
    """Fetch a set and check it, once: where it is here already, nothing is done. One process fetches at a time; others wait.

    An interrupted fetch goes on where it stopped. Nothing of a folder that is there is ever overwritten.

    Raises:
        MissingData: it cannot be had from here; one line says why and what to do. Tokens are never part of it.
    """
    found, folder = known(name), folder_of(name)
    if found.source.kind in ("own", "none"):
        if (here := status(name)).usable:
            return here.folder
        raise MissingData(f"videosafety: {found.title} cannot be fetched: {advice(found)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent / ".videosafety.lock"):
            here = status(name)
            if here.usable:
                return folder
            if here.state == "partial":
                raise MissingData(f"videosafety: {folder} lacks {', '.join(here.missing)}: {here.advice}")
            if download.offline():
                raise FetchError("HF_HUB_OFFLINE is set", elsewhere=True)
            return _fetch(found, folder)
    except FetchError as error:
        raise MissingData(f"videosafety: {found.title}: {error}; {_next_step(found, error)}") from error
    except OSError as error:
        why = error.strerror or type(error).__name__
        mend = "make room, or set VIDEOSAFETY_DATA_DIR elsewhere"
        raise MissingData(f"videosafety: {found.title}: {folder.parent} cannot be written ({why}); {mend}") from error


def _next_step(found: DataSet, error: FetchError) -> str:
    if error.gated:
        return (
            advice(found)
            if found.gate
            else f"open {found.source.page}, log in with `hf auth login`, then run `videosafety data get {found.name}`"
        )
    if error.elsewhere:
        command = f"VIDEOSAFETY_DATA_DIR=DIR videosafety data get {found.name}"
        return f"on a machine with network run `{command}`, then copy DIR here and set VIDEOSAFETY_DATA_DIR to it"
    return f"run `videosafety data get {found.name}` again: it goes on where it stopped" if error.again else f"see {found.source.page}"


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold the lock of all fetches into one folder; say so where another process has it."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0.1)
    except Timeout:
        print("videosafety: waiting for another fetch to finish", file=sys.stderr)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _fetch(found: DataSet, folder: Path) -> Path:
    """Download into .<name>.part, lay out and check there, rename: the folder appears whole or not at all."""
    part = folder.parent / f".{found.name}.part"
    part.mkdir(exist_ok=True)
    bring = download.from_hub if found.source.kind == "hub" else download.from_github
    tree, revision = bring(found, part)
    stage = part / "stage"
    shutil.rmtree(stage, ignore_errors=True)  # of a fetch that was cut while it laid out
    _lay_out(found, tree / found.source.folder, stage)
    hashes = _check(found, stage)
    if lost := lacking(found, stage):
        stage.rename(folder)
        shutil.rmtree(part)
        raise MissingData(
            f"videosafety: fetched {found.title} into {folder}, but it lacks {', '.join(lost)}: {found.note or 'its source has changed'}"
        )
    files = [path for path in stage.rglob("*") if path.is_file()]
    facts = {
        "name": found.name,
        "source": found.source.page,
        "revision": revision,
        "pinned": found.source.revision,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": hashes,
    }
    part_marker = stage / f"{MARKER}.part"
    part_marker.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    part_marker.rename(stage / MARKER)
    stage.rename(folder)
    shutil.rmtree(part)
    return folder


def _lay_out(found: DataSet, tree: Path, stage: Path) -> None:
    """The data folder from what was downloaded: files as they are, archives unpacked. The download stays whole, for another try."""
    if not tree.is_dir():
        raise FetchError(f"its source has no folder {found.source.folder!r} at this revision")
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_dir() or name.startswith(".cache/") or name in found.unpack:
            continue
        if path.is_symlink():
            raise FetchError(f"{name} is a link")
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(path, stage / name)
    stage.mkdir(exist_ok=True)
    for name, place in found.unpack.items():
        for packed in sorted(tree.glob(name)):
            try:
                archive.unpack(packed, stage / place)
            except archive.ArchiveError as error:
                packed.unlink()  # fetched anew the next time
                raise FetchError(str(error)) from error


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _check(found: DataSet, stage: Path) -> dict[str, str]:
    """The hashes of the files that decide what the rows are, and of those with a known one, which must be right."""
    hashes = {
        path.relative_to(stage).as_posix(): sha256(path)
        for path in sorted(stage.rglob("*"))
        if path.is_file() and path.suffix.lower() in INDEX_FILES
    }
    for name, wanted in found.sha256.items():
        if not (stage / name).is_file():
            raise FetchError(f"{name} is not there after the fetch")
        hashes[name] = hashes.get(name) or sha256(stage / name)
        if hashes[name] != wanted:
            raise FetchError(f"{name} has the hash {hashes[name][:16]}…, not {wanted[:16]}…: its source has changed or the copy is damaged")
    return hashes


def sha256(file: Path) -> str:
    """A file's hash, hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _marker(folder: Path) -> Mapping[str, str]:
    """What the marker says; empty where there is none, or a damaged one."""
    try:
        facts = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
