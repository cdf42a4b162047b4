"""Part of a test server, never the real Hub: a Xet store over HTTP, as much of it as hf_xet 1.8 needs (upload, shard, reconstruction).

Nothing is deduplicated across users and nothing is compressed anew: it keeps what the real client sends and hands it out again.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

ENTRY = 48  # bytes: header, file entries and everything in a shard's file section
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30
FOOTER_IDENT = b"XETBLOB"


class Term(NamedTuple):
    """A run of chunks [start, end) of one xorb, `length` bytes when unpacked."""

    xorb: str
    length: int
    start: int
    end: int


def hex_of(raw: bytes) -> str:
    """A Merkle hash as the protocol spells it: four little-endian 64-bit words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def files_in(shard: bytes) -> list[tuple[str, str | None, list[Term]]]:
    """(file hash, SHA-256 or None, terms) of every file that a serialised shard describes."""
    found, at = [], ENTRY
    while at + ENTRY <= len(shard) and shard[at : at + 32] != b"\xff" * 32:
        name, (flags, count) = hex_of(shard[at : at + 32]), struct.unpack("<II", shard[at + 32 : at + 40])
        at += ENTRY
        terms = []
        for entry in (shard[at + ENTRY * n : at + ENTRY * (n + 1)] for n in range(count)):
            _, length, start, end = struct.unpack("<IIII", entry[32:48])
            terms.append(Term(hex_of(entry[:32]), length, start, end))
        at += ENTRY * count * (2 if flags & WITH_VERIFICATION else 1)
        sha256 = None
        if flags & WITH_METADATA:
            sha256 = hex_of(shard[at : at + 32])
            at += ENTRY
        found.append((name, sha256, terms))
    return found


def chunk_offsets(xorb: bytes) -> list[int]:
    """Where each packed chunk of a xorb starts, and where the last one ends."""
    offsets, at = [0], 0
    while at + 8 <= len(xorb) and xorb[at : at + 7] != FOOTER_IDENT:
        at += 8 + int.from_bytes(xorb[at + 1 : at + 4], "little")
        offsets.append(at)
    return offsets


class XetStore:
    """Xorbs in a folder; what shards say about files, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "xorbs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, list[Term]] = {}
        self.by_sha256: dict[str, tuple[str, int]] = {}  # -> (file hash, size)

    def path(self, xorb: str) -> Path:
        return self.folder / xorb

    def add_xorb(self, name: str, data: bytes) -> bool:
        """Whether it is new."""
        new = not self.path(name).exists()
        self.path(name).write_bytes(data)
        return new

    def add_shard(self, data: bytes) -> None:
        """Raises KeyError where it names a xorb that was never sent."""
        for name, sha256, terms in files_in(data):
            for term in terms:
                if not self.path(term.xorb).exists():
                    raise KeyError(term.xorb)
            self.files[name] = terms
            if sha256:
                self.by_sha256[sha256] = (name, sum(term.length for term in terms))

    def reconstruction(self, name: str, base: str, span: tuple[int, int | None] | None) -> dict[str, object] | None:
        """What a client needs to rebuild a file, or the bytes `span` (inclusive) of it; None past the end. KeyError: no such file."""
        terms = self.files[name]
        total, skip = sum(term.length for term in terms), 0
        if span is not None:
            low, high = span[0], min(total - 1 if span[1] is None else span[1], total - 1)
            if low >= total:
                return None
            kept, at = [], 0
            for term in terms:
                if at + term.length > low and at <= high:
                    skip = skip if kept else low - at
                    kept.append(term)
                at += term.length
            terms = kept
        fetch: dict[str, list[dict[str, object]]] = {}
        for term in terms:
            offsets = chunk_offsets(self.path(term.xorb).read_bytes())
            place = {
                "range": {"start": term.start, "end": term.end},
                "url": f"{base}/xorbs/{term.xorb}",
                "url_range": {"start": offsets[term.start], "end": offsets[term.end] - 1},  # inclusive
            }
            if place not in fetch.setdefault(term.xorb, []):
                fetch[term.xorb].append(place)
        listed = [{"hash": t.xorb, "unpacked_length": t.length, "range": {"start": t.start, "end": t.end}} for t in terms]
        return {"offset_into_first_range": skip, "terms": listed, "fetch_info": fetch}

    def rebuild(self, sha256: str, base: str, token: str, out: Path) -> bool:
        """Write the file with this SHA-256 to `out`, with the real client against `base`; False where no shard names it."""
        import hf_xet

        if sha256 not in self.by_sha256:
            return False
        name, size = self.by_sha256[sha256]
        part = out.with_suffix(".part")
        part.unlink(missing_ok=True)
        group = hf_xet.XetSession().new_file_download_group(endpoint=base, token=token, token_expiry_unix_secs=2**33)
        with group as downloads:
            downloads.start_download_file(hf_xet.XetFileInfo(name, size), str(part))
        if hashlib.sha256(part.read_bytes()).hexdigest() != sha256:
            raise ValueError(f"the shard says that {name} has SHA-256 {sha256}, but its bytes do not")
        part.rename(out)
        return True
