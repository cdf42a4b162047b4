"""A web page of this machine for reviewers: one item at a time, keys for everything, each decision on disk before the next is shown."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from videosafety.dataset_builder.prompts import TEMPLATES, bodies
from videosafety.dataset_builder.review import Decisions, ReviewError, checked, read_queue
from videosafety.dataset_builder.write import FOLDERS

MAX_BODY = 64 * 1024  # bytes of one decision
_CLIP = re.compile(r"[0-9a-f]{16}\.mp4")
_CHUNK = 1 << 20


class _Reviews:
    """The queue and the decisions of a set, shared by the threads of the server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = read_queue(folder / "review")
        self._decisions = Decisions(folder / "review")
        self._lock = threading.Lock()
        self.token = secrets.token_urlsafe(16)

    def shown(self, reviewer: str) -> dict[str, Any]:
        """What the page starts with. Others' decisions are not in it: reviewers must not see each other's."""
        with self._lock:
            mine = {item: asdict(decision) for item, decision in self._decisions.by(reviewer, self.items).items()}
        titles = {name: body["title"] for name, body in bodies().items()}
        return {"items": list(self.items.values()), "decisions": mine, "categories": titles}

    def decide(self, body: Any) -> None:
        decision = checked(body, self.items, "decision")
        with self._lock:
            self._decisions.add(decision)

    def clip(self, name: str) -> Path | None:
        """A clip of the set, or one that is held back."""
        if not _CLIP.fullmatch(name):
            return None
        places = [self.folder / folder / "videos" / name for folder in FOLDERS.values()]
        places.append(self.folder / ".build" / "clips" / name[:2] / name)
        return next((place for place in places if place.is_file()), None)


@contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve the page on 127.0.0.1 while the context is open; yields its address, which holds the token that decisions need.

    Raises:
        ReviewError: nothing is built there. OSError: the port is taken.
    """
    reviews = _Reviews(folder)
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(reviews))
    thread = threading.Thread(target=server.serve_forever, name="videosafety-review", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/?token={reviews.token}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(reviews: _Reviews) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            told = parse_qs(url.query)
            if not self._allowed(told.get("token", [""])[0]):
                return
            if url.path == "/":
                self._send(200, (TEMPLATES / "review.html").read_bytes(), "text/html; charset=utf-8")
            elif url.path == "/queue":
                self._send(200, json.dumps(reviews.shown(told.get("reviewer", [""])[0])).encode(), "application/json")
            elif url.path.startswith("/clip/") and (clip := reviews.clip(url.path.removeprefix("/clip/"))) is not None:
                self._send_file(clip)
            else:
                self._send(404, b"not here", "text/plain")

        def do_POST(self) -> None:
            size = int(length) if (length := self.headers.get("Content-Length", "")).isdigit() else MAX_BODY + 1
            if size > MAX_BODY:
                self.close_connection = True
                self._send(413, b"too long", "text/plain")
                return
            data = self.rfile.read(size)
            if not self._allowed(self.headers.get("X-Token", "")):
                return
            try:
                reviews.decide(json.loads(data))
            except (ReviewError, ValueError, RecursionError) as error:
                self._send(400, str(error).encode(), "text/plain; charset=utf-8")
            else:
                self._send(200, b"{}", "application/json")

        def _allowed(self, token: str) -> bool:
            """Other pages in the same browser can reach this address too (by a form, or by a name of theirs that leads here): they lack
            the token, and the host is not ours."""
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host in ("127.0.0.1", "localhost") and hmac.compare_digest(token.encode(), reviews.token.encode()):
                return True
            self._send(403, b"open the address that the command printed", "text/plain")
            return False

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'")
            self.end_headers()
            self.wfile.write(body)

        def _send_file(self, file: Path) -> None:
            """A clip, whole or the range asked for: browsers seek by ranges."""
            total = file.stat().st_size
            start, end, status = 0, total - 1, 200
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end, status = int(found[1]), min(int(found[2] or total - 1), total - 1), 206
                if start > end:
                    self._send(416, b"", "text/plain")
                    return
            self.send_response(status)
            self.send_header("Content-Type", "video/mp4")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start + 1))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{end}/{total}")
            self.end_headers()
            with open(file, "rb") as opened:
                opened.seek(start)
                left = end - start + 1
                try:
                    while left and (chunk := opened.read(min(_CHUNK, left))):
                        self.wfile.write(chunk)
                        left -= len(chunk)
                except (BrokenPipeError, ConnectionResetError):  # the reader went on to the next clip
                    self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """No line for every request."""

    return Handler
