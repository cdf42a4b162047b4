"""One thin layer over the async OpenAI client: own timeouts, few retries, concurrency that adapts, failures with a type."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import openai

from .redact import one_line

ATTEMPTS = 5  # calls for one row
TIMEOUTS = 2  # of these may run into the timeout
BACKOFF = 0.5  # seconds; doubles with every attempt
MAX_BACKOFF = 20.0
MAX_RETRY_AFTER = 120.0  # a server that wants more is out for this run
START = 16  # calls at once
GONE_AFTER = 32  # rows in a row to which a server gave no answer at all
GONE_FOR = 30.0  # seconds until it is asked again
# Not every server knows these; one that says so is asked without them from then on.
OPTIONAL = ("response_format", "temperature", "chat_template_kwargs")
_FILTERED = re.compile(
    r"content[ _]filter|content_policy_violation|content management policy|ResponsibleAIPolicyViolation|data_?inspection_?failed"
    r"|flagged by moderation",
    re.IGNORECASE,
)


class JudgeFailed(Exception):
    """No reply that could be read, after all retries. The message is one line without secrets."""


class JudgeRefused(Exception):
    """The judge or its provider will not judge this content: no outage, and no use in asking again."""


class _TryAgain(Exception):
    """A failure that may pass. `after`: seconds that the server wants to be left alone; `crowded`: a sign of too many calls."""

    def __init__(self, why: str, *, after: float = 0.0, crowded: bool = False, timeout: bool = False, silent: bool = False) -> None:
        super().__init__(why)
        self.after, self.crowded, self.timeout, self.silent = after, crowded, timeout, silent


Pairs = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said. `text` may be empty; `places`: each token with the (token, natural log-probability) pairs that could have stood
    there, None where the server gives none."""

    text: str
    finish: str
    places: tuple[tuple[str, Pairs], ...] | None
    model: str

    @property
    def top(self) -> Pairs | None:
        """The pairs at the first place, None without any."""
        return self.places[0][1] if self.places else None


class Limiter:
    """How many calls run at once: one more after each success until the first sign of crowding, which halves it; then slowly up again.

    The scheme is TCP's (slow start, additive increase, multiplicative decrease). One loop only.
    """

    def __init__(self, start: int, most: int) -> None:
        self.limit, self.most = float(min(start, most)), most
        self._running = 0
        self._free = asyncio.Condition()
        self._crowded_at = -1.0
        self._resume_at = 0.0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a place and hold it; yields the time at which it was got."""
        async with self._free:
            await self._free.wait_for(lambda: self._running < int(self.limit))
            self._running += 1
        try:
            while (wait := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            yield time.monotonic()
        finally:
            self._running -= 1
            async with self._free:
                self._free.notify(2)  # the place that is free now, and one that a larger limit may have made

    def went_well(self) -> None:
        step = 1.0 if self._crowded_at < 0 else 1.0 / self.limit
        self.limit = min(float(self.most), self.limit + step)

    def crowded(self, since: float, pause: float) -> None:
        """A call that began at `since` met a crowd. Calls that ran beside it say nothing new: only one halving for all of them."""
        self._resume_at = max(self._resume_at, time.monotonic() + pause)
        if since > self._crowded_at:
            self._crowded_at = time.monotonic()
            self.limit = max(1.0, self.limit / 2)


def concurrency() -> tuple[int, int]:
    """(start, most) calls at once of this process: VIDEOSAFETY_JUDGE_CONCURRENCY (64) for all ranks together.

    Raises:
        JudgeFailed: the variable is not a whole number above 0.
    """
    text = os.environ.get("VIDEOSAFETY_JUDGE_CONCURRENCY", "64")
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise JudgeFailed(f"VIDEOSAFETY_JUDGE_CONCURRENCY must be a whole number above 0, got {text!r}")
    ranks = max(1, int(os.environ.get("WORLD_SIZE", "1")))
    return max(1, START // ranks), max(1, int(text) // ranks)


class _Session:
    """What belongs to one event loop: connections and places."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.limiter = Limiter(*concurrency())
        # With a connection pool of its own the client does not try to close it from another loop when it is collected.
        pool = openai.DefaultAsyncHttpxClient()
        self.api = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, http_client=pool)


class Client:
    """Asks one model of one server.

    base_url: where the server's `/chat/completions` is. key_name: the environment variable with the key, read when the first call is
    made; key: used where the variable is not set, None where there must be one.
    timeout: seconds for one call from the first byte sent to the last one read; VIDEOSAFETY_JUDGE_TIMEOUT (60) when None.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_name: str,
        key: str | None = None,
        *,
        timeout: float | None = None,
        backoff: float = BACKOFF,
    ) -> None:
        self.base_url, self.model, self.key_name, self.key = base_url, model, key_name, key
        self.timeout = float(os.environ.get("VIDEOSAFETY_JUDGE_TIMEOUT", "60")) if timeout is None else timeout
        self.backoff = backoff
        self._refused_parameters: set[str] = set()
        self._session: _Session | None = None
        self._silent = 0
        self._gone_until = 0.0

    async def ask(self, prompt: str | list[dict[str, Any]], parameters: dict[str, Any]) -> Reply:
        """One reply to chat messages, or to raw text (`/completions`). `parameters` are the other fields of the request's body.

        Raises:
            JudgeRefused: a content filter or a refusal field in place of a reply.
            JudgeFailed: anything else that is not a reply, retried where that may help.
        """
        session = self._here()
        last, timeouts = _TryAgain("not asked"), 0
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with session.limiter.slot() as since:
                    self._check_gone()
                    try:
                        reply = await self._call(session.api, prompt, parameters)
                    except _TryAgain as error:
                        if error.crowded:
                            session.limiter.crowded(since, error.after)
                        raise
                    session.limiter.went_well()
            except _TryAgain as error:
                last, timeouts = error, timeouts + error.timeout
                if attempt == ATTEMPTS or timeouts == TIMEOUTS:
                    break
                await asyncio.sleep(error.after + random.uniform(0, min(MAX_BACKOFF, self.backoff * 2**attempt)))  # noqa: S311
            else:
                self._silent = 0
                return reply
        if not last.silent:
            self._silent = 0
        else:
            self._silent += 1
            if self._silent == GONE_AFTER:
                self._gone_until = time.monotonic() + GONE_FOR
        raise JudgeFailed(one_line(f"{last} (asked {attempt} times)"))

    async def close(self) -> None:
        """Close the connections of the running loop."""
        session, self._session = self._session, None
        if session is not None and session.loop is asyncio.get_running_loop():
            await session.api.close()

    def _check_gone(self) -> None:
        """A server that answered nothing for long is asked by one row now and then: a run must end, and what failed is not cached."""
        if self._silent >= GONE_AFTER:
            if time.monotonic() < self._gone_until:
                raise JudgeFailed(f"the server gave no answer to {self._silent} rows in a row; not asked again for a while")
            self._gone_until = time.monotonic() + GONE_FOR

    def _here(self) -> _Session:
        if self._session is None or self._session.loop is not asyncio.get_running_loop():
            key = os.environ.get(self.key_name) or self.key
            if not key:
                raise JudgeFailed(f"{self.key_name} is not set")
            self._session = _Session(self.base_url, key)
        return self._session

    async def _call(self, api: openai.AsyncOpenAI, prompt: str | list[dict[str, Any]], parameters: dict[str, Any]) -> Reply:
        while True:
            body = {name: value for name, value in parameters.items() if name not in self._refused_parameters}
            common: dict[str, Any] = {"model": self.model, "timeout": self.timeout}
            if isinstance(prompt, str):
                call = api.completions.with_raw_response.create(prompt=prompt, extra_body=body, **common)
            else:
                # As an extra field the messages are sent as they are: the client would walk through them first, for a third of the work.
                call = api.chat.completions.with_raw_response.create(messages=[], extra_body={"messages": prompt, **body}, **common)
            try:
                # The client's own timeout counts from byte to byte: a server that trickles would hold it for ever.
                response = await asyncio.wait_for(call, self.timeout)
                return _read(response.http_response.content)
            except (asyncio.TimeoutError, openai.APITimeoutError) as error:
                raise _TryAgain(f"no reply within {self.timeout:g} s", crowded=True, timeout=True, silent=True) from error
            except openai.APIConnectionError as error:
                raise _TryAgain(f"connection failed: {error.__cause__ or error}", silent=True) from error
            except openai.APIStatusError as error:
                unknown = _unknown_parameter(error, body)
                if unknown is None:
                    raise _typed(error) from error
                self._refused_parameters.add(unknown)
            except openai.OpenAIError as error:
                raise JudgeFailed(one_line(f"{type(error).__name__}: {error}")) from error


def _unknown_parameter(error: openai.APIStatusError, sent: dict[str, Any]) -> str | None:
    """The optional parameter that a server does not know, where that is what the error says."""
    if error.status_code not in (400, 422):
        return None
    named = str(error.param or "") if isinstance(error.body, dict) and error.param else error.message
    found = [name for name in OPTIONAL if name in sent and (name in named or (name == "response_format" and "json_schema" in named))]
    return found[0] if found else None


def _typed(error: openai.APIStatusError) -> Exception:
    """What an HTTP status means for a row: try again, refused, or failed."""
    status = error.status_code
    why = one_line(f"HTTP {status}: {error.message}")
    if status in (400, 403) and _FILTERED.search(f"{error.code} {error.message}"):
        return JudgeRefused(why)
    if status == 429 and error.code != "insufficient_quota":
        after = _retry_after(error.response.headers.get("retry-after"))
        return _TryAgain(why, after=after, crowded=True) if after <= MAX_RETRY_AFTER else JudgeFailed(f"{why} (wants {after:.0f} s)")
    if status >= 500:
        after = _retry_after(error.response.headers.get("retry-after"))
        return _TryAgain(why, after=min(after, MAX_BACKOFF))
    if status == 408:
        return _TryAgain(why, crowded=True, timeout=True)
    return JudgeFailed(why)


def _retry_after(header: str | None) -> float:
    """Seconds in a Retry-After header: a number, or a date; 0 without one or where it makes no sense."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, seconds) if seconds == seconds else 0.0


def _read(content: bytes) -> Reply:
    """The one choice of a reply's body."""
    try:
        body = json.loads(content)
        (choice,) = body["choices"]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        text, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        places = _places(choice.get("logprobs"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JudgeFailed(one_line(f"not a completion: {content[:200].decode(errors='replace')}")) from error
    if refusal or finish in ("content_filter", "refusal"):
        raise JudgeRefused(one_line(f"finish_reason {finish}: {refusal or text or ''}"))
    return Reply(text if isinstance(text, str) else "", str(finish or ""), places, str(body.get("model") or ""))


def _places(logprobs: Any) -> tuple[tuple[str, Pairs], ...] | None:
    """Log-probabilities in either of the two shapes that servers use: of chats, and of completions."""
    if not logprobs:
        return None
    if "content" in logprobs:
        steps = [(one["token"], [(top["token"], top["logprob"]) for top in one["top_logprobs"]]) for one in logprobs["content"] or ()]
    else:
        steps = [(token, list((top or {}).items())) for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)]
    return tuple((str(token), tuple((str(spelled), float(logprob)) for spelled, logprob in top)) for token, top in steps) or None


def host_of(url: str) -> str:
    """Host and port of a URL, without user and password: how a judge's id names a server."""
    return urlsplit(url).netloc.rpartition("@")[2]
