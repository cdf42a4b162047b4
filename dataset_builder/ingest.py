"""Which videos there are: folders, manifests and WebDataset shards become one row a file, or a reason why not. Nothing is decoded here."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from videosafety.dataset_builder.config import Config, ConfigError, Source
from videosafety.dataset_builder.rows import Outcome, Rejection, Row, digest
from videosafety.lmms_eval_tasks.judge.policy import category_groups

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".3gp", ".gif"}
MAX_LINE = 1 << 20  # bytes of one row of a manifest, or of one JSON beside a video in a shard
MAX_TEXT = 4_000  # characters of a title and a description that go on
KEYS = {
    "file": str,
    "id": str,
    "origin": str,
    "title": str,
    "description": str,
    "licence": str,
    "visual_label": int,
    "category": str,
    "harm_spans": list,
}
_CHUNK = 1 << 20


def ingest(config: Config) -> Iterator[Outcome]:
    """Every video of every source, in an order that does not change: a row with `file`, `source`, what the manifest says, and a `key`.

    The key changes with the file (path, size, time of change), so that a video that was exchanged is looked at again.

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
                yield outcome
            elif outcome["provenance"]["path"] in names:
                yield Rejection(outcome["id"], "the same file is named twice; the first stands", "ingest")
            else:
                names.add(outcome["provenance"]["path"])
                yield outcome


def _row(source: Source, file: Path, name: str, told: dict[str, Any]) -> Row:
    stat = file.stat()
    facts = {key: told.get(key) for key in ("visual_label", "category", "harm_spans")}
    text = "\n".join(part[:MAX_TEXT].strip() for key in ("title", "description") if (part := told.get(key)))
    identity = [source.name, name, stat.st_size, stat.st_mtime_ns, told]
    provenance = {
        "source": source.name,
        "path": name,
        "origin": told.get("origin") or source.origin,
        "licence": told.get("licence") or source.licence,
    }
    return {
        "id": f"{source.name}/{name}",
        "key": digest(identity),
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
    for number, told in _lines(file):
        where = f"{source.name}/{file.name}, line {number}"
        problem = told if isinstance(told, str) else _told_problem(told)
        if problem is not None:
            yield Rejection(where, problem, "ingest")
            continue
        assert isinstance(told, dict)
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


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number with the row, or with what is wrong with it."""
    with open(file, "rb") as opened:
        header: list[str] | None = None
        number = 0
        while line := opened.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                yield number, f"a line over {MAX_LINE >> 20} MiB"
                while line and not line.endswith(b"\n"):
                    line = opened.readline(MAX_LINE)
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                yield number, "not UTF-8"
                continue
            if not text:
                continue
            if file.suffix.lower() == ".csv":
                cells = next(csv.reader(io.StringIO(text)))
                if header is None:
                    header = [cell.strip() for cell in cells]
                else:
                    yield number, _csv_row(header, cells)
                continue
            try:
                told = json.loads(text)
            except (json.JSONDecodeError, RecursionError):
                yield number, "not JSON"
                continue
            yield number, told if isinstance(told, dict) else "must be a JSON object"


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any] | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells under {len(header)} columns"
    row: dict[str, Any] = {key: cell for key, cell in zip(header, cells, strict=True) if cell}
    try:
        return row | {key: json.loads(row[key]) for key in ("visual_label", "harm_spans") if key in row}
    except (json.JSONDecodeError, RecursionError):
        return "visual_label and harm_spans must be JSON"


def _told_problem(told: dict[str, Any]) -> str | None:
    """What is wrong with what a manifest says of one video."""
    if "file" not in told:
        return "has no file"
    for key, kind in _present(told):
        if not isinstance(told[key], kind) or isinstance(told[key], bool):
            return f"{key} must be {kind.__name__}, got {told[key]!r:.60}"
    if told.get("visual_label", 0) not in (0, 1):
        return f"visual_label must be 0 (safe) or 1 (harmful), got {told['visual_label']}"
    if told.get("category", "weapons") not in category_groups():
        return f"category {told['category']!r:.60} is not in the policy"
    for span in told.get("harm_spans", []):
        if not (isinstance(span, list) and len(span) == 2 and all(type(t) in (int, float) for t in span) and 0 <= span[0] < span[1]):
            return f"harm_spans must be [[start, end], …] in seconds, got {span!r:.60}"
    return None


def _present(told: dict[str, Any]) -> list[tuple[str, type]]:
    return [(key, KEYS[key]) for key in told if key in KEYS and told[key] is not None]


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
    try:
        told = json.loads(sample.get("told", b"{}")[:MAX_LINE])
        problem = _told_problem({"file": "", **told}) if isinstance(told, dict) else "must be a JSON object"
    except (ValueError, RecursionError):
        told, problem = {}, "not JSON"
    name = sample["name"]
    if problem is not None:
        yield Rejection(f"{where}!{name.partition('!')[2][:200]}", f"its .json: {problem}", "ingest")
        return
    yield _row(source, sample["file"], name, {key: value for key, value in told.items() if key in KEYS and key != "file"})
