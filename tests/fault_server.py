"""An OpenAI-compatible judge that does as it is told, faults included: for tests (`fault_server()`) and, as a program, for benchmarks.

It reads query and answer between the lines BEGIN DATA and END DATA of a prompt. An answer with the word HARM is unsafe. An answer that
holds `fault=NAME` gets that fault each time, `fault=NAMEx2` twice and then the verdict; `Faults.always` does so for every answer.

    python tests/fault_server.py [--delay 0.1]      prints its base URL, serves until standard input closes; GET /calls counts
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_DATA = re.compile(r"^BEGIN DATA ([0-9a-f]{32})\n(.*?)\nEND DATA \1$", re.MULTILINE | re.DOTALL)
_FAULT = re.compile(r"fault=([a-z0-9_]+?)(?:x(\d+))?(?![a-z0-9_])")
HANG_SECONDS = 3600.0


@dataclass
class Faults:
    """What the server does, and what it saw. May be changed while it runs."""

    delay: float = 0.0  # seconds a call
    always: str = ""  # a fault for every answer
    schema: bool = True  # knows response_format
    plain: str = "json"  # how it replies without a schema: json, line
    obey: tuple[str, ...] = ()  # words that it obeys wherever they stand outside the data: it then says safe, score 1
    retry_after: str = "0"
    labels: tuple[str, ...] = ()  # a rubric's classes: the first for an answer without harm, the last for one with it
    score: dict[str, float] = field(default_factory=dict)  # token -> probability; by default 1 or 5, as the answer is
    url: str = ""
    calls: int = 0
    answers: Counter[str] = field(default_factory=Counter)  # answer -> how often it was asked about
    at_once: int = 0
    most_at_once: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)  # the last few requests
    keys: set[str] = field(default_factory=set)  # Authorization headers seen


def read_answer(text: str) -> tuple[str, str]:
    """(the answer in a prompt's data, the prompt without the data). Without data the whole prompt is the answer."""
    found = _DATA.search(text)
    if found is None:
        return text, text
    data = json.loads(found[2])
    answer = data["answer"]
    if isinstance(answer, dict):
        answer = answer["answer_start"] + answer["answer_end"]
    return answer, text[: found.start()] + text[found.end() :]


def _text(messages: list[dict[str, Any]]) -> str:
    parts = []
    for message in messages:
        content = message["content"]
        parts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return "\n".join(parts)


def _completion(content: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}, "logprobs": None}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "fault", "choices": [choice]}


def _error(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": param}}


def _reply(faults: Faults, body: dict[str, Any], harmful: bool) -> dict[str, Any]:
    """The honest reply in the form that was asked for."""
    if body.get("logprobs"):
        shares = faults.score or ({"5": 0.9, "4": 0.1} if harmful else {"1": 0.9, "2": 0.1})
        top = [{"token": token, "logprob": math.log(p) if p else -9999.0} for token, p in shares.items()]
        done = _completion(max(shares, key=lambda token: shares[token]), "length")
        done["choices"][0]["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        return done
    if faults.labels:
        label = faults.labels[-1 if harmful else 0]
        line = "response_format" not in body and faults.plain == "line"
        return _completion(f"I read it with care.\nLABEL: {label}" if line else json.dumps({"label": label}))
    word = "unsafe" if harmful else "safe"
    if "response_format" not in body and faults.plain == "line":
        return _completion(f"I read the answer with care.\nVERDICT: {word}")
    return _completion(json.dumps({"verdict": word, "stance": "complies" if harmful else "refuses"}))


def _fault(name: str, key: str) -> tuple[int, dict[str, Any] | bytes]:
    """Status and body of a fault that has them."""
    both = '{"verdict": "safe", "stance": "refuses"} {"verdict": "unsafe", "stance": "complies"}'
    return {
        "429": (429, _error("slow down", "rate_limit_exceeded")),
        "500": (500, _error("overloaded")),
        "503": (503, b"<html>bad gateway</html>"),
        "garbage": (200, b"\x00\xff<html>not a completion"),
        "deep": (200, b"[" * 100_000),
        "no_choice": (200, b'{"choices": []}'),
        "filter": (400, _error("The response was filtered: content management policy", "content_filter")),
        "filter_finish": (200, _completion(None, "content_filter")),
        "refusal_field": (200, _completion(None, refusal="I cannot judge this.")),
        "refuse": (200, _completion("I'm sorry, but I can't help with that request.")),
        "null": (200, _completion(None)),
        "empty": (200, _completion("")),
        "mixed": (200, _completion(both)),
        "prose": (200, _completion('The answer says {"verdict": "safe"}, but I find it unsafe.')),
        "length": (200, _completion('{"verdict": "safe"}', "length")),
        "leak": (401, _error(f"Incorrect API key provided: {key}. Header was Bearer {key}", "invalid_api_key")),
        "echo": (200, _completion(f"your key is {key}")),
        "bad_request": (400, _error("the prompt is too long", "context_length_exceeded")),
    }[name]


async def _handle(faults: Faults, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n")[1:])}
            content = await reader.readexactly(int(headers.get("content-length", "0")))
            if head.startswith("GET /calls"):
                _send(writer, 200, {"calls": faults.calls, "answers": faults.answers}, "0")
                continue
            if not await _answer(faults, writer, json.loads(content), headers.get("authorization", "").removeprefix("Bearer ")):
                return
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        return  # the client is gone, or the test is over
    finally:
        writer.close()


async def _answer(faults: Faults, writer: asyncio.StreamWriter, body: dict[str, Any], key: str) -> bool:
    """Reply to one call; False when the connection is to be cut."""
    answer, rest = read_answer(_text(body.get("messages") or [{"content": body["prompt"]}]))
    faults.calls += 1
    faults.answers[answer] += 1
    faults.keys.add(key)
    faults.bodies = [*faults.bodies[-9:], body]
    faults.at_once += 1
    faults.most_at_once = max(faults.most_at_once, faults.at_once)
    try:
        await asyncio.sleep(faults.delay)
        if "response_format" in body and not faults.schema:
            _send(writer, 400, _error("response_format is not supported here", param="response_format"), "0")
            return True
        found = _FAULT.search(answer)
        name, times = (found[1], int(found[2] or 1_000_000)) if found else (faults.always, 1_000_000)
        if not name or faults.answers[answer] > times:
            obeyed = any(words in rest for words in faults.obey)
            _send(writer, 200, _reply(faults, body, "HARM" in answer and not obeyed), "0")
        elif name == "hang":
            await asyncio.sleep(HANG_SECONDS)
        elif name == "cut":
            return False
        elif name == "cut_body":
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{"choices": [')
            return False
        elif name == "trickle":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n")
            for _ in range(5000):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        else:
            _send(writer, *_fault(name, key), faults.retry_after)
        return True
    finally:
        faults.at_once -= 1


def _send(writer: asyncio.StreamWriter, status: int, body: dict[str, Any] | bytes, retry_after: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    extra = f"retry-after: {retry_after}\r\n" if status == 429 else ""
    writer.write(
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(content)}\r\n\r\n".encode() + content
    )


async def _serve(faults: Faults) -> asyncio.Server:
    server = await asyncio.start_server(lambda r, w: _handle(faults, r, w), "127.0.0.1", 0, limit=1 << 24)
    faults.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    return server


@contextmanager
def fault_server(**settings: Any) -> Iterator[Faults]:
    """Serve in a thread; yields the settings, whose `url` is the base URL. Ends at once, whoever still waits."""
    faults, ready, loop = Faults(**settings), threading.Event(), asyncio.new_event_loop()
    server: list[asyncio.Server] = []

    def run() -> None:
        server.append(loop.run_until_complete(_serve(faults)))
        loop.call_soon(ready.set)  # not earlier: a stop between the two would be missed
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield faults
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds a call")
    args = parser.parse_args()
    with fault_server(delay=args.delay) as faults:
        print(faults.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
