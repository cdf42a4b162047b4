"""Servers that play GitHub and the Hugging Face Hub for tests: real HTTP with ranges, and cuts, refusals and gates when asked for."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tarball(files: Mapping[str, bytes], commit: str = COMMIT, links: Mapping[str, str] | None = None) -> bytes:
    """A tarball as GitHub makes it: one top folder, and the commit in the global header."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": commit}) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"repo-{commit}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(f"repo-{commit}/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


@dataclass
class Site:
    """What a server has, how it misbehaves, and what was asked of it."""

    url: str = ""
    balls: dict[str, bytes] = field(default_factory=dict)  # commit -> tarball
    files: dict[str, bytes] = field(default_factory=dict)  # the Hub dataset's files
    cut: int | None = None  # every answer ends after so many bytes, though more were promised
    ranges: bool = True  # does it send parts?
    etag: bool = True
    refuse: int | None = None  # this status for everything
    gated: bool = False
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Serve `site` on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site, path = self.site, unquote(urlsplit(self.path).path)
        site.asked.append((self.command, path, self.headers.get("Range")))
        if site.refuse is not None:
            self.answer(site.refuse, b"{}", {"X-Error-Code": "RepoNotFound"} if site.refuse == 404 else {})
        elif found := re.fullmatch(r"/[\w.-]+/[\w.-]+/tar\.gz/(\w+)", path):
            self.content(site.balls.get(next((c for c in site.balls if c.startswith(found[1])), "")))
        elif re.fullmatch(r"/repos/[\w.-]+/[\w.-]+/commits/HEAD", path):
            self.answer(200, COMMIT.encode())
        elif found := re.fullmatch(r"/datasets/[\w.-]+/[\w.-]+/resolve/(\w+)/(.+)", path):
            if site.gated:
                self.answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this dataset is restricted"})
            else:
                self.content(site.files.get(found[2]), {"X-Repo-Commit": COMMIT})
        elif path.startswith("/api/datasets/"):
            self.api(path)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def api(self, path: str) -> None:
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.site.files.items()
        ]
        if "/commits/" in path:
            self.json([{"id": COMMIT, "title": "", "message": "", "date": "2024-01-01T00:00:00.000Z", "authors": []}])
        elif "/tree/" in path:
            self.json(entries)
        elif "/revision/" in path and not COMMIT.startswith(path.rpartition("/")[2]):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            sized = "blobs" in parse_qs(urlsplit(self.path).query)
            siblings = [{"rfilename": e["path"]} | ({"size": e["size"], "blobId": e["oid"]} if sized else {}) for e in entries]
            self.json(
                {
                    "_id": "1",
                    "id": "owner/name",
                    "sha": COMMIT,
                    "siblings": siblings,
                    "gated": self.site.gated,
                    "private": False,
                    "tags": [],
                }
            )

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def content(self, data: bytes | None, headers: Mapping[str, str] | None = None) -> None:
        """A file, in the part that was asked for."""
        if data is None:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        tag = f'"{hashlib.sha1(data).hexdigest()}"'
        extra = {**(headers or {}), **({"ETag": tag} if self.site.etag else {})}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.site.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(asked[1])
            end = int(asked[2]) + 1 if asked[2] else len(data)
            if start >= len(data):
                self.answer(416, b"")
            else:
                self.answer(206, data[start:end], extra | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})
        else:
            self.answer(200, data, extra)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.site.cut
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None and len(body) > cut:
            self.close_connection = True
