"""Where in a clip the harm is, in seconds: from the manifest, an alarm model's timeline, or the judges' votes on each window."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from videosafety.dataset_builder.config import Config, ConfigError, Judge
from videosafety.dataset_builder.label import all_asked, decide, vote
from videosafety.dataset_builder.rows import Outcome, Rejected, Row, Stage, digest, said
from videosafety.dataset_builder.servers import Ask
from videosafety.lmms_eval_tasks.video import MediaError, content_hash

Span = tuple[float, float]


def windows(duration: float, window: float) -> list[Span]:
    """[0, duration) in windows of `window` seconds; the last is cut short, and joins the one before where under half is left."""
    starts = [i * window for i in range(max(1, round(duration / window)))]
    return list(zip(starts, [*starts[1:], duration], strict=True))


def joined(spans: Sequence[Span]) -> list[list[float]]:
    """Spans that touch or overlap as one, ascending, to milliseconds."""
    found: list[list[float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1] + 1e-6:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return [[round(start, 3), round(end, 3)] for start, end in found]


def clipped(told: Sequence[Sequence[float]], shot: Sequence[float], duration: float) -> list[Span]:
    """Spans of the source, in its seconds, as spans of the shot [start, end] in seconds from its start; parts outside are cut off."""
    moved = ((max(0.0, start - shot[0]), min(duration, end - shot[0])) for start, end in told)
    return [(start, end) for start, end in moved if end - start > 1e-3]


def spans(config: Config, ask: Ask) -> Stage:
    """Stage: `harm_spans` of harmful clips, [] of safe ones.

    Where nobody can say where the harm is, the span is the whole shot, and the provenance says `spans_by: whole shot`. A clip on which a
    judge's server failed is left out until the next run has its votes.
    """
    alarm = _Timeline(config.root / config.spans.model, config) if config.spans.model else None
    seeing = [judge for judge in config.labels.judges if judge.frames]

    def stage(row: Row) -> Iterator[Outcome]:
        if row["visual_label"] == 0:
            yield said(row, spans_by=None) | {"harm_spans": []}
            return
        found: list[Span] = []
        by = ""
        if row["told"]["harm_spans"]:
            by, found = "manifest", clipped(row["told"]["harm_spans"], row["provenance"]["shot"], row["duration"])
        elif alarm is not None:
            by, found = alarm.name, alarm.harmful(row["file"])
        elif seeing and row["duration"] > config.spans.window:
            by, found = "judges", _voted(config, ask, seeing, row)
        yield said(row, spans_by=by if found else "whole shot") | {"harm_spans": joined(found) or [[0.0, round(row["duration"], 3)]]}

    return stage


def _voted(config: Config, ask: Ask, seeing: Sequence[Judge], row: Row) -> list[Span]:
    """The windows that most judges call harmful; none where a window has no verdict, for the harm may be there.

    Raises:
        AskFailed: a judge's server failed.
    """
    found: list[Span] = []
    for window in windows(row["duration"], config.spans.window):
        votes = [vote(config, ask, judge, row, window) for judge in seeing]
        all_asked(votes)
        if all(v["label"] == "unscored" for v in votes):
            return []
        if decide(votes, "majority") == 1:
            found.append(window)
    return found


class _Timeline:
    """An alarm model that scores overlapping windows of a clip."""

    def __init__(self, folder: Path, config: Config) -> None:
        from videosafety.hf_models.guard import Guard

        try:
            self._guard = Guard.load(str(folder))
        except ValueError as error:
            raise ConfigError(f"spans.model: {error}") from error
        self._window, self._threshold = config.spans.window, config.spans.threshold
        self._lock = threading.Lock()
        weights = [content_hash(file) for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin")]
        self.name = f"alarm timeline of {folder.name} ({digest(weights, length=8)})"

    def harmful(self, file: str) -> list[Span]:
        from videosafety.hf_models.timeline import timeline

        try:
            with self._lock:
                scores, _ = timeline(self._guard, Path(file), "", self._window, self._window / 2)
        except (MediaError, ValueError) as error:
            raise Rejected(f"no timeline: {str(error).replace(file, 'the clip')}") from error
        found: list[Span] = []
        for segment in scores.segments:
            if segment.p_visual is None:  # without it nobody can say that the harm is only elsewhere
                raise Rejected(f"no timeline: second {segment.start:g} to {segment.end:g} has no score ({segment.error})")
            if segment.p_visual >= self._threshold:
                found.append((segment.start, min(segment.end, scores.duration)))
        return found
