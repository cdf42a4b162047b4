"""A language model that grades one row by a rubric: the LLM judge's client and defences with the rubric's words and classes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .llm import LlmJudge, object_in, words_of
from .prompt import Prompt, key_of, media_hashes
from .rubric import RUBRIC_TEMPLATE, Rubric
from .text import before_judging, split_thinking
from .verdict import Grade, Item, Judge, Reason, ungraded

FRAMES = 8  # of each video, where the judge's spec says nothing
_LINE = re.compile(r"LABEL: *(.+)", re.IGNORECASE)
_MENTION = re.compile(r"\blabel\b", re.IGNORECASE)


def parse_label(text: str, labels: Mapping[str, Any]) -> str | None:
    """The one label that a grader's words hold, or None.

    The words after any thinking must be one JSON object with `label`, bare or in a code fence, or end with the one line `LABEL: <label>`
    and not speak of a label anywhere else. Case does not count; a whole number, true and false count as their letters.
    """
    words = words_of(text)
    if words.startswith("{"):
        try:
            said = object_in(words)["label"]
        except (ValueError, KeyError, RecursionError):
            return None
        if not isinstance(said, str | int):
            return None
        return _known(said if isinstance(said, str) else json.dumps(said), labels)
    line = _LINE.fullmatch(words.rsplit("\n", 1)[-1].strip())
    return _known(line[1], labels) if line and len(_MENTION.findall(words)) == 1 else None


def _known(said: str, labels: Mapping[str, Any]) -> str | None:
    return next((label for label in labels if label.strip().casefold() == said.strip().casefold()), None)


class RubricGrader:
    """One row's grader: cheap to make, all share their LLM judge's connections."""

    def __init__(self, judge: Judge, rubric: Rubric, shown: Mapping[str, str]) -> None:
        """shown: the texts that stand in the data, by name, the answer as the model gave it.

        Raises:
            TypeError: `judge` is no LLM judge.
        """
        if not isinstance(judge, LlmJudge):
            raise TypeError(f"a rubric needs an LLM judge, got {judge.id}")
        self._llm, self._rubric = judge, rubric
        self._shown = {name: split_thinking(text)[1] if name == "answer" else text for name, text in shown.items()}
        self._images = (judge.images or FRAMES) if "image" in rubric.shows else 0
        self.id = f"{judge.name}+{rubric.name}"
        self.template = rubric.hash
        schema = {
            "type": "object",
            "properties": {"label": {"type": "string", "enum": list(rubric.labels)}},
            "required": ["label"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}}
        self._parameters = {"response_format": wanted, **judge.parameters}

    def key(self, item: Item) -> str:
        """What the grade depends on, as `key_of` says."""
        media = media_hashes(item) if self._images else []
        asked = {"server": self._llm.server, **self._parameters}
        return key_of(self.id, self.template, "", self._prompt(self._images), asked, media)

    async def judge(self, item: Item) -> Grade:
        """Ask once, with retries. Whatever goes wrong is an unscored grade with its reason."""
        if (early := before_judging(item.answer)) is not None and early.reason is not None:
            return self._without(early.reason, detail=early.detail)
        if self._images and not item.media:
            return self._without(Reason.MEDIA_ERROR, detail=f"{self._rubric.name} shows the image, and this row has none")
        heard = await self._llm.hear(item, self._prompt, self._images, self._parameters)
        if heard.reason is not None:
            return self._without(heard.reason, heard.raw, heard.detail)
        label = parse_label(heard.text, self._rubric.labels)
        if label is None:
            reason, detail = heard.unread("label")
            return self._without(reason, heard.raw, detail)
        return Grade(label, judge=self.id, template=self.template, raw=heard.raw, detail=heard.detail)

    def _prompt(self, images: int) -> Prompt:
        labels = [json.dumps(label, ensure_ascii=False) for label in self._rubric.labels]
        return RUBRIC_TEMPLATE.fill(
            self._shown,
            images=images,
            instructions=self._rubric.instructions.strip(),
            labels=", ".join(labels),
            # Every class once: one alone would be an example that a small model copies.
            example=" or ".join(f'{{"label": {label}}}' for label in labels),
        )

    def _without(self, reason: Reason, raw: str = "", detail: str = "") -> Grade:
        return ungraded(reason, judge=self.id, template=self.template, raw=raw, detail=detail)
