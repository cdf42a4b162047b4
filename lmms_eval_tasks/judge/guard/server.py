"""Guard models behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp): chat messages or raw text, with log-probabilities.

The families that go through a chat template end with the answer as an assistant turn. llama.cpp's server goes on writing such a turn,
instead of judging it, unless it was started with `--no-prefill-assistant`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..verdict import Reason
from .base import Family, GuardError, Message, Prompt, Reading
from .media import data_url, show

TIMEOUT_S = 60.0  # from byte to byte
PATIENCE_S = 300.0  # for one prompt with all retries: a server that trickles would otherwise hold it for ever
RETRIES = 4  # by the client, with jitter, for timeouts, lost connections, 408, 409, 429 and 5xx only
TOP = 20
CHARACTERS_A_TOKEN = 4  # the tokenizer is on the server, so answers are cut by characters


class ServerEngine:
    """Asks a server that already holds the model, with as many calls at once as the LLM judges make; the server makes the batches."""

    def __init__(self, url: str, model: str, family: Family) -> None:
        self.url, self.model, self.family = url, model, family
        self._client: Any = None
        self._limiter: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def cut(self, text: str) -> tuple[str, str]:
        """The text up to about the family's `answer_tokens`, and a note where something was cut off."""
        most = self.family.answer_tokens * CHARACTERS_A_TOKEN
        return (text, "") if len(text) <= most else (text[:most], f"answer cut from {len(text)} to {most} characters")

    async def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """What the model says to each prompt, one call each, one after another.

        Raises:
            GuardError: judge_failed when the server cannot be reached, refuses the call or answers with something else than a
                completion; judge_refused for a content filter; media_error when a picture cannot be read.
        """
        return [await self._ask(show(prompt, data_url)) for prompt in prompts]

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.close()
        self._client = None

    async def _ask(self, prompt: Prompt) -> Reading:
        import openai

        from ..client import JudgeFailed, Limiter, concurrency

        if self._client is None or self._loop is not asyncio.get_running_loop():
            try:
                self._limiter = Limiter(*concurrency())
            except JudgeFailed as error:
                raise GuardError(Reason.JUDGE_FAILED, str(error)) from error
            self._loop = asyncio.get_running_loop()
            key = os.environ.get("OPENAI_API_KEY") or "none"
            self._client = openai.AsyncOpenAI(base_url=self.url, api_key=key, timeout=TIMEOUT_S, max_retries=RETRIES)
        common: dict[str, Any] = {"model": self.model, "max_tokens": self.family.max_tokens, "temperature": 0}
        wanted = bool(self.family.words)
        try:
            if isinstance(prompt, str):
                own_start = {"extra_body": {"add_special_tokens": False}} if prompt.startswith("<s>") else {}
                top = {"logprobs": TOP} if wanted else {}
                call = partial(self._client.completions.with_raw_response.create, prompt=prompt, **common, **top, **own_start)
            else:
                top = {"logprobs": True, "top_logprobs": TOP} if wanted else {}
                call = partial(self._client.chat.completions.with_raw_response.create, messages=prompt, **common, **top)
            async with self._limiter.slot() as since:
                try:
                    raw = await asyncio.wait_for(call(), PATIENCE_S)
                except (asyncio.TimeoutError, openai.APITimeoutError, openai.RateLimitError):
                    self._limiter.crowded(since, 0.0)
                    raise
                self._limiter.went_well()
        except asyncio.TimeoutError as error:
            raise GuardError(Reason.JUDGE_FAILED, f"{self.model} at {self.url}: no answer within {PATIENCE_S:g} s") from error
        except openai.APIStatusError as error:
            filtered = error.status_code == 400 and "content_filter" in error.response.text
            reason = Reason.JUDGE_REFUSED if filtered else Reason.JUDGE_FAILED
            raise GuardError(reason, f"{self.model}: {error.message[:300]}") from error
        except openai.APIError as error:
            raise GuardError(Reason.JUDGE_FAILED, f"{self.model} at {self.url}: {error.message[:300]}") from error
        said = reading(raw.text, self.family)
        if not isinstance(prompt, str) and said.text.startswith(_last_words(prompt)):
            raise GuardError(
                Reason.JUDGE_FAILED, "the server went on with the answer and did not judge it (llama.cpp: --no-prefill-assistant)"
            )
        return said


def _last_words(prompt: list[Message]) -> str:
    content = prompt[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)  # type: ignore[attr-defined]


def reading(body: str, family: Family) -> Reading:
    """The completion in a response's body, with the probabilities of the family's words where the first visible token stands.

    Raises:
        GuardError: judge_failed when the body is no completion, judge_refused when a content filter ended it.
    """
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if choice.get("finish_reason") == "content_filter":
            raise GuardError(Reason.JUDGE_REFUSED, "the server's content filter ended the verdict")
        if not isinstance(text, str):
            raise TypeError("no text")
        return Reading(text, _first(choice.get("logprobs"), family) if family.words else {})
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise GuardError(Reason.JUDGE_FAILED, f"not a completion: {body[:200]!r}") from error


def _first(logprobs: dict[str, Any] | None, family: Family) -> dict[str, float]:
    """Word -> probability, from either of the two shapes that servers use; empty without log-probabilities."""
    if not logprobs:
        return {}
    if "content" in logprobs:
        steps = [(one["token"], [(top["token"], top["logprob"]) for top in one["top_logprobs"]]) for one in logprobs["content"] or ()]
    else:
        steps = [(token, list((top or {}).items())) for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)]
    for token, top in steps:
        if token.strip():
            return {word: sum(math.exp(min(logprob, 0.0)) for spelled, logprob in top if spelled.strip() == word) for word in family.words}
    return {}
