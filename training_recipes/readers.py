"""Readers: from the files of known data sets to rows. What no public source tells of a format is refused, never guessed."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from videosafety.training_recipes.data import DataError, Place, fail, no_key_twice, problems_of, read_jsonl
from videosafety.training_recipes.schema import (
    CURRENT,
    LABELS,
    LEGACY,
    PROBLEM_TYPES,
    SAFETY_TYPE,
    Row,
    Turn,
    labelled,
    new_row,
    tagged_labels,
    to_current,
)

log = logging.getLogger(__name__)

MODALITY = {"visual_label": "visual", "textual_label": "textual"}  # their keys in safety_labels; flat keys end in _safety_label
_MARKER = re.compile(r"\$([01])\$([01])")  # $v$t in old records' questions: visual, then textual label (processor.py)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

Record = Mapping[str, Any]
Make = Callable[[Record], list[dict[str, Any]]]  # a record of a file -> the values of its rows, or ValueError with the reason


def vst(file: str | Path, root: str | Path, *, label_version: str, source: str = "vst") -> list[Row]:
    """VST-SFT and VST-CoT: VideoLLaMA3 conversations with safety labels (VideoSafety-R1, README and train.py at 7589dea).

    A record holds `conversations` [{from: human | gpt, value}], `video` (a list of one path) or `image` (a path or a list), below `root`,
    and `safety_labels` {visual, textual} or `visual_safety_label` and `textual_safety_label`. An old `$v$t` marker in a question and the
    label tags at the end of a CoT answer are labels too; all that are there must agree. A record without any stays unlabelled: their
    processor then guesses the labels from the question's words, which calls a bomb-making question safe; nothing is guessed here.

    Args:
        file: .jsonl, or .json with one list.
        root: the folder that paths are relative to.
        label_version: "1" where 0 is safe and 1 harmful, "0" for the opposite, as in old data. There is no default: a file does not say.

    Raises:
        DataError: all that is wrong, with file and row.
    """
    return _rows(Path(file), lambda record: [_conversation(record, root, marked=True)], source, label_version)


def llava(
    file: str | Path,
    root: str | Path,
    *,
    source: str = "llava",
    labels: tuple[int, int] | None = None,
    label_version: str | None = None,
) -> list[Row]:
    """LLaVA-style mixes: LLaVA-SFT, VCG-plus and others of the same form. Records as in `vst`, `video` also a path.

    Args:
        labels: (visual, textual) for records that have none, 0 safe and 1 harmful. This is your word for the whole set, nothing in it
            says so: the official mixture takes its general records for (0, 0). None leaves them unlabelled. `$0$1` is plain text here.
        label_version: the polarity of the labels that records hold, as in `vst`. None: such records, and label tags in an answer, are
            refused, since a file does not say it.

    Raises:
        DataError: all that is wrong, with file and row.
    """
    given = dict(zip(LABELS, labels, strict=True)) if labels is not None else {}

    def make(record: Record) -> list[dict[str, Any]]:
        values = _conversation(record, root, marked=False)
        if not labelled(new_row(**values)):
            return [values | given | {"label_version": CURRENT}]
        if label_version is None:
            raise ValueError(
                f'holds labels, and a file does not say their polarity: give label_version "{CURRENT}" (0 safe, 1 harmful) or "{LEGACY}" '
                "(the opposite); in a mixture --general-label-version"
            )
        return [values]

    return _rows(Path(file), make, source, CURRENT if label_version is None else label_version)


def vst_rl(file: str | Path, root: str | Path, *, label_version: str, source: str = "vst-rl") -> list[Row]:
    """VST-RL and other sets of Video-R1's form: problems with solutions (VideoSafety-R1, README and train_grpo_vidlm3.py at 7589dea).

    A record holds `problem`, `problem_type`, `solution` with an <answer>, `data_type` (video or image), `path` (absolute or relative, in
    both cases below `root`), and `options` for multiple choice. Safety problems end their solution in <vidType> and <textType>, which
    are the row's labels. The reference is the answer alone. The prompt is the question: the instruction that their trainer adds is the
    recipe's to set.

    Args:
        label_version: as in `vst`.

    Raises:
        DataError: all that is wrong, with file and row.
    """

    def make(record: Record) -> list[dict[str, Any]]:
        kind, solution = _text(record, "problem_type"), _text(record, "solution")
        if kind not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {kind!r:.40}")
        answers = _ANSWER.findall(solution)
        if len(answers) != 1 or not answers[0].strip():
            raise ValueError("solution must hold <answer>…</answer> once, with an answer in it")
        labels = tagged_labels(solution)
        if kind == SAFETY_TYPE and labels is None:
            raise ValueError("solution has no <vidType> and <textType>, which are the labels of this problem type")
        prompt, data_type = _text(record, "problem"), _text(record, "data_type")
        if data_type not in ("video", "image"):
            raise ValueError(f"data_type must be video or image, got {data_type!r:.40}")
        if kind == "multiple choice":
            options = record.get("options")
            if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
                raise ValueError("options must be a list of texts for multiple choice")
            prompt += "Options:\n" + "".join(f"{option}\n" for option in options)  # as their make_conversation_image_and_video
        media = {f"{data_type}s": [_relative(_text(record, "path"), root)]}
        return [{"prompt": prompt, "reference": answers[0].strip(), "problem_type": kind, **media, **(labels or {})}]

    return _rows(Path(file), make, source, label_version)


def vlguard(file: str | Path, root: str | Path, *, images: str = "train", source: str = "vlguard") -> list[Row]:
    """VLGuard's train.json (arXiv 2402.02207; 977 safe and 1,023 harmful images), each instruction with its response as a row of its own.

    Its own converter joins the two instructions of a safe image into one conversation, in random order; apart, each has its own label. A
    harmful image's instruction is unlabelled: the set does not say whether the words alone are harmful.

    Args:
        images: the folder below `root` that holds the images, what train.zip unpacks to.

    Raises:
        DataError: all that is wrong, with file and row.
    """

    def make(record: Record) -> list[dict[str, Any]]:
        safe, turns = record.get("safe"), record.get("instr-resp")
        if not isinstance(safe, bool):
            raise ValueError(f"safe must be true or false, got {safe!r:.40}")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError("instr-resp must be a list of objects")
        image = _relative(f"{images}/{_text(record, 'image')}", root)
        found = []
        for key, textual in {"safe_instruction": 0, "unsafe_instruction": 1}.items() if safe else {"instruction": None}.items():
            having = [turn for turn in turns if key in turn]
            if len(having) != 1:
                raise ValueError(f"instr-resp must hold {key} once, as safe is {str(safe).lower()}")
            values = {"prompt": _text(having[0], key), "completion": _text(having[0], "response"), "images": [image]}
            labels = {"visual_label": int(not safe), "textual_label": textual}
            found.append({**values, **labels, "language": "en", "category": record.get("harmful_subcategory") or None})
        return found

    return _rows(Path(file), make, source, CURRENT)


def spa_vl(file: str | Path, root: str | Path, *, source: str = "spa-vl") -> list[Row]:
    """SPA-VL preferences (arXiv 2406.12030) in the JSON that its training code reads (EchoseChen/SPA-VL-RLHF, README).

    A record holds `image` (a path below `root`), `question` (text, or Human and Assistant turns), `chosen` and `rejected`. Nothing in it
    says whether image or question is harmful, so rows are unlabelled. The Hub's Parquet files are refused: write this JSON from them.

    Raises:
        DataError: all that is wrong, with file and row.
    """

    def make(record: Record) -> list[dict[str, Any]]:
        question = record.get("question")
        if isinstance(question, list):  # data_utils_ppo.py: turns by Human and Assistant in turn
            values = _turns(question, "Human", "Assistant", answered=False)
        else:
            values = {"prompt": _text(record, "question")}
        images = [_relative(_text(record, "image"), root)] if record.get("image") is not None else []
        classes = [record[key] for key in ("class1", "class2", "class3") if isinstance(record.get(key), str)]
        pair = {key: _text(record, key) for key in ("chosen", "rejected")}
        return [{**values, **pair, "images": images, "language": "en", "category": "/".join(classes) or None}]

    return _rows(Path(file), make, source, CURRENT)


def safevid(file: str | Path, root: str | Path, *, source: str = "safevid-350k") -> list[Row]:
    """SafeVid-350K preferences (arXiv 2505.11926), from rows of our own schema: the layout of its files is in no public source.

    Write JSON Lines with `prompt`, `chosen`, `rejected` and `videos` from your copy. Rows whose first video (or `id`, where there is
    none) falls into the part that our tasks `safevid_350k_heldout` are run on are left out, and how many is logged.

    Args:
        root: the data root, as for every reader; paths in the rows are relative to it already. The held-out part is chosen by the path,
            so it must be the same in the rows.jsonl that the tasks read.

    Raises:
        DataError: all that is wrong, with file and row.
    """
    from videosafety.lmms_eval_tasks.safevid.docs import held_out  # late: it loads what evaluation needs

    file = Path(file)
    layout = "the layout of SafeVid-350K's own files is not known; write your copy as JSON Lines with prompt, chosen, rejected and videos"
    if file.suffix != ".jsonl":
        raise DataError(f"videosafety: {file}: {layout}")
    places, problems = read_jsonl(file)
    places = [Place(where, {**row, "source": source}) for where, row in places]
    if problems := problems + problems_of(places, "dpo"):
        fail([f"{file}: {layout}", *problems])
    if not places:
        raise DataError(f"videosafety: {file}: holds no records")
    rows = [row for _, row in places if not held_out(row["videos"][0] if row["videos"] else row["id"])]
    log.info("%s: %d of %d rows left out, as safevid_350k_heldout is run on them", file, len(places) - len(rows), len(places))
    return rows


READERS: dict[str, Callable[..., list[Row]]] = {
    "vst": vst,
    "vst_rl": vst_rl,
    "safevid": safevid,
    "vlguard": vlguard,
    "spa_vl": spa_vl,
    "llava": llava,
}


def records(file: Path) -> Iterator[tuple[str, Any]]:
    """The records of a .jsonl file, or of a .json file with one list, and where each stands; a ValueError in the place of one that is none.

    Raises:
        DataError: the file is not there, of another kind, or no list of JSON.
    """
    if not file.is_file():
        raise DataError(f"videosafety: {file}: no such file")
    if file.suffix == ".jsonl":
        for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
            if line.strip():
                try:
                    yield f"{file}, row {number}", json.loads(line.decode("utf-8"), object_pairs_hook=no_key_twice)
                except (ValueError, RecursionError) as error:
                    yield f"{file}, row {number}", ValueError(f"not JSON in UTF-8 ({error})")
        return
    if file.suffix != ".json":
        raise DataError(f"videosafety: {file}: must be .json (one list) or .jsonl; other formats of this set are not read")
    try:
        table = json.loads(file.read_bytes().decode("utf-8"), object_pairs_hook=no_key_twice)
    except (ValueError, RecursionError) as error:
        raise DataError(f"videosafety: {file}: not JSON in UTF-8 ({error})") from error
    if not isinstance(table, list):
        raise DataError(f"videosafety: {file}: must hold one list of records")
    yield from ((f"{file}, row {number}", record) for number, record in enumerate(table, 1))


def _rows(file: Path, make: Make, source: str, label_version: str) -> list[Row]:
    """The rows that `make` makes of a file's records, in CURRENT polarity and sound, or one error with all that is wrong."""
    if label_version not in (CURRENT, LEGACY):
        known = f'"{CURRENT}" (0 safe, 1 harmful) or "{LEGACY}" (0 harmful, 1 safe)'
        raise ValueError(f"label_version must be {known}, got {label_version!r}")
    places: list[Place] = []
    problems: list[str] = []
    for number, (where, record) in enumerate(records(file), 1):
        try:
            if isinstance(record, ValueError):
                raise record
            if not isinstance(record, dict):
                raise ValueError("must be a JSON object")
            made = make(record)
            for part, values in enumerate(made, 1):
                name = f"{source}-{file.stem}-{number}" + (f"-{part}" if len(made) > 1 else "")  # their own ids repeat in LLaVA's mixes
                row = new_row(**{"id": name, "source": source, "label_version": label_version, **values})
                places.append(Place(where, to_current(row)))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    fail(problems + problems_of(places))
    if not places:
        raise DataError(f"videosafety: {file}: holds no records")
    return [place.row for place in places]


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is missing" if value is None else f"{key} must be text that is not empty, got {value!r:.40}")
    return value


def _relative(path: str, root: str | Path) -> str:
    """A path relative to `root`. One that lies outside begins with .., and is refused with its row."""
    return os.path.relpath(path, os.path.abspath(root)) if os.path.isabs(path) else path


def _conversation(record: Record, root: str | Path, *, marked: bool) -> dict[str, Any]:
    """The values of a row from a VideoLLaMA3 record, as train.py's _convert_normal reads it, with its labels.

    Args:
        marked: whether `$v$t` in a question is a marker, and not just text.
    """
    if record.get("stream"):
        raise ValueError("is a stream record; only whole conversations are read")
    values = _turns(record.get("conversations"), "human", "gpt", answered=True)
    media: dict[str, list[str]] = {}
    for key in ("video", "image"):
        paths = record.get(key) if isinstance(record.get(key), list) else [record.get(key)]
        if record.get(key) is not None and not (paths and all(isinstance(path, str) and path for path in paths)):
            raise ValueError(f"{key} must be a path or a list of paths, got {record[key]!r:.60}")
        media[f"{key}s"] = [_relative(path, root) for path in paths or [] if path is not None]
    if media["videos"] and media["images"]:
        raise ValueError("has both video and image; the authors' code drops the video: keep one of them")
    if len(media["videos"]) > 1:
        raise ValueError(f"has {len(media['videos'])} videos; the format takes one")
    said = _taken_markers(values) if marked else {}
    if tags := tagged_labels(values["completion"]):
        said["the answer's tags"] = tags
    return {**values, **media, **_labels(record, said)}


def _taken_markers(values: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Take the old `$v$t` marker out of the user turns, as their processor does; what it says."""
    found = [marker for turn in (*values["history"][::2], {"content": values["prompt"]}) for marker in _MARKER.findall(turn["content"])]
    if len(found) > 1:
        raise ValueError("has more than one $v$t marker; keep one")
    for turn in values["history"][::2]:
        turn["content"] = _MARKER.sub("", turn["content"])
    values["prompt"] = _MARKER.sub("", values["prompt"])
    return {"the $v$t marker": dict(zip(LABELS, map(int, found[0]), strict=True))} if found else {}


def _labels(record: Record, said: dict[str, dict[str, int]]) -> dict[str, int | None]:
    """The labels of a record's own fields and of `said` (where -> labels), which must agree; None where there are none."""
    nested = record.get("safety_labels")
    if nested is not None and not isinstance(nested, dict):
        raise ValueError(f"safety_labels must be {{visual, textual}}, got {nested!r:.40}")
    fields: dict[str, dict[str, Any]] = {
        "safety_labels": {key: (nested or {}).get(name) for key, name in MODALITY.items()},
        "the flat label keys": {key: record.get(f"{name}_safety_label") for key, name in MODALITY.items()},
    }
    for where, values in fields.items():
        if all(value is None for value in values.values()):
            continue
        if bad := [value for value in values.values() if isinstance(value, bool) or value not in (0, 1, "0", "1")]:
            raise ValueError(f"{where} must hold 0 or 1 for both visual and textual, got {bad[0]!r:.40}")
        said = {where: {key: int(value) for key, value in values.items()}, **said}
    places = list(said)
    for other in places[1:]:
        if said[other] != said[places[0]]:
            first, second = (tuple(said[where].values()) for where in (places[0], other))
            raise ValueError(f"labels contradict each other: (visual, textual) is {first} in {places[0]}, but {second} in {other}")
    return dict(said[places[0]]) if places else dict.fromkeys(LABELS)


def _turns(turns: Any, human: str, machine: str, *, answered: bool) -> dict[str, Any]:
    """History, prompt and, where `answered`, completion of turns {from, value}.

    As in the authors' code, turns before the first human one are dropped. Other speakers are refused: their code makes them the
    assistant's words, system messages too.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise ValueError("a conversation must be a list of {from, value}")
    speakers = [turn.get("from") for turn in turns]
    if strange := [speaker for speaker in speakers if speaker not in (human, machine)]:
        raise ValueError(f"a turn is from {strange[0]!r:.40}; only {human} and {machine} are read")
    if human not in speakers:
        raise ValueError(f"a conversation has no turn from {human}")
    kept = turns[speakers.index(human) :]
    last = machine if answered else human
    if any(turn["from"] != (human, machine)[number % 2] for number, turn in enumerate(kept)) or kept[-1]["from"] != last:
        raise ValueError(f"turns must go {human}, {machine}, {human}, … and end with {last}")
    body = kept[:-1] if answered else kept
    history = [Turn(role="user" if turn["from"] == human else "assistant", content=turn["value"]) for turn in body[:-1]]
    return {"history": history, "prompt": body[-1]["value"], **({"completion": kept[-1]["value"]} if answered else {})}
