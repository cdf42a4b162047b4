"""Guard models behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp): chat messages or raw text, with log-probabilities.

The families that go through a chat template end with the answer as an assistant turn. llama.cpp's server goes on writing such a turn,
instead of judging it, unless it was started with `--no-prefill-assistant`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from ..client import JudgeFailed, JudgeRefused, Reply
from ..llm import local_client
from ..verdict import Reason
from .base import Family, GuardError, Message, Prompt, Reading
from .media import data_url, show

TOP = 20
CHARACTERS_A_TOKEN = 4  # the tokenizer is on the server, so answers are cut by characters


class ServerEngine:
    """Asks a server that already holds the model, by the LLM judges' client: it never gets OpenAI's key. The server makes the batches."""

    def __init__(self, url: str, model: str, family: Family) -> None:
        self.url, self.model, self.family = url, model, family
        self._client = local_client(f"{url}#{model}")

    def identity(self) -> list[Any]:
        """The server and the model's name there: what it holds under that name nobody else can know."""
        return [self.url, self.model]

    async def cut(self, text: str) -> tuple[str, str]:
        """The text up to about the family's `answer_tokens`, and a note where something was cut off."""
        most = self.family.answer_tokens * CHARACTERS_A_TOKEN
        return (text, "") if len(text) <= most else (text[:most], f"answer cut from {len(text)} to {most} characters")

    async def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """What the model says to each prompt, one call each, one after another.

        Raises:
            GuardError: judge_failed when the server cannot be reached, refuses the call or answers with something else than a
                completion; judge_refused for a content filter or a refusal; media_error when a picture cannot be read.
        """
        return [await self._ask(await asyncio.to_thread(show, prompt, data_url)) for prompt in prompts]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, prompt: Prompt) -> Reading:
        parameters: dict[str, Any] = {"max_tokens": self.family.max_tokens, "temperature": 0}
        if self.family.words:
            parameters |= {"logprobs": TOP} if isinstance(prompt, str) else {"logprobs": True, "top_logprobs": TOP}
        if isinstance(prompt, str) and prompt.startswith("<s>"):
            parameters["add_special_tokens"] = False
        try:
            reply = await self._client.ask(prompt, parameters)
        except JudgeRefused as error:
            raise GuardError(Reason.JUDGE_REFUSED, str(error)) from error
        except JudgeFailed as error:
            raise GuardError(Reason.JUDGE_FAILED, str(error)) from error
        if not isinstance(prompt, str) and reply.text.startswith(_last_words(prompt)):
            raise GuardError(
                Reason.JUDGE_FAILED, "the server went on with the answer and did not judge it (llama.cpp: --no-prefill-assistant)"
            )
        return Reading(reply.text, _first(reply, self.family.words))


def _last_words(prompt: list[Message]) -> str:
    content = prompt[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)  # type: ignore[attr-defined]


def _first(reply: Reply, words: Sequence[str]) -> dict[str, float]:
    """Word -> probability where the first visible token stands; empty without log-probabilities."""
    for token, top in reply.places or () if words else ():
        if token.strip():
            return {word: sum(math.exp(min(logprob, 0.0)) for spelled, logprob in top if spelled.strip() == word) for word in words}
    return {}
