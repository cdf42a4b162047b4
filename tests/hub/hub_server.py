"""A test server that speaks the Hub's protocol to the real huggingface_hub, transformers and datasets. It is not the Hub: never deploy it.

    with hub_server(folder) as hub:          # hub.url, hub.store (its state), hub.log (requests seen)
        hub.fail("PUT /lfs/", "cut")         # the next such request loses its connection; see Fault for the kinds
        subprocess.run([...], env=hub.env(home))   # HF_ENDPOINT, HF_TOKEN of `alice`, HF_HOME=home, Xet or LFS

Users: alice and bob write to safety-lab and to their own names, carol to her own; REAL tokens never work here, these never there.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_calls import ALICE, Call, Reply
from hub_routes import ROUTES
from hub_store import Refusal, Store
from xet_server import XetStore

BLOCK = 1 << 16


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD /path" matches `pattern`, `times` times.

    kind: a status ("429", "500", "503", "404"…) with Retry-After: 0 · "cut": half of the request's body is read, then the connection
    is closed · "cut_reply": half of the reply's body is sent · "etag": a wrong one · "garbage": one byte of the reply's body is changed ·
    "slow": the reply waits for `seconds` · "hang": it never comes (until the server stops) · "lost": the request is done, its reply is not
    sent.
    """

    pattern: str
    kind: str
    times: int = 1
    seconds: float = 1.0
    message: str = "a fault that the test asked for"
    seen: int = 0


class Hub:
    """A running server and what is in it."""

    def __init__(self, folder: Path, xet: bool = True) -> None:
        self.store, self.xet, self.has_xet = Store(folder), XetStore(folder), xet
        self.faults: list[Fault] = []
        self.log: list[str] = []  # "METHOD /path -> status"
        self.texts: list[str] = []  # everything text-like that was sent: for tests that look for secrets
        self.stopped = threading.Event()
        self.counting = threading.Lock()
        self.url = ""
        self.cdn = ""  # the same server by another name: clients treat it as a foreign host

    def fail(self, pattern: str, kind: str, times: int = 1, **more: Any) -> Fault:
        """Have requests that match (re.search in "METHOD /path?query") go wrong."""
        fault = Fault(pattern, kind, times, **more)
        self.faults.append(fault)
        return fault

    def take_fault(self, request: str) -> Fault | None:
        with self.counting:
            for fault in self.faults:
                if fault.seen < fault.times and re.search(fault.pattern, request):
                    fault.seen += 1
                    return fault
        return None

    def seen(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, line)) for line in self.log)

    def wait_for(self, pattern: str, seconds: float = 60) -> None:
        """Until a request that matches has come in; AssertionError when none does."""
        end = time.monotonic() + seconds
        while not self.seen(pattern):
            assert time.monotonic() < end, f"no request {pattern} within {seconds} s; there were {self.log}"
            time.sleep(0.02)

    def settings(self, home: Path, token: str | None = ALICE) -> dict[str, str]:
        """The environment variables that send a process here, and nowhere else."""
        told = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "0" if self.has_xet else "1",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "50ms",
            "HF_XET_CLIENT_RETRY_MAX_DURATION": "5s",
            "HF_XET_TELEMETRY_ENABLED": "0",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return told | ({"HF_TOKEN": token} if token else {})

    def env(self, home: Path, token: str | None = ALICE) -> dict[str, str]:
        """A whole environment for a subprocess."""
        gone = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"}
        return {name: value for name, value in os.environ.items() if name not in gone} | self.settings(home, token)


class Handler(BaseHTTPRequestHandler):
    """From bytes to a Call, from a Reply to bytes, with the fault that was asked for."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = BLOCK
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal: see Hub.log."""

    def serve(self) -> None:
        place = urlsplit(self.path)
        self.left = int(self.headers.get("content-length") or 0)
        self.chunked = "chunked" in self.headers.get("transfer-encoding", "")
        query = {name: values[0] for name, values in parse_qs(place.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(self.hub, self.command, place.path, query, headers, self.read_all, self.save_to)
        fault = self.hub.take_fault(f"{self.command} {self.path}")
        kind = fault.kind if fault else ""
        if fault and kind == "slow":
            self.hub.stopped.wait(fault.seconds)
        if fault and kind == "hang":
            self.hub.log.append(f"{self.command} {self.path} -> hangs")
            self.hub.stopped.wait(600)
        if kind in ("cut", "hang"):
            self.rfile.read(self.left // 2)
            self.hub.log.append(f"{self.command} {self.path} -> {kind}")
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault and kind.isdigit():
            reply = Reply({"error": fault.message}, int(kind), {"Retry-After": "0", "X-Error-Message": fault.message})
        else:
            try:
                reply = answer(call)
            except Refusal as refusal:
                told = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
                reply = Reply({"error": refusal.message}, refusal.status, told)
        self.discard()
        self.hub.log.append(f"{self.command} {self.path} -> {kind or reply.status}")
        if kind == "lost":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send(call, reply, kind)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    # --- the body of a request --------------------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[bytes]:
        if self.chunked:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            self.chunked = False
        while self.left:
            block = self.rfile.read(min(self.left, BLOCK))
            if not block:
                raise ConnectionResetError("the client is gone")
            self.left -= len(block)
            yield block

    def read_all(self) -> bytes:
        data = b"".join(self.blocks())
        if b"\0" not in data:
            self.hub.texts.append(data.decode("utf-8", "replace"))
        return data

    def save_to(self, path: Path) -> None:
        with open(path, "wb") as out:
            for block in self.blocks():
                out.write(block)

    def discard(self) -> None:
        for _ in self.blocks():
            pass

    # --- the reply --------------------------------------------------------------------------------------------------------------

    def send(self, call: Call, reply: Reply, kind: str) -> None:
        body, headers = reply.body, dict(reply.headers)
        if not isinstance(body, bytes | Path):
            text = body if isinstance(body, str) else "" if body is None else json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
            body = text.encode()
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        first, last, status = 0, size - 1, reply.status
        if status == 200 and (span := call.span()) and self.command in ("GET", "HEAD"):
            first, last = span[0], min(size - 1, size - 1 if span[1] is None else span[1])
            status = 206 if first < size else 416
            headers["Content-Range"] = f"bytes {first}-{last}/{size}" if status == 206 else f"bytes */{size}"
        length = max(0, last + 1 - first) if status != 416 else 0
        if kind == "etag":
            headers = {name: '"' + "0" * 40 + '"' if "etag" in name.lower() else value for name, value in headers.items()}
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length), "Accept-Ranges": "bytes"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or not length:
            self.wfile.flush()
            return
        if isinstance(body, Path):
            with open(body, "rb") as file:
                file.seek(first)
                data = file.read(length)
        else:
            data = body[first : last + 1]
        if kind == "garbage":
            data = bytes([data[0] ^ 1]) + data[1:]
        if kind == "cut_reply":
            self.wfile.write(data[: length // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(data)
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is a defect of this server, and shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def answer(call: Call) -> Reply:
    """Find the route and follow it."""
    for method, pattern, function in ROUTES:
        wanted = "GET" if call.method == "HEAD" else call.method
        if method == wanted and (found := pattern.fullmatch(call.path)):
            call.parts = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
            reply: Reply = function(call)
            return reply
    return Reply({"error": f"this test server has no {call.method} {call.path}"}, 404)


@contextmanager
def hub_server(folder: Path, xet: bool = True) -> Iterator[Hub]:
    """Serve on a free port of this machine, in threads of this process, with all state in `folder` and memory."""
    hub = Hub(folder, xet)
    server = Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    port = server.server_address[1]
    hub.url, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
