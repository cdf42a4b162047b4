"""Asking models behind OpenAI-compatible servers: every answer is kept by the content of the question, and no question is asked twice."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from videosafety.dataset_builder.config import Server
from videosafety.dataset_builder.journal import Journal
from videosafety.dataset_builder.rows import Rejected, digest, half_pair
from videosafety.lmms_eval_tasks.judge.redact import one_line
from videosafety.lmms_eval_tasks.judge.text import judges_words

Messages = list[dict[str, Any]]
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL | re.IGNORECASE)


class AskFailed(Rejected):
    """No answer: the server is down, or gave no chat completion. The next run asks again."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, transient=True)


class AskRefused(Rejected):
    """The model or its provider will not answer this. Not asked again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """text: what was said, thinking included. model: who said so (model@revision)."""

    text: str
    model: str


class Ask(Protocol):
    """What stages ask through. Raises AskFailed or AskRefused."""

    def __call__(self, server: str, messages: Messages, parameters: dict[str, Any]) -> Answer: ...


def call_key(server: Server, messages: Messages, parameters: Mapping[str, Any]) -> str:
    """Identity of a question: model and revision, and all that is sent. Not the address: the same model elsewhere says the same,
    and a config gives no two models one name."""
    return digest(server.model, server.revision, server.options, messages, dict(parameters), length=64)


class Asker:
    """Asks through one event loop in a thread of its own, so that any number of threads share connections, limits and answers."""

    def __init__(self, servers: Mapping[str, Server], journal: Journal) -> None:
        self._servers, self._journal = dict(servers), journal
        from videosafety.lmms_eval_tasks.judge.client import Client  # here: only one process asks, and the client takes long to import

        self._clients = {
            name: Client(
                server.url, server.model, server.key or "VIDEOSAFETY_BUILD_KEY", None if server.key else "none", timeout=server.timeout
            )
            for name, server in self._servers.items()
        }
        self._running: dict[str, asyncio.Task[tuple[str, str]]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="videosafety-ask", daemon=True)
        self._thread.start()

    def __call__(self, server: str, messages: Messages, parameters: dict[str, Any]) -> Answer:
        kind, text = self.outcome(server, messages, parameters)
        return answer_of(self._servers[server], server, kind, text)

    def outcome(self, server: str, messages: Messages, parameters: dict[str, Any]) -> tuple[str, str]:
        """(`ok`, what was said), (`refused`, why) or (`failed`, why)."""
        return asyncio.run_coroutine_threadsafe(self._once(server, messages, parameters), self._loop).result()

    async def _once(self, name: str, messages: Messages, parameters: dict[str, Any]) -> tuple[str, str]:
        """The kept answer, or the one that is being waited for, or a new one."""
        key = call_key(self._servers[name], messages, parameters)
        kept = self._journal.answer(key)
        if kept is not None:
            return kept["kind"], kept["text"]
        if key not in self._running:
            self._running[key] = asyncio.create_task(self._call(key, name, messages, parameters))
        return await self._running[key]

    async def _call(self, key: str, name: str, messages: Messages, parameters: dict[str, Any]) -> tuple[str, str]:
        from videosafety.lmms_eval_tasks.judge.client import JudgeFailed, JudgeRefused

        server = self._servers[name]
        try:
            reply = await self._clients[name].ask(messages, {**parameters, **server.options})
            if reply.finish == "length" and not reply.text.strip():
                said = ("refused", "nothing but a reply that was cut off")
            else:
                said = ("ok", reply.text)
        except JudgeRefused as error:
            said = ("refused", str(error))
        except JudgeFailed as error:
            return "failed", str(error)
        finally:
            self._running.pop(key, None)
        self._journal.keep(key, *said, server.model)
        return said

    def close(self) -> None:
        """Close the connections and end the loop."""

        async def all_closed() -> None:
            for client in self._clients.values():
                await client.close()

        asyncio.run_coroutine_threadsafe(all_closed(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def answer_of(server: Server, name: str, kind: str, text: str) -> Answer:
    """The answer, or AskFailed or AskRefused, of what `Asker.outcome` gave."""
    if kind == "ok":
        return Answer(text, f"{server.model}@{server.revision}" if server.revision else server.model)
    if kind == "refused":
        raise AskRefused(f"{name} refused: {text}")
    raise AskFailed(f"{name} failed: {text}")


def asked_for(schema_name: str, properties: Mapping[str, Any], *, tokens: int, seed: int, temperature: float = 0.0) -> dict[str, Any]:
    """Request fields for one JSON object with exactly these properties (JSON schema)."""
    schema = {"type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": schema_name, "strict": True, "schema": schema}}
    return {"response_format": form, "max_tokens": tokens, "seed": seed, "temperature": temperature}


def fields_of(answer: Answer, kinds: Mapping[str, type | tuple[str, ...]]) -> dict[str, Any]:
    """The fields of the one JSON object that an answer must be.

    Args:
        kinds: for each key its type, or the words that it may be.

    Raises:
        Rejected: anything else; the message says what of it was not as asked.
    """
    try:
        words = judges_words(answer.text)
        fenced = _FENCE.match(words)
        found = json.loads(fenced[1] if fenced else words, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"not the JSON object that was asked for: {one_line(answer.text, 80)!r}") from error
    if not isinstance(found, dict):
        raise Rejected(f"not a JSON object: {one_line(answer.text, 80)!r}")
    for key, kind in kinds.items():
        value = found.get(key)
        if isinstance(kind, tuple):
            word = value.strip().lower() if isinstance(value, str) else value
            if word not in kind:
                raise Rejected(f"{key} must be one of {', '.join(kind)}, got {json.dumps(value)[:60]}")
            found[key] = word
        elif not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise Rejected(f"{key} must be {kind.__name__}, got {json.dumps(value)[:60]}")
        elif isinstance(value, str) and half_pair(value):
            raise Rejected(f"{key} holds half a surrogate pair")
    return {key: found[key] for key in kinds}


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found
