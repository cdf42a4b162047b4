"""The rows that every recipe trains on: a strict validator, JSON Lines in and out, media that are missing, and rows as messages."""

from __future__ import annotations

import json
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from videosafety.hf_models.alarm_core import TEXTUAL_ALARM, VISUAL_ALARM
from videosafety.training_recipes.problems import read_reference
from videosafety.training_recipes.schema import (
    CURRENT,
    EMPTY,
    IMAGE,
    KINDS,
    LABELS,
    LEGACY,
    MEDIA,
    PROBLEM_TYPES,
    SAFETY_TYPE,
    STAGES,
    TAG_OF,
    TARGETS,
    TEXTS,
    VIDEO,
    Row,
    labelled,
    new_row,
    tagged_labels,
    to_current,
    user_turns,
)
from videosafety.training_recipes.tags import tag_count

MAX_LINES = 20  # of problems that one error lists; it counts the rest
MAX_MISSING = 10  # media files that one error names
_RESERVED = (VISUAL_ALARM.removesuffix("|>"), TEXTUAL_ALARM.removesuffix("|>"))  # also of the tokens with a number


class DataError(ValueError):
    """The data cannot be trained on; the message lists every problem with its file and row, MAX_LINES at most."""


class Place(NamedTuple):
    """A row as it was found, and where: `file, row n`."""

    where: str
    row: Row


def fail(problems: Sequence[str]) -> None:
    """Raise DataError where there are problems: their number and the first MAX_LINES of them."""
    if problems:
        more = [f"… and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
        raise DataError("\n  ".join([f"videosafety: {len(problems)} problem(s) in the training data", *problems[:MAX_LINES], *more]))


def kind_problems(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with the keys of a row and the kinds of their values; empty where the row can be looked into further."""
    found = [f"{key!r} is no key of a row; keys are {', '.join(EMPTY)}" for key in row if key not in EMPTY]
    for key in EMPTY:
        value, kind = row.get(key), KINDS.get(key, str)
        if value is None and (key in ("id", "source", "prompt", "label_version") or kind is list):
            found.append(f"{key} is missing")
        elif value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            found.append(f"{key} must be {'text' if kind is str else 'a list' if kind is list else '0, 1 or null'}, got {value!r:.60}")
    if found:
        return found
    found += [f"{key} must be 0 (safe), 1 (harmful) or null, got {row[key]}" for key in LABELS if row.get(key) not in (0, 1, None)]
    found += [f"{key} holds {path!r:.60}, which is no path" for key in MEDIA for path in row[key] if not isinstance(path, str) or not path]
    for number, turn in enumerate(row["history"]):
        if not isinstance(turn, dict) or set(turn) != {"role", "content"} or not isinstance(turn["content"], str):
            found.append(f"history, turn {number + 1} must be {{'role': …, 'content': text}}")
        elif turn["role"] != ("user", "assistant")[number % 2]:
            found.append(f"history, turn {number + 1} is by {turn['role']!r:.40}; turns go user, assistant, user, …")
    return found + (["history ends with a user turn; it must end with the assistant's"] if len(row["history"]) % 2 else [])


def row_problems(row: Mapping[str, Any]) -> list[str]:
    """All that is wrong with one row by itself, a sentence each with the mend; empty for a sound row, whatever stage it is for."""
    if found := kind_problems(row):
        return found
    row = {**EMPTY, **row}
    found = []
    targets = [name for name, keys in TARGETS.items() if any(row[key] is not None for key in keys)]
    if len(targets) != 1 or any(row[key] is None for key in TARGETS[targets[0]]):
        found.append("must have one target: completion, or chosen with rejected, or reference")
    answers = {key: row[key] for key in TEXTS if row[key] is not None}
    turns = {f"history, turn {number + 1}": turn["content"] for number, turn in enumerate(row["history"])}
    for name, text in {"id": row["id"], "source": row["source"], "prompt": row["prompt"], **answers, **turns}.items():
        if not text.strip():
            found.append(f"{name} is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            found.append(f"{name} holds half a surrogate pair; repair the encoding")
        if any(token in text for token in _RESERVED):
            found.append(f"{name} holds an alarm token; the chat template sets them, take it out")
    spoken = answers | {name: turn["content"] for name, turn in zip(turns, row["history"], strict=True) if turn["role"] == "assistant"}
    for name, text in spoken.items():
        found += [f"{name} holds {mark}, which a processor takes for a medium; take it out" for mark in (VIDEO, IMAGE) if mark in text]
    for key, mark in zip(MEDIA, (VIDEO, IMAGE), strict=True):
        marks = sum(text.count(mark) for text in user_turns(row))
        if marks and marks != len(row[key]):
            found.append(f"the user turns hold {marks} {mark}, but {key} has {len(row[key])} path(s); one each, or no {mark} at all")
        found += [f"{key} holds {path!r:.80}, which does not lie below the data root" for path in row[key] if not below(path)]
    if row["chosen"] is not None and row["chosen"] == row["rejected"]:
        found.append("chosen and rejected are the same text")
    if row["reference"] is not None and tag_count(row["reference"]):
        found.append("reference holds tags; give the answer's text alone, and the labels in their columns")
    if row["problem_type"] is not None and row["problem_type"] not in PROBLEM_TYPES:
        found.append(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {row['problem_type']!r:.40}")
    elif row["problem_type"] is not None and row["reference"] is not None:
        try:  # as the rewards will, but before training
            read_reference("free-form" if row["problem_type"] == SAFETY_TYPE else row["problem_type"], row["reference"])
        except ValueError as error:
            found.append(str(error))
    return found + _label_problems(row, {name: text for name, text in spoken.items() if name != "rejected"})


def _label_problems(row: Mapping[str, Any], spoken: Mapping[str, str]) -> list[str]:
    """Labels that contradict the row itself: its tags say otherwise, or something unseen is called harmful."""
    found = []
    if row["label_version"] != CURRENT:
        found.append(f'label_version must be "{CURRENT}" (0 safe, 1 harmful), got {row["label_version"]!r:.40}')
    if row["visual_label"] == 1 and not row["videos"] and not row["images"]:
        found.append("visual_label is 1 (harmful), but the row has no video and no image")
    for name, text in spoken.items():
        try:
            said = tagged_labels(text) or {}
        except ValueError as error:
            found.append(f"{name} {error}")
            continue
        found += [
            f"{key} is {row[key]}, but {name} says {label} in its <{TAG_OF[key]}>; correct one"
            for key, label in said.items()
            if row[key] is not None and row[key] != label
        ]
    return found


def below(path: str) -> bool:
    """Does a path stay below the folder that it is taken from? By its letters: links that the user laid in that folder are followed."""
    plain = posixpath.normpath(path)
    return not (plain.startswith(("/", "\\", "~")) or "\0" in plain or plain in (".", "..") or plain.startswith("../"))


def stage_problems(row: Mapping[str, Any], stage: str) -> list[str]:
    """What a sound row lacks for a stage of STAGES: its target, and labels where they are needed.

    Labels are needed by `at_sft` (both heads learn from them) and by the safety problems of `grpo` (both are rewarded).
    """
    keys = TARGETS[STAGES[stage]]
    found = [f"has no {' and '.join(keys)}, which {stage} trains on"] if any(row[key] is None for key in keys) else []
    if stage == "grpo" and row["problem_type"] is None:
        found.append(f"problem_type is missing; one of {', '.join(PROBLEM_TYPES)}")
    if stage == "at_sft" or (stage == "grpo" and row["problem_type"] == SAFETY_TYPE):
        mend = "which is never read out of the words: label the row or leave it out"
        found += [f"{key} is missing; {stage} needs it, {mend}" for key in LABELS if row[key] is None]
    return found


def cross_problems(places: Sequence[Place]) -> list[str]:
    """What is wrong between rows: an id twice, and labels that differ for the same media or for the same words."""
    found: list[str] = []
    seen: dict[str, Place] = {}
    for place in places:
        if (other := seen.setdefault(place.row["id"], place)) is not place:
            found.append(f"{place.where}: the id {place.row['id']!r:.80} is that of {other.where} too")
    return found + _contradictions(places)


def held_out_problems(rows: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    """What is wrong between sound rows to train on and those held out: one that is in both, by source and id or by what it asks and shows,
    and labels that differ for the same media or for the same words."""
    found: list[str] = []
    known = {key: row for row in rows for key in _identities(row)}
    for row in held_out:
        if other := next((known[key] for key in _identities(row) if key in known), None):
            found.append(f"eval_data, {_name(row)}: is in data too, as {_name(other)}; hold it out")
    places = [Place(f"{where}, {_name(row)}", row) for where, some in (("data", rows), ("eval_data", held_out)) for row in some]
    return found + _contradictions(places)


def _identities(row: Row) -> list[tuple[Any, ...]]:
    return [("id", row["source"], row["id"]), ("asked", _asked(row), _shown(row))]


def _name(row: Row) -> str:
    return f"row {row['id']} of {row['source']}"


def _contradictions(places: Sequence[Place]) -> list[str]:
    found: list[str] = []
    seen: dict[tuple[str, Any], Place] = {}
    for where, row in places:
        values: Mapping[str, Any] = row
        for name, key in {"visual_label": _shown(row), "textual_label": _asked(row)}.items():
            if values[name] is None or not key:
                continue
            other = seen.setdefault((name, key), Place(where, row))
            if (was := dict(other.row)[name]) != values[name]:
                same = " + ".join(key) if name == "visual_label" else row["prompt"]
                found.append(f"{where}: {name} is {values[name]}, but {was} in {other.where} for the same {same!r:.80}; correct one")
    return found


def _shown(row: Row) -> tuple[str, ...]:
    return tuple(sorted(row["videos"] + row["images"]))


def _asked(row: Row) -> tuple[str, ...]:
    return tuple(_words(text) for text in user_turns(row))


def _words(text: str) -> str:
    """The words of a user turn: without placeholders, in one Unicode form, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text.replace(VIDEO, " ").replace(IMAGE, " ")).split())


def problems_of(places: Sequence[Place], stage: str | None = None) -> list[str]:
    """All that is wrong with rows: by themselves, for the stage where one is named, and against each other."""
    found, sound = [], []
    for where, row in places:
        problems = row_problems(row)
        if not problems:
            sound.append(Place(where, new_row(**row)))  # with every key
            problems = stage_problems(sound[-1].row, stage) if stage else []
        found += [f"{where}: {problem}" for problem in problems]
    return found + cross_problems(sound)


def validate(rows: Sequence[Row], stage: str | None = None) -> None:
    """Check rows as `problems_of` does; the message names a row by its number, source and id.

    Raises:
        DataError: there is no row, or the list of all problems.
        ValueError: a stage that is not in STAGES.
    """
    _known(stage)
    if not rows:
        raise DataError("videosafety: no rows to train on")
    fail(problems_of([Place(f"row {n} ({row.get('source')}, id {row.get('id')})", row) for n, row in enumerate(rows, 1)], stage))


def _known(stage: str | None) -> None:
    if stage is not None and stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")


def read_jsonl(file: Path) -> tuple[list[Place], list[str]]:
    """The rows of a JSON Lines file, labels in CURRENT polarity, and the problems of the lines that are none.

    A line may leave out `id` (then file stem and line), `source` (then the file stem) and whatever is empty. `label_version` may be left
    out only where nothing is labelled. Empty lines are skipped.
    """
    if not file.is_file():
        return [], [f"{file}: no such file"]
    places, problems = [], []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):  # not splitlines: JSON strings may hold other line separators
        where = f"{file}, row {number}"
        try:
            if not line.strip():
                continue
            values = json.loads(line.decode("utf-8"), object_pairs_hook=no_key_twice)
            if not isinstance(values, dict):
                raise ValueError("must be a JSON object")
            row = new_row(**{"id": f"{file.stem}-{number}", "source": file.stem} | {k: v for k, v in values.items() if v is not None})
            said = row["label_version"] is not None
            row["label_version"] = row["label_version"] if said else CURRENT
            if found := kind_problems(row):
                problems += [f"{where}: {problem}" for problem in found]
            elif not said and labelled(row):
                raise ValueError(f'label_version is missing; "{CURRENT}" where 0 is safe and 1 harmful, "{LEGACY}" for the opposite')
            else:
                places.append(Place(where, to_current(row)))
        except (ValueError, RecursionError) as error:  # not UTF-8 and not JSON are ValueErrors
            problems.append(f"{where}: {error}")
    return places, problems


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object, refused (ValueError) where a key is there twice, as JSON would silently keep the last."""
    if twice := [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]:
        raise ValueError(f"the key {twice[0]!r} is there twice")
    return dict(pairs)


def load(files: Iterable[str | Path], stage: str, root: str | Path) -> list[Row]:
    """The rows of JSON Lines files, ready for a stage of STAGES: sound, consistent across files, with all media there.

    Raises:
        DataError: every problem of every file, with file and row; or, once there is none, the media that are missing below `root`.
        ValueError: a stage that is not in STAGES.
    """
    _known(stage)
    places: list[Place] = []
    problems: list[str] = []
    for file in files:
        more, lost = read_jsonl(Path(file))
        places, problems = places + more, problems + lost
    fail(problems + problems_of(places, stage))
    if not places:
        raise DataError("videosafety: no rows to train on")
    rows = [place.row for place in places]
    require_media(rows, root)
    return rows


def save(rows: Sequence[Row], file: str | Path) -> None:
    """Write rows as JSON Lines, what is empty left out; the file is there whole or not at all.

    Raises:
        DataError: there is no row, or rows are not sound or contradict each other.
    """
    validate(rows)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    lines = [json.dumps({key: value for key, value in row.items() if value not in (None, [])}, ensure_ascii=False) for row in rows]
    part.write_bytes("".join(f"{line}\n" for line in lines).encode())
    part.replace(file)


def missing_media(rows: Iterable[Row], root: str | Path) -> list[str]:
    """The videos and images of the rows that are not below `root`, or are empty files, in the order of the rows, each once."""
    paths = dict.fromkeys(path for row in rows for path in row["videos"] + row["images"])
    return [path for path in paths if not (file := Path(root) / path).is_file() or not file.stat().st_size]


def require_media(rows: Sequence[Row], root: str | Path) -> None:
    """Refuse rows whose media are not there: all at once, before a model is loaded.

    Raises:
        DataError: how many are missing, and the first MAX_MISSING of them.
    """
    if missing := missing_media(rows, root):
        known = len({path for row in rows for path in row["videos"] + row["images"]})
        more = [f"… and {len(missing) - MAX_MISSING} more"] if len(missing) > MAX_MISSING else []
        mend = "fetch them or take their rows out"
        head = f"videosafety: {len(missing)} of {known} videos and images are missing or empty below {root}; {mend}"
        raise DataError("\n  ".join([head, *missing[:MAX_MISSING], *more]))


def prompt_messages(row: Row) -> list[dict[str, Any]]:
    """The turns before the target, as chat templates take them: user content is a list of blocks, the assistant's is text.

    A block is {"type": "video", "video": path}, {"type": "image", "image": path} or {"type": "text", "text": …}. As in the authors' code
    (train.py, _convert_normal) a placeholder becomes its medium, the text between media is stripped, and media without a placeholder
    stand first.
    """
    media: dict[str, list[dict[str, str]]] = {
        VIDEO: [{"type": "video", "video": path} for path in row["videos"]],
        IMAGE: [{"type": "image", "image": path} for path in row["images"]],
    }
    turns: list[Mapping[str, Any]] = [*row["history"], {"role": "user", "content": row["prompt"]}]
    blocks = [block for mark in media if not any(mark in text for text in user_turns(row)) for block in media[mark]]
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "assistant":
            messages.append({"role": "assistant", "content": turn["content"]})
            continue
        for piece in re.split(f"({VIDEO}|{IMAGE})", turn["content"]):
            if piece in media:
                blocks.append(media[piece].pop(0))
            elif text := piece.strip():
                blocks.append({"type": "text", "text": text})
        messages.append({"role": "user", "content": blocks})
        blocks = []
    return messages
