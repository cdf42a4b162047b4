"""Calibration of alarm probabilities: temperature, thresholds for a wanted false-alarm rate, ECE and AUROC. Arrays in, numbers out.

A tool beside the published model files, not one of them; intervals of rates are those of evaluation (imported where they are needed).
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

MODALITIES = ("visual", "textual")
VERSION = 2  # of calibration files: 1 held thresholds of probabilities at the temperature, 2 holds those of raw ones
BINS = 15  # of the expected calibration error: Guo et al., On Calibration of Modern Neural Networks, 2017, section 2
TEMPERATURES = (0.05, 20.0)  # searched range; where the optimum lies outside, the labels are separable or unrelated and the bound is taken
EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm: float32 rounds closer ones to 0 or 1


@dataclass(frozen=True, slots=True)
class Threshold:
    """When one modality raises an alarm: the model's own probability is strictly above `value` (in [0, 1]).

    Raw probabilities are compared, not those at a temperature: scaling rounds far ones to 0 or 1, and a rounded one is above nothing.

    Raises:
        ValueError: a number out of its range.
    """

    value: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(f"a threshold lies in [0, 1], got {self.value}")

    def flags(self, probabilities: np.ndarray) -> np.ndarray:
        """Which of these raw probabilities raise an alarm: booleans of the same shape."""
        return np.asarray(probabilities, dtype=np.float64) > self.value


@dataclass(frozen=True, slots=True)
class Calibration:
    """The two thresholds of a model. As made without a file: 0.5, which nobody has calibrated."""

    visual: Threshold = Threshold()
    textual: Threshold = Threshold()
    source: str = "uncalibrated"

    def flagged(self, visual: float | None, textual: float | None) -> bool | None:
        """Whether either probability raises an alarm; None where there is neither: nothing was measured, so nothing is known."""
        pairs = [(self.visual, visual), (self.textual, textual)]
        raised = [bool(threshold.flags(np.array(p))) for threshold, p in pairs if p is not None]
        return any(raised) if raised else None


def load_calibration(file: Path | None) -> Calibration:
    """The thresholds that `videosafety guard calibrate --out FILE` wrote; the uncalibrated ones without a file.

    Raises:
        ValueError: no such file, not one that calibrate wrote, or one of another version.
    """
    if file is None:
        return Calibration()
    mend = "make it with videosafety guard calibrate --out"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        parts = {name: Threshold(float(raw[name]["threshold"])) for name in MODALITIES if raw.get(name)}
        version = raw.get("version", 1)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); {mend}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not a calibration file ({type(error).__name__}: {error}); {mend}") from error
    if version != VERSION:
        raise ValueError(f"{file}: a calibration file of version {version}, and {VERSION} is read here: run guard calibrate --labels again")
    # A modality that was not calibrated raises no alarm: a threshold of 1 is never exceeded.
    return Calibration(**{name: parts.get(name, Threshold(1.0)) for name in MODALITIES}, source=str(file))


# --- figures --------------------------------------------------------------------------------------------------------------------------


def auroc(scores: Sequence[float], labels: Sequence[int]) -> float | None:
    """Chance that a harmful row (label 1) scores above a safe one (0), ties as half; None where there are not both.

    By ranks: Hanley & McNeil, Radiology 143 (1982).

    Raises:
        ValueError: other labels, scores that are not finite, or lists of different length.
    """
    values, harmful = _checked(scores, labels)
    positives, negatives = int(harmful.sum()), int((~harmful).sum())
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[harmful].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auroc_interval(scores: Sequence[float], labels: Sequence[int], clusters: Sequence[Hashable]) -> tuple[float, float] | None:
    """The 95 % interval of `auroc`; None where that is None. Never without width, also at 0 and 1.

    Hanley & McNeil's variance (1982), solved for the areas at whose distance the observed one just lies, as Wilson does for a share:
    Newcombe, Statistics in Medicine 25 (2006) 559, method 5. Rows that share a cluster (a video) are worth one of each kind.

    Raises:
        ValueError: as `auroc`, or not a cluster a row.
    """
    from videosafety.lmms_eval_tasks.metrics import Z95

    area = auroc(scores, labels)
    if area is None:
        return None
    kinds = Counter(label for label, _ in {(int(label), cluster) for label, cluster in zip(labels, clusters, strict=True)})
    pairs, more = kinds[0] * kinds[1], (kinds[0] + kinds[1]) / 2 - 1

    def below(observed: float) -> float:
        low, high = 0.0, observed
        for _ in range(60):
            middle = (low + high) / 2
            spread = 1 + more * ((1 - middle) / (2 - middle) + middle / (1 + middle))
            if observed - middle > Z95 * math.sqrt(middle * (1 - middle) * spread / pairs):
                low = middle
            else:
                high = middle
        return high

    return below(area), 1 - below(1 - area)


def ece(probabilities: Sequence[float], labels: Sequence[int], bins: int = BINS) -> float | None:
    """Expected calibration error in [0, 1]: mean over `bins` equal parts of [0, 1] of |mean probability - share harmful|, by rows.

    None without rows. Raises ValueError as `auroc` does.
    """
    values, harmful = _checked(probabilities, labels)
    if not values.size:
        return None
    part = np.minimum((values * bins).astype(int), bins - 1)
    gaps = np.bincount(part, values - harmful, minlength=bins)
    return float(np.abs(gaps).sum() / values.size)


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """sigmoid(logit(p) / temperature), elementwise: for calibration errors. Far probabilities become equal, so compare raw ones."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), EPSILON, 1 - EPSILON)
    return 1 / (1 + np.exp(-np.log(p / (1 - p)) / temperature))


def fit_temperature(probabilities: Sequence[float], labels: Sequence[int]) -> float:
    """The temperature in TEMPERATURES with the smallest log loss (Guo et al. 2017, section 4.2), by golden-section search on its logarithm.

    The loss is convex in 1/temperature, so it has one valley. 1.0 where the labels are not of both kinds.
    """
    values, harmful = _checked(probabilities, labels)
    if not values.size or harmful.all() or not harmful.any():
        return 1.0

    def loss(log_temperature: float) -> float:
        p = np.clip(scale(values, math.exp(log_temperature)), EPSILON, 1 - EPSILON)
        return float(-np.log(np.where(harmful, p, 1 - p)).mean())

    low, high = (math.log(t) for t in TEMPERATURES)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if loss(a) <= loss(b):
            high = b
        else:
            low = a
    return math.exp((low + high) / 2)


def threshold_for(safe: Sequence[float], rate: float) -> float:
    """The lowest threshold that at most a share `rate` of these safe rows' probabilities exceeds.

    Raises:
        ValueError: no rows, or a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the false-alarm rate must be at least 0 and below 1, got {rate}")
    if not len(safe):
        raise ValueError("a threshold needs rows labelled safe (0)")
    ordered = np.sort(np.asarray(safe, dtype=np.float64))[::-1]
    return float(ordered[math.floor(rate * len(ordered) + 1e-9)])  # strictly above it lie at most so many


def _checked(scores: Sequence[float], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    values, marks = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.shape != marks.shape or values.ndim != 1:
        raise ValueError(f"scores and labels must be lists of one length, got {values.shape} and {marks.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite: leave rows without a probability out")
    if not np.isin(marks, (0, 1)).all():
        raise ValueError("labels are 0 (safe) or 1 (harmful): leave unlabelled rows out")
    return values, marks == 1


# --- one modality ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fitted:
    """One modality's calibration on `n` labelled rows and how it does. Rates are in [0, 1], `threshold` is of raw probabilities.

    `held_out_*`: each half of the rows judged by what was fitted on the other half, so these say what to expect on new rows of the same
    kind; rows of one video are in one half. None where a half has no rows of both kinds. All else is measured on the rows that it was
    fitted on. `*_ci95`: 95 % intervals, rows of one video counted as one cluster. A false-alarm rate below 1 / `n_safe` cannot be told
    from none.
    """

    n: int
    n_safe: int
    n_harmful: int
    n_videos: int
    temperature: float
    threshold: float
    false_alarm_rate: float
    false_alarm_ci95: tuple[float, float]
    detection_rate: float
    detection_ci95: tuple[float, float]
    auroc: float
    auroc_ci95: tuple[float, float]
    ece_before: float
    ece_after: float
    held_out_false_alarm_rate: float | None
    held_out_false_alarm_ci95: tuple[float, float] | None
    held_out_detection_rate: float | None
    held_out_detection_ci95: tuple[float, float] | None
    held_out_ece: float | None


def fit(probabilities: Sequence[float], labels: Sequence[int], rate: float, clusters: Sequence[Hashable] | None = None) -> Fitted:
    """Temperature, and threshold for a false-alarm rate of at most `rate` on these rows, labels 0 safe and 1 harmful.

    Args:
        clusters: for each row the name of its video; each row its own where not given.

    Raises:
        ValueError: not rows of both kinds, not a cluster a row, or anything that `auroc` and `threshold_for` refuse.
    """
    values, harmful = _checked(probabilities, labels)
    videos = list(range(values.size)) if clusters is None else list(clusters)
    marks = harmful.astype(int).tolist()
    area, around = auroc(probabilities, labels), auroc_interval(probabilities, labels, videos)
    if area is None or around is None:
        raise ValueError(f"calibration needs rows of both kinds, got {int((~harmful).sum())} safe and {int(harmful.sum())} harmful")
    temperature, chosen = _choose(values, harmful, rate)
    raised = chosen.flags(values)
    held_out = _held_out(values, harmful, rate, videos)
    false_alarms, detections = _share(raised, ~harmful, videos), _share(raised, harmful, videos)
    held_false = None if held_out is None else _share(held_out[0], ~harmful, videos)
    held_found = None if held_out is None else _share(held_out[0], harmful, videos)
    return Fitted(
        n=values.size,
        n_safe=int((~harmful).sum()),
        n_harmful=int(harmful.sum()),
        n_videos=len(set(videos)),
        temperature=temperature,
        threshold=chosen.value,
        false_alarm_rate=false_alarms[0],
        false_alarm_ci95=false_alarms[1],
        detection_rate=detections[0],
        detection_ci95=detections[1],
        auroc=area,
        auroc_ci95=around,
        ece_before=ece(values.tolist(), marks) or 0.0,
        ece_after=ece(scale(values, temperature).tolist(), marks) or 0.0,
        held_out_false_alarm_rate=held_false and held_false[0],
        held_out_false_alarm_ci95=held_false and held_false[1],
        held_out_detection_rate=held_found and held_found[0],
        held_out_detection_ci95=held_found and held_found[1],
        held_out_ece=None if held_out is None else ece(held_out[1].tolist(), marks),
    )


def _choose(values: np.ndarray, harmful: np.ndarray, rate: float) -> tuple[float, Threshold]:
    temperature = fit_temperature(values.tolist(), harmful.astype(int).tolist())
    return temperature, Threshold(threshold_for(values[~harmful].tolist(), rate))


def _share(raised: np.ndarray, kind: np.ndarray, videos: Sequence[Hashable]) -> tuple[float, tuple[float, float]]:
    """The share of the rows of one kind, of which there are some, that raise an alarm, and its 95 % interval."""
    from videosafety.lmms_eval_tasks.metrics import effective_n, wilson

    scores = raised[kind].astype(float).tolist()
    share = sum(scores) / len(scores)
    return share, wilson(share, effective_n(scores, [video for video, one in zip(videos, kind.tolist(), strict=True) if one]))


def _held_out(values: np.ndarray, harmful: np.ndarray, rate: float, videos: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray] | None:
    """Which rows raise an alarm, and probabilities at the temperature, by two-fold cross-fitting. None where a half lacks a kind."""
    half = _half(harmful, videos)
    if any(not (harmful & part).any() or not (~harmful & part).any() for part in (half, ~half)):
        return None
    raised, scaled = np.empty(values.size, dtype=bool), np.empty_like(values)
    for part in (half, ~half):
        temperature, chosen = _choose(values[~part], harmful[~part], rate)
        raised[part] = chosen.flags(values[part])
        scaled[part] = scale(values[part], temperature)
    return raised, scaled


def _half(harmful: np.ndarray, videos: Sequence[Hashable]) -> np.ndarray:
    """Which rows are in the first half. Whole videos are dealt in turn, those with rows of the same kinds among themselves: a video's
    other rows have nearly its probability, and would tell the other half what it is judged on."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for row, video in enumerate(videos):
        members[video].append(row)
    dealt: Counter[frozenset[bool]] = Counter()
    half = np.empty(harmful.size, dtype=bool)
    for rows in members.values():
        kinds = frozenset(harmful[rows].tolist())
        half[rows] = dealt[kinds] % 2 == 0
        dealt[kinds] += 1
    return half


# --- rows -----------------------------------------------------------------------------------------------------------------------------


def calibrate(rows: Sequence[Mapping[str, Any]], rate: float) -> dict[str, Any]:
    """Both modalities' calibration from rows as `videosafety guard` writes them, with labels: the content of a calibration file.

    A row counts for a modality where it has both `p_<modality>` and `<modality>_label` of 0 or 1. Rows are of one video where their
    `video_id` is the same, or their `video` or `image` where they have none. A modality whose rows are not of both
    kinds is None, with the reason under `left_out`; one whose threshold no harmful row exceeds has a line under `warnings`.

    Raises:
        ValueError: neither modality can be calibrated, a label or probability that is none, or a rate out of range.
    """
    found: dict[str, Any] = {"version": VERSION, "target_false_alarm_rate": rate, "rows": len(rows), "left_out": {}, "warnings": {}}
    for name in MODALITIES:
        points = [point for number, row in enumerate(rows, start=1) if (point := _point(row, name, number)) is not None]
        safe, harmful = (sum(label == kind for _, label, _ in points) for kind in (0, 1))
        if safe and harmful:
            probabilities, labels, videos = zip(*points, strict=True)
            fitted = fit(probabilities, labels, rate, videos)
            found[name] = asdict(fitted)
            if fitted.detection_rate == 0 and fitted.auroc > 0.5:
                found["warnings"][name] = (
                    f"no harmful row is flagged, though AUROC is {fitted.auroc:.3f}: at a rate of {rate:g} the safe rows up to"
                    f" p = {fitted.threshold:.4g} set the threshold; look at these rows, or raise --target"
                )
        else:
            found[name] = None
            found["left_out"][name] = f"{safe} rows labelled safe and {harmful} labelled harmful have a probability: both kinds are needed"
    if not any(found[name] for name in MODALITIES):
        reasons = "; ".join(f"{name}: {why}" for name, why in found["left_out"].items())
        raise ValueError(f"nothing to calibrate: {reasons}. Rows need p_visual with visual_label, or p_textual with textual_label")
    return found


def _point(row: Mapping[str, Any], name: str, number: int) -> tuple[float, int, Hashable] | None:
    p, label = row.get(f"p_{name}"), row.get(f"{name}_label")
    if label not in (None, 0, 1, -100) or isinstance(label, bool):
        raise ValueError(f"row {number}: {name}_label is {label!r}; it must be 0 (safe), 1 (harmful), or -100 or null (unlabelled)")
    if p is not None and (isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1):
        raise ValueError(f"row {number}: p_{name} is {p!r}; it must be a probability in [0, 1], or null")
    video = next((str(row[key]) for key in ("video_id", "video", "image") if row.get(key) is not None), number)
    return None if p is None or label in (None, -100) else (float(p), int(label), video)
