"""Weights for an answer's tokens in supervised training, after STAR-DSS: what a judge calls unsafe, as far as it got, is not imitated.

STAR-DSS (arXiv 2505.17196) has a guard model score a response segment by segment and mixes, token by token, cross-entropy where the score
says safe with a KL term to a reference model where it says unsafe. Here is its first half, by `token_weights` of sft.py; the KL term is
left out, since supervised stages keep no reference model. Its segments and constants are not known to us: the choices below are ours.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from videosafety.lmms_eval_tasks.judge import Item, Label, Verdict, get_judge, judge_spec
from videosafety.lmms_eval_tasks.judge.batch import judge_all
from videosafety.training_recipes.schema import IMAGE, VIDEO, Row

# Ours: a segment is a sentence or a line, in any of the languages that judges read, so that a judge never sees half a word.
_END = re.compile(r"[.!?…。！？।؟]+[\"'”’»)\]]*(?=\s|$)|[。！？।؟]+|\n+")


def star(row: Row, ids: list[int], tokenizer: Any) -> list[float]:
    """For each of `ids`, the tokens of the row's completion and of what closes it: the probability, in [0, 1], that the answer is safe up
    to the end of that token's segment. A `collate.Weigh`.

    The judge is the one that VIDEOSAFETY_JUDGE names, else `offline`; one without probabilities gives 1 or 0. It reads the prompt and the
    answer so far, and no video. A segment that it cannot score weighs 0: nobody said that it is safe to learn.

    Raises:
        ValueError: no such judge, or a tokenizer that does not tell where tokens stand.
    """
    text = str(row["completion"])
    if not tokenizer.is_fast:
        raise ValueError("token weights need a fast tokenizer, which tells where its tokens stand in the text")
    starts = [start for start, _ in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    ends = segment_ends(text)
    query = row["prompt"].replace(VIDEO, " ").replace(IMAGE, " ").strip()
    weights = _safe(judge_spec(), query, text, tuple(ends), row["category"], row["language"])
    segments = [next(number for number, end in enumerate(ends) if start < end) for start in starts]
    closing = len(ids) - len(starts)
    return [weights[number] for number in segments] + [weights[-1]] * closing


def segment_ends(text: str) -> list[int]:
    """Where segments of `text` end, ascending; the last ends with the text. White space belongs to the segment after it."""
    ends: list[int] = []
    for match in _END.finditer(text):
        if text[ends[-1] if ends else 0 : match.end()].strip() and text[match.end() :].strip():
            ends.append(match.end())
    return [*ends, len(text)]


@cache  # rows come again in every epoch
def _safe(spec: str, query: str, text: str, ends: tuple[int, ...], category: str | None, language: str | None) -> list[float]:
    verdicts = judge_all(get_judge(spec), [Item(query, text[:end], category, language) for end in ends])
    return [_weight(verdict) for verdict in verdicts]


def _weight(verdict: Verdict) -> float:
    if not verdict.scored:
        return 0.0
    return float(verdict.label is Label.SAFE) if verdict.p_unsafe is None else 1.0 - verdict.p_unsafe
