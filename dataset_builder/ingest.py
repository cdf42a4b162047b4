"""Which videos there are: folders, manifests and WebDataset shards become one row a file, or a reason why not. Nothing is decoded here."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

from videosafety.dataset_builder.config import Config, ConfigError, Source
from videosafety.dataset_builder.manifest import MAX_LINE, Told, Unusable, parsed, rows, told_of
from videosafety.dataset_builder.rows import Outcome, Rejection, Row, digest, half_pair
from videosafety.lmms_eval_tasks.archive import DAMAGE, ArchiveError, tar_members

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".3gp", ".gif"}
MAX_TEXT = 4_000  # characters of a title and a description that go on
_CHUNK = 1 << 20


def ingest(config: Config) -> Iterator[Outcome]:
    """Every video of every source, in an order that does not change: a row with `file`, `source`, what the manifest says, and a `key`.

    The key changes with the file (path, size, time of change) and with all that is said of it, its source's origin and licence included:
    what was exchanged or put right is looked at again.

    Raises:
        ConfigError: a source that is not there.
    """
    for source in config.sources:
        if source.folder is not None:
            entries = _folder(source, config.root / source.folder)
        elif source.manifest is not None:
            entries = _manifest(source, config.root / source.manifest)
        else:
            entries = _shards(source, config)
        names: set[str] = set()
        for outcome in entries:
            if isinstance(outcome, Rejection):
                yield Rejection(_printable(outcome.id), _printable(outcome.reason), "ingest")
            elif half_pair(outcome["file"] + outcome["id"]):
                yield Rejection(_printable(outcome["id"]), "its path is not UTF-8; rename it", "ingest")
            elif outcome["provenance"]["path"] in names:
                yield Rejection(outcome["id"], "the same file is named twice; the first stands", "ingest")
            else:
                names.add(outcome["provenance"]["path"])
                yield outcome


def _printable(text: str) -> str:
    """Text as any file can hold it: bytes of a name that are not UTF-8 are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _row(source: Source, file: Path, name: str, told: Told) -> Row:
    stat = file.stat()
    facts = {key: told.get(key) for key in ("visual_label", "category", "harm_spans")}
    text = "\n".join(part[:MAX_TEXT].strip() for key in ("title", "description") if (part := told.get(key)))
    provenance = {
        "source": source.name,
        "path": name,
        "origin": told.get("origin") or source.origin,
        "licence": told.get("licence") or source.licence,
    }
    return {
        "id": f"{source.name}/{name}",
        "key": digest(provenance, stat.st_size, stat.st_mtime_ns, told),
        "file": str(file),
        "text": text,
        "told": facts,
        "provenance": provenance,
    }


def _folder(source: Source, root: Path) -> Iterator[Outcome]:
    if not root.is_dir():
        raise ConfigError(f"source {source.name!r}: {root} is no folder")
    base = root.resolve()
    for folder, below, files in os.walk(root):  # links to folders are not followed
        below.sort()
        for entry in sorted(files):
            file = Path(folder) / entry
            name = file.relative_to(root).as_posix()
            where = f"{source.name}/{name}"
            if entry.startswith("."):
                continue
            if not file.resolve().is_relative_to(base):
                yield Rejection(where, "a link that leads out of the folder", "ingest")
            elif not file.is_file():
                yield Rejection(where, "no regular file", "ingest")
            elif file.suffix.lower() not in VIDEO_SUFFIXES:
                yield Rejection(where, f"{file.suffix or 'no suffix'} is no kind of video file", "ingest")
            else:
                yield _row(source, file, name, {})


def _manifest(source: Source, file: Path) -> Iterator[Outcome]:
    if not file.is_file():
        raise ConfigError(f"source {source.name!r}: {file} is no file")
    base = file.parent.resolve()
    for number, told in rows(file):
        where = f"{source.name}/{file.name}, line {number}"
        if isinstance(told, Unusable):
            yield Rejection(where, told.why, "ingest")
            continue
        if "file" not in told:
            yield Rejection(where, "has no file", "ingest")
            continue
        name = told["file"]
        path = base / name if "\0" not in name else base
        try:
            outside = "\\" in name or PurePosixPath(name).is_absolute() or not path.resolve().is_relative_to(base)
            there = path.is_file()
        except (OSError, RuntimeError, ValueError):  # a name that no file can have, a ring of links
            outside, there = False, False
        if outside or "://" in name:
            yield Rejection(where, f"{name!r:.100} lies outside the manifest's folder", "ingest")
        elif not there:
            yield Rejection(where, f"{name!r:.100} is no file", "ingest")
        else:
            yield _row(source, path, PurePosixPath(os.path.normpath(name)).as_posix(), told)


@dataclass(slots=True)
class _Sample:
    """What a shard has under one name up to the last dot: a video (its member's name, and our copy) and the JSON that tells of it."""

    stem: str
    video: tuple[str, Path] | None = None
    told: bytes | None = None


def _shards(source: Source, config: Config) -> Iterator[Outcome]:
    """The videos of tar files, copied out once under a name made of shard and member; `<name>.json` beside a video tells of it."""
    pattern = str(source.shards)
    found = sorted(glob.glob(pattern, root_dir=config.root, recursive=True))
    if not found:
        raise ConfigError(f"source {source.name!r}: no file matches {pattern}")
    # Named from the folder before the first wildcard: that tells no place, and train/0.tar is not val/0.tar.
    base = PurePath(*takewhile(lambda part: not set(part) & set("*?["), PurePath(pattern).parts[:-1]))
    for entry in found:
        shard, name = config.root / entry, PurePath(entry).relative_to(base).as_posix()
        if not shard.is_file():
            yield Rejection(f"{source.name}/{name}", "no regular file", "ingest")
            continue
        stat = shard.stat()
        target = config.work / "shards" / digest(source.name, str(shard.resolve()), stat.st_size, stat.st_mtime_ns)
        try:
            yield from _members(source, name, shard, target, config.limits.max_bytes)
        except (ArchiveError, *DAMAGE, OSError) as error:
            why = " ".join(str(error).split())[:120]
            yield Rejection(f"{source.name}/{name}", f"a damaged shard ({why}); what stands before the damage is used", "ingest")


def _members(source: Source, shard: str, file: Path, target: Path, max_bytes: int) -> Iterator[Outcome]:
    """The samples of a shard: runs of members that share a name up to the last dot. No video goes without a word."""
    sample = _Sample("")
    try:
        for member, read in tar_members(file):
            suffix = PurePosixPath(member.name).suffix
            stem = member.name.removesuffix(suffix)
            if stem != sample.stem:
                yield from _sample(source, shard, sample)
                sample = _Sample(stem)
            where = f"{source.name}/{shard}!{member.name[:200]}"
            if not member.isfile() or member.issparse():
                if not member.isdir():
                    yield Rejection(where, "a link or a device", "ingest")
            elif suffix.lower() == ".json":
                sample.told = _content(read).read(MAX_LINE + 1)
            elif suffix.lower() in VIDEO_SUFFIXES:
                if member.size > max_bytes:
                    yield Rejection(where, f"{member.size:,} bytes are over the limit of {max_bytes:,}", "ingest")
                elif sample.video is not None:
                    yield Rejection(where, f"its sample has another video, which stands: {sample.video[0][:200]}", "ingest")
                else:
                    copy = target / f"{digest(member.name, member.offset)}{suffix.lower()}"  # its own name is never used as a path
                    _copy(member.size, read, copy)
                    sample.video = member.name, copy
    except (ArchiveError, *DAMAGE):
        if sample.video is not None:  # never a video without what is said of it
            member_name = sample.video[0][:200]
            yield Rejection(f"{source.name}/{shard}!{member_name}", "the shard is damaged behind it, where its .json may stand", "ingest")
        raise
    yield from _sample(source, shard, sample)


def _content(read: Callable[[], IO[bytes] | None]) -> IO[bytes]:
    content = read()
    assert content is not None  # a regular file has content
    return content


def _copy(size: int, read: Callable[[], IO[bytes] | None], file: Path) -> None:
    """A member's bytes as a file of ours, unless it is there."""
    if file.is_file() and file.stat().st_size == size:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with _content(read) as content, open(part, "wb") as out:
        shutil.copyfileobj(content, out, _CHUNK)
    os.utime(part, (0, 0))  # a second copy is the same file: its time must not make it another
    part.replace(file)


def _sample(source: Source, shard: str, sample: _Sample) -> Iterator[Outcome]:
    if sample.video is None:
        if sample.told is not None:
            where = f"{source.name}/{shard}!{sample.stem[:200]}.json"
            yield Rejection(where, "tells of no video: a video's name must be the same up to its last dot, and stand beside it", "ingest")
        return
    member, file = sample.video
    told = told_of({} if sample.told is None else parsed(sample.told))
    if isinstance(told, Unusable):
        yield Rejection(f"{source.name}/{shard}!{member[:200]}", f"its .json: {told.why}", "ingest")
    else:
        yield _row(source, file, f"{shard}!{member}", {key: value for key, value in told.items() if key != "file"})
