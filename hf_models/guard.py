"""The guard: p(harmful) of what is shown and of what is asked, from one prefill of an alarm model, without generating a token.

A tool beside the published model files, not one of them: media are decoded by `lmms_eval_tasks`, the code that evaluation uses (imported
where it is needed).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from videosafety.hf_models.calibrate import Calibration
from videosafety.hf_models.prompts import on_model

if TYPE_CHECKING:
    from videosafety.lmms_eval_tasks.pipeline import Loaded
    from videosafety.lmms_eval_tasks.video import Clip, Sampling

VIDEOS = frozenset({".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".gif", ".flv", ".wmv", ".ogv", ".3gp"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
NO_VISUALS, NO_TEXT, NO_TOKEN = "nothing is shown", "nothing is asked", "the prompt has no such alarm token"
RESULT_KEYS = ("p_visual", "p_textual", "flagged", "error", "missing")
KEPT = 4  # decoded clips that are kept for the rows that follow: one video is often asked about several times


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to judge: a video or an image (a path), or neither, and the words that go with it. `extra` is copied to the result."""

    id: str
    text: str = ""
    video: Path | None = None
    image: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Decoder:
    """Sampled clips from video files, the last KEPT of them in memory; nothing is written to disk. Threads may share one.

    `get(path)` gives the clip; it raises MediaError where the file cannot be shown to a model.
    """

    def __init__(self, sampling: Sampling) -> None:
        from videosafety.lmms_eval_tasks.video import decode

        self.sampling = sampling
        self.get: Callable[[str], Clip] = lru_cache(KEPT)(lambda path: decode(path, sampling))


class Guard:
    """An alarm model with its processor, ready to judge.

    Args:
        model: any model of ours with `alarm_probs`. processor: its own, with the alarm template.
        sampling: frames of a video that the model sees, by default as in evaluation: one a second, at most 180.
        calibration: thresholds above which a row is flagged.

    Raises:
        ValueError: a model without alarm heads.
    """

    def __init__(self, model: Any, processor: Any, sampling: Sampling | None = None, calibration: Calibration | None = None) -> None:
        from videosafety.lmms_eval_tasks.video import Sampling

        if not hasattr(model, "alarm_probs"):
            raise ValueError(
                f"{type(model).__name__} has no alarm heads: make an alarm model of it with videosafety build-alarm, and train it"
            )
        self.model, self.processor = model, processor
        getattr(processor, "tokenizer", processor).padding_side = "left"
        self.sampling, self.calibration = sampling or Sampling(), calibration or Calibration()

    @classmethod
    def load(cls, source: str, revision: str | None = None, device: str = "auto", dtype: str | None = None, **options: Any) -> Guard:
        """From a folder or Hub id; `options` as for Guard. The code files beside the weights are run, so a Hub id needs its `revision`.

        Args:
            device: `auto` takes the first GPU, or the CPU. dtype: torch dtype name; by default bfloat16 on a GPU, float32 on a CPU.

        Raises:
            ValueError: nothing there to load, a Hub id without a revision, or no alarm model.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if not Path(source).is_dir() and revision is None:
            raise ValueError(f"{source} is no folder here, and a Hub id runs code from its repository: pin it with --revision <commit>")
        cuda = torch.cuda.is_available()
        if device.startswith("cuda") and not cuda:
            raise ValueError("no CUDA device here: use --device cpu")
        place = ("cuda" if cuda else "cpu") if device == "auto" else device
        pins = {"revision": revision, "code_revision": revision, "trust_remote_code": True}
        kind = dtype or ("bfloat16" if place.startswith("cuda") else "float32")
        try:
            processor = AutoProcessor.from_pretrained(source, **pins)
            model: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=kind, **pins)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: no model that can be loaded ({str(error).splitlines()[0]})") from error
        return cls(model.to(place).eval(), processor, **options)

    def probabilities(self, batch: list[Loaded]) -> torch.Tensor:
        """p(harmful) of visuals and text of decoded requests of one kind, (batch, 2) float32 on the CPU; NaN where there is no token.

        Raises:
            ValueError: the processor refuses a row.
        """
        from videosafety.lmms_eval_tasks.inputs import model_inputs

        return self.of_inputs(model_inputs(self.processor, batch))

    def of_inputs(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """As `probabilities`, of the processor's tensors."""
        with torch.inference_mode():
            return self.model.alarm_probs(**on_model(inputs, self.model)).float().cpu()

    def judge(self, rows: Iterable[Row], batch_size: int = 8, workers: int = 2) -> Iterator[dict[str, Any]]:
        """One result a row, in order, while later ones are decoded. Where memory runs out, prefills get smaller.

        Each has `id`, the media path, `p_visual` and `p_textual` in [0, 1] or null with a word on why under `missing`, `flagged` (null
        where there is neither probability), `error` (null, or why the row could not be judged: then nothing else is known), and the
        row's `extra`.
        """
        from videosafety.lmms_eval_tasks.halving import Halving
        from videosafety.lmms_eval_tasks.inputs import model_inputs
        from videosafety.lmms_eval_tasks.pipeline import prepared

        order, waiting, memory = list(rows), {}, Halving(batch_size)
        batches = [[_request(i, order[i]) for i in part] for part in _batches(order, batch_size)]
        following = 0
        for ready in prepared(batches, Decoder(self.sampling), lambda loaded: model_inputs(self.processor, loaded), workers):
            judged, lost = memory.run(ready.loaded, ready.inputs, self._pairs)
            waiting.update({request.index: _failed(order[request.index], message) for request, message in [*ready.failed, *lost]})
            waiting.update({request.index: self.result(order[request.index], pair) for request, pair in judged})
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def _pairs(self, batch: list[Loaded], inputs: Mapping[str, Any] | None) -> list[list[float]]:
        return (self.probabilities(batch) if inputs is None else self.of_inputs(inputs)).tolist()

    def result(self, row: Row, pair: Iterable[float]) -> dict[str, Any]:
        """What `judge` gives for a row with these two probabilities, NaN where there was no token."""
        found = {name: None if p != p else p for name, p in zip(("visual", "textual"), pair, strict=True)}
        missing = {name: NO_TOKEN for name, p in found.items() if p is None}
        # The tokens stand in every prompt; about nothing they say nothing.
        for name, absent, why in (("visual", row.video is None and row.image is None, NO_VISUALS), ("textual", not row.text, NO_TEXT)):
            if absent:
                found[name], missing[name] = None, why
        return {
            **_head(row),
            "p_visual": found["visual"],
            "p_textual": found["textual"],
            "flagged": self.calibration.flagged(found["visual"], found["textual"]),
            "error": None,
            **({"missing": missing} if missing else {}),
        }


def _head(row: Row) -> dict[str, Any]:
    media = {name: str(path) for name, path in (("video", row.video), ("image", row.image)) if path is not None}
    return {**row.extra, "id": row.id, **media}


def _failed(row: Row, message: str) -> dict[str, Any]:
    return {**_head(row), "p_visual": None, "p_textual": None, "flagged": None, "error": message}


def _batches(rows: list[Row], batch_size: int) -> Iterator[list[int]]:
    """Neighbours that show the same kind of media, at most `batch_size` together: others cannot share a prefill."""
    for _, run in groupby(range(len(rows)), key=lambda i: (rows[i].video is not None, rows[i].image is not None)):
        while part := list(islice(run, batch_size)):
            yield part


def _request(index: int, row: Row) -> Any:
    from videosafety.lmms_eval_tasks.pipeline import Request

    content: list[dict[str, Any]] = [{"type": kind} for kind in ("video", "image") if getattr(row, kind) is not None]
    content.append({"type": "text", "text": row.text})
    videos = [] if row.video is None else [str(row.video)]
    images: list[Any] = [] if row.image is None else [str(row.image)]
    return Request(index, row.id, [{"role": "user", "content": content}], videos, images, {})


# --- where rows come from -------------------------------------------------------------------------------------------------------------


def rows_of_folder(folder: Path, text: str = "") -> list[Row]:
    """Every video and image below a folder, by path, each with the same words.

    Raises:
        ValueError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix.lower() in VIDEOS | IMAGES)
    if not files:
        raise ValueError(f"{folder}: no video or image in it ({', '.join(sorted(VIDEOS | IMAGES))})")
    return [_row_of(file, file.relative_to(folder).as_posix(), text) for file in files]


def _row_of(file: Path, name: str, text: str) -> Row:
    return Row(name, text, image=file) if file.suffix.lower() in IMAGES else Row(name, text, video=file)


def rows_of_file(file: Path, text: str = "") -> list[Row]:
    """The rows of a JSONL file: `video` or `image` (a path, from the file's folder), `text`, `id`; labels and all else are carried over.

    Args:
        text: of rows without one.

    Raises:
        ValueError: no such file, no rows, or a line that is no such row, named by its number. Media are not opened here.
    """
    return [_row_of_line(entry, where, number, file.parent, text) for number, (where, entry) in enumerate(read_jsonl(file), start=1)]


def read_jsonl(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file and line in words, object) of every line. Raises ValueError where there is none, or a line is no JSON object."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # at LF only: str.splitlines would also cut at U+2028, which text may hold
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}). One object a line is wanted.") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: {type(entry).__name__} where an object is wanted")
        found.append((where, entry))
    if not found:
        raise ValueError(f"{file}: no rows in it")
    return found


def _row_of_line(entry: dict[str, Any], where: str, number: int, folder: Path, text: str) -> Row:
    media: dict[str, Path] = {}
    for kind in ("video", "image"):
        if entry.get(kind) is not None:
            if not isinstance(entry[kind], str) or not entry[kind]:
                raise ValueError(f"{where}: {kind} must be a path, got {entry[kind]!r}")
            media[kind] = folder / entry[kind]
    words = entry.get("text", text)
    if not isinstance(words, str):
        raise ValueError(f"{where}: text must be a string, got {words!r}")
    if not media and not words:
        raise ValueError(f"{where}: neither video nor image nor text: nothing to judge")
    extra = {key: value for key, value in entry.items() if key not in ("id", "video", "image", "text", *RESULT_KEYS)}
    return Row(str(entry.get("id", number)), words, **media, extra=extra)
