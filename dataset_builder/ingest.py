"""Which videos there are: folders, manifests and WebDataset shards become one row a file, or a reason why not. Nothing is decoded here."""

from __future__ import annotations

import glob
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from videosafety.dataset_builder.config import Config, ConfigError, Source
from videosafety.dataset_builder.manifest import MAX_LINE, Told, Unusable, parsed, rows, told_of
from videosafety.dataset_builder.rows import Outcome, Rejection, Row, digest, half_pair

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


def _shards(source: Source, config: Config) -> Iterator[Outcome]:
    """The videos of tar files, copied out once under a name made of shard and member; `<name>.json` beside a video tells of it."""
    found = sorted(glob.glob(str(config.root / str(source.shards)), recursive=True))
    if not found:
        raise ConfigError(f"source {source.name!r}: no file matches {source.shards}")
    for shard in map(Path, found):
        where = f"{source.name}/{shard.name}"
        target = config.work / "shards" / digest(source.name, str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns)
        try:
            with tarfile.open(shard, "r:*") as opened:
                yield from _members(source, where, opened, target, config.limits.max_bytes)
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, UnicodeError) as error:
            yield Rejection(
                where, f"a damaged shard ({' '.join(str(error).split())[:120]}); what stands before the damage is used", "ingest"
            )


def _members(source: Source, where: str, opened: tarfile.TarFile, target: Path, max_bytes: int) -> Iterator[Outcome]:
    """A WebDataset sample is a run of members that share a name up to the first dot of its last part."""
    stem, sample = "", dict[str, Any]()
    for member in opened:
        base, _, suffix = PurePosixPath(member.name).name.partition(".")
        name = f"{PurePosixPath(member.name).parent}/{base}"
        if name != stem:
            yield from _sample(source, where, sample)
            stem, sample = name, {}
        if not member.isfile() or member.issparse():
            if not member.isdir():
                yield Rejection(f"{where}!{member.name[:200]}", "a link or a device", "ingest")
        elif suffix.lower() == "json":
            data = opened.extractfile(member)
            sample["told"] = data.read(MAX_LINE + 1) if data else b""
        elif f".{suffix.lower()}" in VIDEO_SUFFIXES:
            if member.size > max_bytes:
                yield Rejection(f"{where}!{member.name[:200]}", f"{member.size:,} bytes are over the limit of {max_bytes:,}", "ingest")
                continue
            sample |= {"name": f"{where.partition('/')[2]}!{member.name}", "file": _copied(opened, member, target)}
    yield from _sample(source, where, sample)


def _copied(opened: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> Path:
    """The member's bytes as a file of ours: its own name is never used as a path."""
    file = target / (digest(member.name) + "." + PurePosixPath(member.name).suffix.lower().lstrip("."))
    if not file.is_file() or file.stat().st_size != member.size:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        data = opened.extractfile(member)
        assert data is not None  # a regular file has content
        with data, open(part, "wb") as out:
            while chunk := data.read(_CHUNK):
                out.write(chunk)
        os.utime(part, (0, 0))  # a second copy is the same file: its time must not make it another
        part.replace(file)
    return file


def _sample(source: Source, where: str, sample: dict[str, Any]) -> Iterator[Outcome]:
    if "file" not in sample:
        return
    told = told_of(parsed(sample.get("told", b"{}")))
    if isinstance(told, Unusable):
        yield Rejection(f"{where}!{sample['name'].partition('!')[2][:200]}", f"its .json: {told.why}", "ingest")
        return
    yield _row(source, sample["file"], sample["name"], {key: value for key, value in told.items() if key != "file"})
