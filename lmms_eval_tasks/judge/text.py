"""What every judge does to an answer before it judges: find failures, set thinking apart, fold look-alike characters."""

from __future__ import annotations

import os
import re
import unicodedata

from .verdict import Reason, Verdict, unscored

# What backends return in place of an answer: lmms-eval's markers of a failed or skipped request, the text of the TypeError it runs into
# when the server answers with no content (as content filters do), the sentences of its models for a video that they cannot load or answer
# (oryx, llava_vid, llava_onevision_moviechat), VLMEvalKit's sentence, the OpenAI client's error text, a server's error page or error JSON.
_BACKEND_FAILURE = re.compile(
    r"\[LMMS_EVAL_|Error: can only concatenate str \(not \"NoneType\"\) to str|Failed to obtain answer via API\."
    r"|(?:[a-z_.]{0,40}\b[A-Za-z]{1,40}Error: )?Error code: [45]\d\d(?: - |\s*\Z)"
    r"|Video [^\n]{1,500} (?:can not load|generate failed), check the source\s*\Z|Can not infer the answer\.\s*\Z"
    r"|\{\s*\"error\"\s*:[^\0]{0,2000}\}\s*\Z|(?:<!doctype html>\s*)?<html[^\n]{0,200}>[^\n]{0,200}\s*<head>\s*<title>\s*[45]\d\d\b",
    re.IGNORECASE,
)
_MARKER = re.compile(r"\[VIDEOSAFETY_UNSCORED (media_error|generation_failed)\](.*)", re.DOTALL)
_OPENS = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*<think(?:ing)?>", re.IGNORECASE)
_CLOSES = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THINK_TAG = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
# The values that our training recipes make a model append: 0/1, or a word; the closing tag may be cut off.
_TAIL_TAG = re.compile(r"<(vidtype|texttype)>\s{0,4}\w{0,12}\s{0,4}(?:</\1>)?", re.IGNORECASE)
_TAIL_TAGS = 2  # of them in one answer; more would be a way to hide text, a word at a time
_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_SAME = str.maketrans(
    {c: "'" for c in "’‘ʼ´ʹ＇‛′"}
    | {c: '"' for c in "“”„«»‹›「」『』＂〝〞"}
    | {c: "." for c in "。।॥｡۔"}
    | {c: "-" for c in "‐‑‒–—―−"}
    | {"؟": "?", "،": ",", "、": ",", "ـ": None}
)


def _invisible(char: str) -> bool:
    """Zero-width and other format characters, variation selectors, and what cannot be printed at all."""
    return unicodedata.category(char) in ("Cf", "Cs", "Co") or "\ufe00" <= char <= "\ufe0f" or (char < " " and char not in "\n\t\r")


def visible(text: str) -> str:
    """`text` without invisible characters and without space at its ends."""
    hidden = {ord(char): None for char in set(text) if _invisible(char)}
    return text.translate(hidden).strip()


def fold(text: str) -> str:
    """`text` for matching, not for showing: lower case, one kind of apostrophe, quote, dash and full stop, no full width, no vowels."""
    text = visible(unicodedata.normalize("NFKC", text.translate(_SAME)))
    marks = {ord(char): None for char in set(text) if "\u064b" <= char <= "\u0652"}
    return unicodedata.normalize("NFC", text.translate(marks).lower()).translate(_SAME)


def thinking_opened() -> bool:
    """Whether the user says (VIDEOSAFETY_THINKING_OPENED=1) that the model's chat template writes the first `<think>` into the prompt."""
    return os.environ.get("VIDEOSAFETY_THINKING_OPENED") == "1"


def split_thinking(text: str, opened: bool | None = None) -> tuple[str, str]:
    """Set a model's thinking apart from its answer.

    Thinking is what stands between `<think>` or `<thinking>` (in any case) at the start of the text and the first closing tag; such
    blocks may follow each other, and one that is never closed runs to the end. Whether a piece of text is thinking is thus settled before
    it is written: no answer can hide what it said already by a closing tag, or a new block, that it writes later. So a closing tag
    without an opening one ends nothing, and the text before it is judged too. The exception are models whose chat template ends the
    prompt with `<think>`: their text begins inside it, which only somebody who knows the template can say.

    `<answer>` tags are taken off (what stands outside them was also shown to the user, so it stays), as are the first two of the tags
    `<vidType>` and `<textType>` with their values, a word at most each.

    Args:
        opened: whether the text begins inside thinking; None: as `thinking_opened` says.

    Returns:
        (thinking, answer), both stripped; either may be empty.
    """
    inside, at = thinking_opened() if opened is None else opened, 0
    thinking: list[str] = []
    while (tag := _OPENS.match(text, at)) or inside:
        start = tag.end() if tag else at
        close = _CLOSES.search(text, start)
        thinking.append(text[start : close.start() if close else len(text)])
        inside, at = False, close.end() if close else len(text)
    answer = _ANSWER_TAG.sub("\n", _TAIL_TAG.sub("", _THINK_TAG.sub("\n", text[at:]), count=_TAIL_TAGS))
    return "\n".join(thinking).strip(), answer.strip()


def judges_words(reply: str) -> str:
    """What a judging model says after its own thinking, visible text only; it has nothing to hide, so a closing tag alone is believed."""
    first = _THINK_TAG.search(reply)
    return visible(split_thinking(reply, opened=first is not None and first[0].startswith("</"))[1])


def before_judging(answer: str) -> Verdict | None:
    """The verdict of an answer that no judge should see, or None when there is something to judge.

    Returns:
        unscored(generation_failed) for a backend's failure string, unscored(media_error | generation_failed) with its detail for our
        model wrapper's marker, unscored(empty_answer) when nothing visible follows the thinking. Failures count only at the start.
    """
    start = visible(answer)
    if _BACKEND_FAILURE.match(start):
        return unscored(Reason.GENERATION_FAILED, detail=start[:500])
    if marker := _MARKER.match(start):
        return unscored(Reason(marker[1]), detail=marker[2].strip()[:500])
    if not visible(split_thinking(answer)[1]):
        return unscored(Reason.EMPTY_ANSWER)
    return None
