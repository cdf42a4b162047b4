"""Safe unpacking of zip and tar archives, which are hostile input: all of it lands below one folder, or none does."""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CHUNK = 1 << 20


class ArchiveError(ValueError):
    """The archive is damaged, or holds what no data set needs; the message names archive and member."""


@dataclass(frozen=True)
class Caps:
    """What an archive may hold. The largest sets of ours have some thousand files and some ten GB."""

    files: int = 200_000
    size: int = 256 * 2**30  # bytes, unpacked
    ratio: float = 100.0  # unpacked to packed bytes: JSON comes near 20, deflate's own limit, reached only by made-up data, is 1,032
    free: int = 64 * 2**20  # unpacked bytes below which the ratio is not looked at


CAPS = Caps()


@dataclass(frozen=True)
class _Member:
    name: str
    kind: str  # file, folder or other
    read: Callable[[], IO[bytes] | None]


def unpack(archive: Path, target: Path, *, want: Callable[[str], str | None] = str, caps: Caps = CAPS) -> int:
    """Unpack `archive` (zip, tar, tar.gz, told by its content) into `target`; archives inside it stay as they are.

    Everything is unpacked into a folder beside `target` first and then moved, so that a bad archive leaves nothing behind.

    Args:
        target: a folder, made where it is not there; none of its files is overwritten.
        want: from a member's name to the path below `target` that it gets, or None to leave it out. All names are checked, wanted or not.

    Returns:
        how many files were unpacked.

    Raises:
        ArchiveError: damaged or no such archive; an absolute path, `..`, a link or a device; two members, or a member and a file of
            `target`, with one name on some machine; more than `caps` allow.
        OSError: the disk is full or not writable.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target.parent) as place:
        try:
            count = _unpack_all(archive, Path(place), want, caps)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, UnicodeError) as error:
            raise ArchiveError(f"{archive.name} is damaged ({str(error) or type(error).__name__}); fetch it again") from error
        _merge(Path(place), target, archive.name)
    return count


def _unpack_all(archive: Path, place: Path, want: Callable[[str], str | None], caps: Caps) -> int:
    names = _Names(archive.name)
    files = size = 0
    packed = archive.stat().st_size
    for number, member in enumerate(_members(archive), 1):
        if number > 4 * caps.files:  # folders and unwanted members cost time too
            raise ArchiveError(f"{archive.name} has more than {4 * caps.files:,} members")
        path = names.checked(member.name)
        if path in ("", ".") or member.kind == "folder" or (wanted := want(path)) is None:
            continue
        if member.kind != "file":
            raise ArchiveError(f"{archive.name}: {member.name!r} is a link or a device")
        names.take(wanted)
        files += 1
        if files > caps.files:
            raise ArchiveError(f"{archive.name} has more than {caps.files:,} files")
        out = place / wanted
        out.parent.mkdir(parents=True, exist_ok=True)
        source = member.read()
        assert source is not None  # a file has content
        with source, open(out, "xb") as sink:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > caps.size:
                    raise ArchiveError(f"{archive.name} holds more than {caps.size:,} bytes")
                if size > caps.free and size > caps.ratio * packed:
                    raise ArchiveError(f"{archive.name} unpacks to more than {caps.ratio:g} times its size: a bomb")
                sink.write(chunk)
    return files


def _members(archive: Path) -> Iterator[_Member]:
    """Every member, in order. What the archive says of sizes is never believed: bytes are counted as they come out."""
    with open(archive, "rb") as opened_file:
        start = opened_file.read(4)
    if start in (b"PK\x03\x04", b"PK\x05\x06"):  # not zipfile.is_zipfile, which takes a tar whose last file is a zip for one
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if info.flag_bits & 1:
                    raise ArchiveError(f"{archive.name}: {info.filename!r} is encrypted")
                mode = stat.S_IFMT(info.external_attr >> 16)
                kind = "folder" if info.is_dir() else "file" if mode in (0, stat.S_IFREG) else "other"
                yield _Member(info.orig_filename.rstrip("/"), kind, lambda info=info: opened.open(info))  # type: ignore[misc]
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive, "r:*") as opened_tar:
            for entry in opened_tar:
                kind = "folder" if entry.isdir() else "file" if entry.isfile() and not entry.issparse() else "other"
                yield _Member(entry.name, kind, lambda entry=entry: opened_tar.extractfile(entry))  # type: ignore[misc]
    else:
        raise ArchiveError(f"{archive.name} is no zip or tar archive, or is damaged; fetch it again")


class _Names:
    """The names of an archive's members: which are safe, and which were taken already, on machines that fold case too."""

    def __init__(self, archive: str) -> None:
        self.archive = archive
        self.files: set[str] = set()
        self.folders: set[str] = set()

    def checked(self, name: str) -> str:
        """The name as a relative path. Raises ArchiveError where it could lead out of the folder."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        outside = name.startswith("/") or ".." in parts or (parts and len(parts[0]) > 1 and parts[0][1] == ":")
        if outside or "\\" in name or "\0" in name:
            raise ArchiveError(f"{self.archive}: {name!r} is no path inside the folder")
        if len(name) > 1024 or any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
            raise ArchiveError(f"{self.archive}: {name[:60]!r}… is too long a name")
        return "/".join(parts)

    def take(self, path: str) -> None:
        """Remember a file. Raises ArchiveError where it, or a folder on its way, has the name of another."""
        folded = unicodedata.normalize("NFC", path).casefold()
        steps = folded.split("/")
        above = {"/".join(steps[:n]) for n in range(1, len(steps))}
        if folded in self.files or folded in self.folders or above & self.files:
            raise ArchiveError(f"{self.archive}: {path!r} is there twice, or differs from another only in case")
        self.files.add(folded)
        self.folders |= above


def _merge(place: Path, target: Path, archive: str) -> None:
    """Move what was unpacked into `target`, unless one of its files would be overwritten."""
    if not target.exists():
        place.rename(target)
        target.chmod(0o755)  # a temporary folder is for its owner alone
        place.mkdir()  # TemporaryDirectory removes it
        return
    names = _Names(archive)
    there = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir())
    new = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir())
    for path in (*there, *new):
        names.take(path)
    for path in new:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(place / path, target / path)
