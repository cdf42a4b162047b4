"""What a row is that recipes train on: its keys, its targets, the polarity of its labels and the converter of the old polarity."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any, TypedDict

from videosafety.training_recipes.problems import PROBLEMS

CURRENT = "1"  # label_version: 0 = safe, 1 = harmful. The released code's convention (Emiya-syw/VideoSafety-R1, README, 9 Jun 2026)
LEGACY = "0"  # label_version: 0 = harmful, 1 = safe. The convention of the authors' data before scripts/data/normalize_safety_labels.py
VIDEO, IMAGE = "<video>", "<image>"  # where a medium stands in a user turn; the placeholders of the authors' and of LLaVA's conversations
SAFETY_TYPE = "free-form-and-choice"  # the problem type whose solutions carry safety labels (train_grpo_vidlm3.py)
PROBLEM_TYPES = (SAFETY_TYPE, *PROBLEMS)

LABELS = ("visual_label", "textual_label")
MEDIA = ("videos", "images")
TEXTS = ("completion", "chosen", "rejected", "reference")
TARGETS = {"completion": ("completion",), "preference": ("chosen", "rejected"), "reference": ("reference",)}
STAGES = {"sft": "completion", "at_sft": "completion", "dpo": "preference", "grpo": "reference"}  # stage -> the target it trains on
TAG_OF = {"visual_label": "vidType", "textual_label": "textType"}

_TAG = re.compile(r"<(?P<tag>vidType|textType)>(?P<label>.*?)</(?P=tag)>", re.DOTALL)


class Turn(TypedDict):
    """One earlier turn of a conversation."""

    role: str  # "user" or "assistant"
    content: str


class Row(TypedDict):
    """One row, with all keys there, so that Arrow has nothing to fill in.

    A row has one target: completion (SFT), chosen and rejected (DPO), or reference (GRPO). `<video>` and `<image>` in the user turns say
    where the media stand, in order; media of a kind that no placeholder names stand before the first user turn.
    """

    id: str  # unique in what is trained on
    source: str  # the data set that the row is from
    prompt: str  # the last user turn
    history: list[Turn]  # the turns before it, user first; empty where there are none
    completion: str | None
    chosen: str | None
    rejected: str | None
    reference: str | None  # the answer to compare with, without tags
    problem_type: str | None  # one of PROBLEM_TYPES; GRPO only
    videos: list[str]  # paths below the data root, with /
    images: list[str]
    visual_label: int | None  # 0 safe, 1 harmful, None unlabelled
    textual_label: int | None
    language: str | None
    category: str | None
    label_version: str  # which polarity the labels have: CURRENT, and LEGACY until `to_current`


KINDS: dict[str, type] = {"history": list, "videos": list, "images": list, "visual_label": int, "textual_label": int}  # else text
EMPTY: dict[str, Any] = {key: [] if KINDS.get(key) is list else None for key in Row.__annotations__}


def new_row(**values: Any) -> Row:
    """A row with these values and the empty value for every other key; paths are normalised. `data.row_problems` checks it, not this."""
    row = {key: list(empty) if isinstance(empty, list) else empty for key, empty in EMPTY.items()} | values
    for key in MEDIA:
        if isinstance(row[key], list):
            row[key] = [posixpath.normpath(path) if isinstance(path, str) and path else path for path in row[key]]
    return row  # type: ignore[return-value]


def user_turns(row: Mapping[str, Any]) -> list[str]:
    """The texts of the user turns, the prompt last."""
    return [turn["content"] for turn in row["history"] if turn["role"] == "user"] + [row["prompt"]]


def labelled(row: Mapping[str, Any]) -> bool:
    """Does a row hold a label: in its fields, in an answer's tags, or in those of an earlier answer?"""
    spoken = [row[key] for key in TEXTS] + [turn["content"] for turn in row["history"] if turn["role"] == "assistant"]
    return any(row[key] is not None for key in LABELS) or any(_has_tags(text) for text in spoken if text is not None)


def _has_tags(text: str) -> bool:
    return any(f"<{tag}>" in text or f"</{tag}>" in text for tag in TAG_OF.values())


def tagged_labels(text: str) -> dict[str, int] | None:
    """The labels that a target ends with: {"visual_label": …, "textual_label": …}, in the polarity of its data; None without any tag.

    Raises:
        ValueError: `<vidType>` or `<textType>` is missing, there twice, or holds anything but 0 or 1.
    """
    if not _has_tags(text):
        return None
    found = {}
    for label, tag in TAG_OF.items():
        values = [match["label"].strip() for match in _TAG.finditer(text) if match["tag"] == tag]
        if len(values) != 1 or values[0] not in ("0", "1") or text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1:
            raise ValueError(f"must hold <{tag}>0</{tag}> or <{tag}>1</{tag}> once, as soon as it holds a label tag")
        found[label] = int(values[0])
    return found


def to_current(row: Row) -> Row:
    """The row with labels in CURRENT polarity: of a LEGACY row the label fields and the label tags of all answers are turned over.

    Idempotent, because the row says which polarity it has: a CURRENT row comes back as it is. (The authors' converter turns everything
    over at each run and leaves no mark.) User turns are not touched.

    Raises:
        ValueError: another label_version, tags that hold no label, or a user turn that names the tags: it may spell the polarity out.
    """
    if row["label_version"] == CURRENT:
        return row
    if row["label_version"] != LEGACY:
        known = f'"{CURRENT}" (0 safe, 1 harmful) or "{LEGACY}" (0 harmful, 1 safe)'
        raise ValueError(f"label_version must be {known}, got {row['label_version']!r:.40}")
    if any(tag in text for text in user_turns(row) for tag in TAG_OF.values()):
        raise ValueError("a user turn of a legacy row names vidType or textType and may say what 0 and 1 mean; convert this row by hand")
    new: dict[str, Any] = dict(row)
    new |= {key: 1 - new[key] for key in LABELS if new[key] is not None}
    new |= {key: _turned_over(new[key]) for key in TEXTS if new[key] is not None}
    new["history"] = [{**turn, "content": _turned_over(turn["content"])} for turn in row["history"]]  # user turns hold no tag: see above
    return new | {"label_version": CURRENT}  # type: ignore[return-value]


def _turned_over(text: str) -> str:
    tagged_labels(text)  # anything but 0 and 1 is refused
    return _TAG.sub(lambda match: f"<{match['tag']}>{1 - int(match['label'])}</{match['tag']}>", text)
