"""Servers for tests: a small real model behind llama.cpp's OpenAI-compatible server, and an address where nobody answers."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def llama_server(model: Path, slots: int = 2, context: int = 4096) -> Iterator[str]:
    """Serve a GGUF file in a process of its own, on a free port and one core; yields the base URL, which ends in /v1.

    slots: requests at once, which share `context` tokens.

    Raises:
        RuntimeError: the server did not start; the message has the end of its log.
    """
    command = [sys.executable, __file__, str(model), str(slots), str(context)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as child,
    ):
        try:
            assert child.stdout is not None
            address = next((line.strip() for line in child.stdout if line.startswith("http://")), None)
            if address is None:
                log.seek(0)
                raise RuntimeError(f"the server for {model.name} did not start:\n{log.read()[-2000:]}")
            yield f"{address}/v1"
        finally:
            child.kill()


@contextmanager
def dead_address() -> Iterator[str]:
    """A base URL whose port refuses every connection: it is taken, so that nothing else can open it, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def serve(model: str, slots: int, context: int) -> None:
    """Serve until standard input closes, so that the server never outlives the tests. Prints its address."""
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # more threads wait in a loop and starve a busy machine
    params.n_parallel, params.n_ctx, params.port = slots, context, 0
    server = Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
