"""Safe unpacking of zip and tar archives, which are hostile input: all of it lands below one folder, or none does."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

CHUNK = 1 << 20
HEADER = 1 << 20  # bytes of all of a tar member's headers; a long name with some attributes comes near 10,000
# What the readers of both kinds raise on damage; RecursionError: tarfile calls itself for every header that is about the next one.
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, lzma.LZMAError),
    *(EOFError, NotImplementedError, UnicodeError, RecursionError),
)

_Bytes = IO[bytes] | gzip.GzipFile | lzma.LZMAFile


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
    read: Callable[[], IO[bytes] | _Counted | None]


def unpack(archive: Path, target: Path, *, want: Callable[[str], str | None] = str, caps: Caps = CAPS) -> int:
    """Unpack `archive` (zip, tar, tar.gz, tar.xz, told by its content) into `target`; archives inside it stay as they are.

    Everything is unpacked into a folder beside `target` first and then moved, so that a bad archive leaves nothing behind. It is read to
    its end, so that its checksums are tested.

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
        with _damage_told(archive):
            count = _unpack_all(archive, Path(place), want, caps)
        _merge(Path(place), target, archive.name)
    return count


def comment(archive: Path, caps: Caps = CAPS) -> str:
    """The comment in the first headers of a tar, where git writes the commit; empty where there is none. Raises ArchiveError."""
    with _damage_told(archive), _tar(archive, _Budget(archive, caps)) as (opened, _):
        return str(opened.pax_headers.get("comment", ""))


@contextmanager
def _damage_told(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise ArchiveError(f"{archive.name} is damaged ({str(error) or type(error).__name__}); fetch it again") from error


def _unpack_all(archive: Path, place: Path, want: Callable[[str], str | None], caps: Caps) -> int:
    names = _Names(archive.name)
    files = 0
    for number, member in enumerate(_members(archive, _Budget(archive, caps)), 1):
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
            shutil.copyfileobj(source, sink, CHUNK)
    return files


def _members(archive: Path, budget: _Budget) -> Iterator[_Member]:
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
                yield _Member(info.orig_filename.rstrip("/"), kind, lambda info=info: _Counted(opened.open(info), budget))  # type: ignore[misc]
        return
    for entry, read in _tar_members(archive, budget):
        kind = "folder" if entry.isdir() else "file" if entry.isfile() and not entry.issparse() else "other"
        yield _Member(entry.name, kind, read)


def tar_members(archive: Path, caps: Caps = CAPS) -> Iterator[tuple[tarfile.TarInfo, Callable[[], IO[bytes] | None]]]:
    """Every member of a tar, tar.gz or tar.xz in order, and what opens its content, good until the next member is asked for.

    Raises:
        ArchiveError: no such archive, damaged, or more than `caps` or HEADER allow. Reading content raises that, or one of DAMAGE.
    """
    with _damage_told(archive):
        yield from _tar_members(archive, _Budget(archive, caps))


def _tar_members(archive: Path, budget: _Budget) -> Iterator[tuple[tarfile.TarInfo, Callable[[], IO[bytes] | None]]]:
    with _tar(archive, budget) as (opened, stream):
        while (entry := opened.next()) is not None:
            stream.room = None
            yield entry, partial(opened.extractfile, entry)
            stream.room = HEADER
            kept: Any = opened  # tarfile keeps all that it read, headers of any size included
            kept.members.clear()
            kept.pax_headers.clear()
        stream.finish()


@contextmanager
def _tar(archive: Path, budget: _Budget) -> Iterator[tuple[tarfile.TarFile, _TarBytes]]:
    """A tar, and its unpacked bytes as they are read. Raises ArchiveError where it is none."""
    with open(archive, "rb") as packed:
        start = packed.read(8)
        packed.seek(0)
        unpacked: _Bytes = packed
        if start.startswith(b"\x1f\x8b"):
            unpacked = gzip.GzipFile(fileobj=packed)
        elif start.startswith(b"\xfd7zXZ\x00"):
            unpacked = lzma.LZMAFile(packed)  # noqa: SIM115 - `packed` is closed in the end, and it holds nothing else
        stream = _TarBytes(unpacked, budget)
        try:
            opened = tarfile.TarFile(fileobj=cast("IO[bytes]", stream))
        except tarfile.ReadError as error:
            raise ArchiveError(f"{archive.name} is no zip or tar archive, or is damaged; fetch it again") from error
        with opened:
            yield opened, stream


class _Budget:
    """What may still come out of an archive."""

    def __init__(self, archive: Path, caps: Caps) -> None:
        self.archive, self.packed, self.caps, self.size = archive.name, archive.stat().st_size, caps, 0

    def spend(self, count: int) -> None:
        """Count unpacked bytes. Raises ArchiveError where they are too many."""
        self.size += count
        if self.size > self.caps.size:
            raise ArchiveError(f"{self.archive} holds more than {self.caps.size:,} bytes")
        if self.size > self.caps.free and self.size > self.caps.ratio * self.packed:
            raise ArchiveError(f"{self.archive} unpacks to more than {self.caps.ratio:g} times its size: a bomb")


class _Counted(io.BufferedIOBase):
    """Unpacked bytes, counted as they are read."""

    def __init__(self, source: _Bytes, budget: _Budget) -> None:
        self._source, self._budget = source, budget

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._source.read(CHUNK if size is None or size < 0 else size)
        self._budget.spend(len(data))
        return data

    def close(self) -> None:
        self._source.close()
        super().close()


class _TarBytes(_Counted):
    """A tar as tarfile reads it: forwards only, each header refused before it is read where it is too large.

    `room`: bytes that the headers before the next member may still have; None while a member's content is read.
    """

    def __init__(self, source: _Bytes, budget: _Budget) -> None:
        super().__init__(source, budget)
        self.room: int | None = HEADER
        self._at, self._last = 0, b""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.room is not None:
            self.room -= CHUNK if size is None or size < 0 else size
            if self.room < 0:
                raise ArchiveError(f"{self._budget.archive} has headers of more than {HEADER:,} bytes before one member")
        self._last = super().read(size)
        self._at += len(self._last)
        return self._last

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET or place < self._at:
            raise ArchiveError(f"{self._budget.archive} is damaged (a size in it is below 0); fetch it again")
        while self._at < place and (skipped := super().read(min(CHUNK, place - self._at))):
            self._at += len(skipped)
        return self._at

    def finish(self) -> None:
        """Read on to the end, where the checksum stands. Raises ArchiveError where what ended the tar was no end of one."""
        if self._last.strip(b"\0"):
            raise ArchiveError(f"{self._budget.archive} is damaged (a header has a wrong checksum); fetch it again")
        while super().read(CHUNK):
            pass


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
