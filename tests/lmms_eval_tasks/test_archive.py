"""Archives are hostile: each wrong one gives one clear error and leaves nothing behind; good ones come out whole."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from videosafety.lmms_eval_tasks.archive import ArchiveError, Caps, comment, unpack

Build = Callable[[Path], None]


def zipped(*members: tuple[str, bytes], mode: int = 0) -> Build:
    def build(file: Path) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
                out.writestr(info, content)

    return build


def tarred(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "", packing: str = "w:gz") -> Build:
    def build(file: Path) -> None:
        with tarfile.open(file, packing) as out:  # type: ignore[call-overload]
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, link, len(content)
                out.addfile(info, io.BytesIO(content))

    return build


def encrypted(file: Path) -> None:
    zipped(("a.txt", b"x"))(file)
    data = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<H", data, data.index(signature) + offset, 1)
    file.write_bytes(data)


def cut(build: Build, keep: float) -> Build:
    def shorter(file: Path) -> None:
        build(file)
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * keep)])

    return shorter


def flipped(file: Path) -> None:
    """A zip whose content no longer has its checksum."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        out.writestr("a.txt", b"harmless")
    file.write_bytes(file.read_bytes().replace(b"harmless", b"harmfull"))


def headed(kind: bytes, size: int, times: int = 1, content: bytes = b"\0") -> Build:
    """A tar whose one file stands behind so many headers of this kind and size, all of which are about it."""

    def build(file: Path) -> None:
        with gzip.open(file, "wb") as out:
            for n in range(times):
                info = tarfile.TarInfo("header")
                info.type, info.size = kind, size
                out.write(info.tobuf(tarfile.USTAR_FORMAT))
                # a whole record for pax, whose number changes so that none replaces another
                said = b" k%06d=" % n if kind in (tarfile.XHDTYPE, tarfile.XGLTYPE) else b""
                length = size - len(str(size))
                body = str(size).encode() + said + content * (length - len(said) - 1) + b"\n" if said else content * size
                out.write(body + bytes(-len(body) % 512))
            file_info = tarfile.TarInfo("a.txt")
            out.write(file_info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))

    return build


def bit_rot(build: Build, place: int) -> Build:
    """The same archive with one byte other than it was; `place` counts from the end where it is below 0."""

    def rotten(file: Path) -> None:
        build(file)
        data = bytearray(file.read_bytes())
        data[place] ^= 0x10
        file.write_bytes(data)

    return rotten


def size_below_0(file: Path) -> None:
    """A tar whose first file has a size of -1024 in base 256, which would send its reader back to where it was."""
    info = tarfile.TarInfo("a.txt")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    file.write_bytes(bytes(header) + bytes(1024))


NOISE = os.urandom(20_000)
TEXT = NOISE.hex().encode()
HOSTILE = {
    "zip: parent": (zipped(("../evil.txt", b"x")), "no path inside"),
    "zip: parent further in": (zipped(("a/../../evil.txt", b"x")), "no path inside"),
    "zip: absolute": (zipped(("/etc/evil.txt", b"x")), "no path inside"),
    "zip: drive": (zipped(("C:/evil.txt", b"x")), "no path inside"),
    "zip: backslash": (zipped(("..\\evil.txt", b"x")), "no path inside"),
    "zip: link": (zipped(("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777), "link or a device"),
    "zip: device": (zipped(("device", b""), mode=stat.S_IFCHR | 0o666), "link or a device"),
    "zip: encrypted": (encrypted, "encrypted"),
    "zip: case": (zipped(("A.txt", b"x"), ("a.txt", b"y")), "there twice"),
    "zip: accents written two ways": (zipped(("\u00e9.txt", b"x"), ("e\u0301.txt", b"y")), "there twice"),
    "zip: file and folder": (zipped(("a", b"x"), ("A/b.txt", b"y")), "there twice"),
    "zip: folder and file": (zipped(("a/b.txt", b"x"), ("a", b"y")), "there twice"),
    "zip: checksum": (flipped, "damaged"),
    "zip: cut": (cut(zipped(("a.txt", NOISE)), 0.5), "damaged"),
    "zip: long name": (zipped(("a" * 300, b"x")), "too long"),
    "zip: too many": (zipped(*((f"{n}.txt", b"") for n in range(11))), "more than 10 files"),
    "zip: too large": (zipped(("a.bin", NOISE * 10)), "more than 150,000 bytes"),
    "zip: bomb": (zipped(("a.bin", bytes(140_000))), "a bomb"),
    "tar: parent": (tarred(("../evil.txt", b"x")), "no path inside"),
    "tar: absolute": (tarred(("/etc/evil.txt", b"x")), "no path inside"),
    "tar: symbolic link": (tarred(("link", b""), kind=tarfile.SYMTYPE, link="/etc/passwd"), "link or a device"),
    "tar: link inside": (tarred(("link", b""), kind=tarfile.SYMTYPE, link="a.txt"), "link or a device"),
    "tar: hard link": (tarred(("link", b""), kind=tarfile.LNKTYPE, link="/etc/passwd"), "link or a device"),
    "tar: device": (tarred(("device", b""), kind=tarfile.CHRTYPE), "link or a device"),
    "tar: pipe": (tarred(("pipe", b""), kind=tarfile.FIFOTYPE), "link or a device"),
    "tar: twice": (tarred(("a.txt", b"x"), ("./a.txt", b"y")), "there twice"),
    "tar: too many": (tarred(*((f"{n}.txt", b"") for n in range(11))), "more than 10 files"),
    "tar: bomb": (tarred(("a.bin", bytes(140_000))), "a bomb"),
    "tar: cut": (cut(tarred(("a.txt", NOISE)), 0.5), "damaged"),
    "tar: checksum of the gzip": (bit_rot(tarred(("a.txt", NOISE)), -6), "damaged"),
    "tar: a byte of the gzip's data": (bit_rot(tarred(("a.txt", TEXT)), 12_000), "damaged"),
    "tar: a byte of the xz's data": (bit_rot(tarred(("a.txt", NOISE), packing="w:xz"), 12_000), "damaged"),
    "tar: checksum of the xz": (bit_rot(tarred(("a.txt", NOISE), packing="w:xz"), -60), "damaged"),
    "tar: a later header": (bit_rot(tarred(("a.txt", b"x"), ("b.txt", b"y"), packing="w"), 1030), "damaged"),
    "tar: cut at the end": (cut(tarred(("a.txt", NOISE)), 0.9999), "damaged"),
    "tar: a size below 0": (size_below_0, "damaged"),
    "tar: a pax header that is too large": (headed(tarfile.XHDTYPE, 2 << 20), "headers of more than"),
    "tar: a global header that is too large": (headed(tarfile.XGLTYPE, 2 << 20), "headers of more than"),
    "tar: a name that is too large": (headed(tarfile.GNUTYPE_LONGNAME, 2 << 20, content=b"a"), "headers of more than"),
    "tar: a link's name that is too large": (headed(tarfile.GNUTYPE_LONGLINK, 2 << 20, content=b"a"), "headers of more than"),
    "no archive": (lambda file: file.write_bytes(b"<html>404</html>"), "no zip or tar"),
    "empty file": (lambda file: file.write_bytes(b""), "no zip or tar"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "says"), HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("there", [False, True], ids=["into a new folder", "into one with files"])
def test_a_hostile_archive_gives_one_clear_error_and_leaves_nothing(tmp_path: Path, build: Build, says: str, there: bool) -> None:
    place, target = tmp_path / "place", tmp_path / "place" / "data"
    place.mkdir()
    if there:
        target.mkdir()
        (target / "kept.txt").write_text("kept")
    build(tmp_path / "some.archive")
    with pytest.raises(ArchiveError, match=says) as caught:
        unpack(tmp_path / "some.archive", target, caps=Caps(files=10, size=150_000, ratio=50, free=100_000))
    assert str(caught.value).startswith("some.archive")
    assert "\n" not in str(caught.value)
    assert [path.relative_to(place).as_posix() for path in place.rglob("*")] == (["data", "data/kept.txt"] if there else [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place", "some.archive"]


@pytest.mark.parametrize("packing", ["zip", "w:gz", "w", "w:xz"])
@pytest.mark.parametrize("there", [False, True], ids=["into a new folder", "into one with files"])
def test_a_good_archive_comes_out_whole(tmp_path: Path, packing: str, there: bool) -> None:
    inner = tmp_path / "inner.zip"
    zipped(("x.txt", b"x"))(inner)
    members = [("a.txt", b"first"), ("./sub/b ä.png", NOISE), ("sub/deeper/c", b""), ("inner.zip", inner.read_bytes())]
    (zipped(*members) if packing == "zip" else tarred(*members, packing=packing))(tmp_path / "good")
    target = tmp_path / "out" / "data"
    if there:
        (target / "sub").mkdir(parents=True)
    assert unpack(tmp_path / "good", target) == 4
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {
        name.removeprefix("./"): content for name, content in members
    }  # the archive inside stays one
    assert target.stat().st_mode & 0o055 == 0o055


def test_a_large_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A pax header of 64 MiB in an archive of 64 KiB: the memory that it would take is never asked for."""
    headed(tarfile.XHDTYPE, 64 << 20)(tmp_path / "large.tar.gz")
    tracemalloc.start()
    with pytest.raises(ArchiveError, match="headers of more than"):
        unpack(tmp_path / "large.tar.gz", tmp_path / "out")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 << 20


CHAINS = {"few large ones": (200_000, 6, "headers of more than"), "many small ones": (512, 1000, "damaged")}


@pytest.mark.parametrize("case", CHAINS)
def test_headers_of_headers_are_refused(tmp_path: Path, case: str) -> None:
    size, times, says = CHAINS[case]
    headed(tarfile.XGLTYPE, size, times)(tmp_path / "chain.tar.gz")
    with pytest.raises(ArchiveError, match=says):
        unpack(tmp_path / "chain.tar.gz", tmp_path / "out")


def test_the_commit_of_a_tarball_is_read_with_the_same_care(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "f" * 40}) as out:
        out.addfile(tarfile.TarInfo("a.txt"))
    assert comment(tmp_path / "good.tar.gz") == "f" * 40
    tarred(("a.txt", b"x"))(tmp_path / "plain.tar.gz")
    assert comment(tmp_path / "plain.tar.gz") == ""
    headed(tarfile.XGLTYPE, 2 << 20)(tmp_path / "large.tar.gz")
    with pytest.raises(ArchiveError, match="headers of more than"):
        comment(tmp_path / "large.tar.gz")


def test_no_file_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "A.txt").write_text("mine")
    zipped(("b.txt", b"new"), ("a.txt", b"theirs"))(tmp_path / "some.zip")
    with pytest.raises(ArchiveError, match="there twice"):
        unpack(tmp_path / "some.zip", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["A.txt"]


def test_what_is_not_wanted_may_be_a_link_but_never_lead_outside(tmp_path: Path) -> None:
    tarred(("repo/link", b""), kind=tarfile.SYMTYPE, link="/etc/passwd")(tmp_path / "link.tar.gz")
    assert unpack(tmp_path / "link.tar.gz", tmp_path / "out", want=lambda name: None) == 0
    tarred(("../evil", b"x"))(tmp_path / "evil.tar.gz")
    with pytest.raises(ArchiveError, match="no path inside"):
        unpack(tmp_path / "evil.tar.gz", tmp_path / "out2", want=lambda name: None)


def test_names_can_be_changed_on_the_way(tmp_path: Path) -> None:
    tarred(("repo-1/data/a.txt", b"a"), ("repo-1/code.py", b"b"))(tmp_path / "repo.tar.gz")
    unpack(tmp_path / "repo.tar.gz", tmp_path / "out", want=lambda name: name[len("repo-1/") :] if "/data/" in name else None)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")] == ["data/a.txt"]
