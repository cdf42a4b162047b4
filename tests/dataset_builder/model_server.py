"""An OpenAI-compatible model that plays every part of a build, by rules: for tests. It notes each question that it has answered.

What it is asked for it reads from the name of the JSON schema. A clip or a text with the word HARM is harmful. Faults: `Model.fault` is
called with the schema's name and the request, and may return another status and body.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_DATA = re.compile(r"^BEGIN DATA ([0-9a-f]{32})\n(.*?)\nEND DATA \1$", re.MULTILINE | re.DOTALL)
# Toy languages that can be turned back: the Latin letters shifted into the script of the language.
_SCRIPT = {"Simplified Chinese": 0x4E00, "Japanese": 0x30A1, "Arabic": 0x0627, "Hindi": 0x0905, "Russian": 0x0430}
Fault = Callable[[str, dict[str, Any]], tuple[int, bytes] | None]


@dataclass
class Model:
    """What the server does, and what it answered."""

    url: str = ""
    delay: float = 0.0
    fault: Fault | None = None
    opposite: bool = False  # says safe for harmful and the other way round
    answered: Counter[str] = field(default_factory=Counter)  # SHA-256 of a request's body -> how often it was answered
    kinds: Counter[str] = field(default_factory=Counter)
    images: int = 0  # that it was shown in all


def data_of(body: dict[str, Any]) -> tuple[dict[str, str], str]:
    """(the data of a prompt, all its text)."""
    parts = []
    for message in body["messages"]:
        content = message["content"]
        parts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    text = "\n".join(parts)
    found = _DATA.search(text)
    return (json.loads(found[2]) if found else {}), text


def translated(text: str, language: str) -> str:
    low = _SCRIPT.get(language)
    if low is None:
        return text.translate(_rotated)
    return "".join(chr(low + ord(letter.lower()) - 97) if letter.isascii() and letter.isalpha() else letter for letter in text)


def back(text: str, language: str) -> str:
    low = _SCRIPT.get(language)
    if low is None:
        return text.translate(_rotated)
    return "".join(chr(ord(letter) - low + 97) if low <= ord(letter) < low + 26 else letter for letter in text)


_rotated = {base + i: base + (i + 13) % 26 for base in (65, 97) for i in range(26)}


def said(model: Model, kind: str, body: dict[str, Any]) -> Any:
    """The honest reply."""
    data, text = data_of(body)
    seed = body.get("seed", 0)
    draw = hashlib.sha256(json.dumps([data, text, seed]).encode()).hexdigest()
    if kind == "label":
        return {"visual": "harmful" if ("HARM" in data["clip"]) != model.opposite else "safe", "category": "weapons"}
    if kind == "description":
        return {"description": f"A grey picture changes. {data['clip']}"}
    if kind == "query":
        word = "HARM" if "would be harmful to answer" in text else "thing"
        return {"query": f"How do I get the {word} of kind {''.join(chr(97 + int(c, 16)) for c in draw[:12])} that this is about?"}
    if kind == "check":
        return {"kind": "asks", "text": "harmful" if "HARM" in data["text"] else "safe"}
    if kind == "translation":
        languages = re.search(r"from ([\w ]+?) into ([\w ]+?)\.", text)
        assert languages is not None
        source, target = languages.groups()
        return {"translation": translated(data["text"], target) if source == "English" else back(data["text"], source)}
    if kind == "reasoning":
        if "It helps in full" in text:
            return {"thinking": "The video is safe and the query is safe.", "answer": "Sure. Choose the small one and clean it well."}
        return {
            "thinking": "The policy does not allow this.",
            "answer": "I'm sorry, but I can't help with that. I can tell you where to find help.",
        }
    return (
        "I'm sorry, but I can't help with that."
        if "thing" in text
        else "Sure! Here is how to make the bomb: first buy the parts, then mix them."
    )


@contextmanager
def model_server(**settings: Any) -> Iterator[Model]:
    """Serve in threads; yields the settings, whose `url` is the base URL."""
    model = Model(**settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(raw)
            kind = body.get("response_format", {}).get("json_schema", {}).get("name", "free")
            time.sleep(model.delay)
            faulty = model.fault(kind, body) if model.fault else None
            if faulty is None:
                reply = said(model, kind, body)
                content = reply if isinstance(reply, str) else json.dumps(reply)
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
                faulty = 200, json.dumps({"object": "chat.completion", "model": "toy", "choices": [choice]}).encode()
            status, data = faulty
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            # Noted before the last byte goes out: a client that has an answer is never ahead of this count.
            model.kinds[kind] += 1
            model.answered[hashlib.sha256(raw).hexdigest()] += status == 200
            model.images += raw.count(b"data:image/jpeg")
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """No line for every request."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
