"""Calibration of alarm probabilities: temperature, thresholds for a wanted false-alarm rate, ECE and AUROC. Arrays in, numbers out.

A tool beside the published model files, not one of them; needs numpy only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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
    kind; None where a half has no rows of both kinds. All else is measured on the rows that it was fitted on. A false-alarm rate below
    1 / `n_safe` cannot be told from none.
    """

    n: int
    n_safe: int
    n_harmful: int
    temperature: float
    threshold: float
    false_alarm_rate: float
    detection_rate: float
    auroc: float
    ece_before: float
    ece_after: float
    held_out_false_alarm_rate: float | None
    held_out_detection_rate: float | None
    held_out_ece: float | None


def fit(probabilities: Sequence[float], labels: Sequence[int], rate: float) -> Fitted:
    """Temperature, and threshold for a false-alarm rate of at most `rate` on these rows, labels 0 safe and 1 harmful.

    Raises:
        ValueError: not rows of both kinds, or anything that `auroc` and `threshold_for` refuse.
    """
    values, harmful = _checked(probabilities, labels)
    area = auroc(probabilities, labels)
    if area is None:
        raise ValueError(f"calibration needs rows of both kinds, got {int((~harmful).sum())} safe and {int(harmful.sum())} harmful")
    temperature, chosen = _choose(values, harmful, rate)
    after = scale(values, temperature)
    before_ece, after_ece = ece(values.tolist(), harmful.astype(int).tolist()), ece(after.tolist(), harmful.astype(int).tolist())
    held_out = _held_out(values, harmful, rate)
    return Fitted(
        n=values.size,
        n_safe=int((~harmful).sum()),
        n_harmful=int(harmful.sum()),
        temperature=temperature,
        threshold=chosen.value,
        false_alarm_rate=float(chosen.flags(values)[~harmful].mean()),
        detection_rate=float(chosen.flags(values)[harmful].mean()),
        auroc=area,
        ece_before=before_ece or 0.0,
        ece_after=after_ece or 0.0,
        held_out_false_alarm_rate=held_out[0],
        held_out_detection_rate=held_out[1],
        held_out_ece=held_out[2],
    )


def _choose(values: np.ndarray, harmful: np.ndarray, rate: float) -> tuple[float, Threshold]:
    temperature = fit_temperature(values.tolist(), harmful.astype(int).tolist())
    return temperature, Threshold(threshold_for(values[~harmful].tolist(), rate))


def _held_out(values: np.ndarray, harmful: np.ndarray, rate: float) -> tuple[float | None, float | None, float | None]:
    """False-alarm rate, detection rate and ECE of two-fold cross-fitting; rows of each kind are dealt to the halves in turn."""
    half = np.empty(values.size, dtype=bool)
    for kind in (harmful, ~harmful):
        half[kind] = np.arange(int(kind.sum())) % 2 == 0
    if any(not (harmful & part).any() or not (~harmful & part).any() for part in (half, ~half)):
        return None, None, None
    scaled, raised = np.empty_like(values), np.empty(values.size, dtype=bool)
    for part in (half, ~half):
        temperature, chosen = _choose(values[~part], harmful[~part], rate)
        scaled[part] = scale(values[part], temperature)
        raised[part] = chosen.flags(values[part])
    return float(raised[~harmful].mean()), float(raised[harmful].mean()), ece(scaled.tolist(), harmful.astype(int).tolist())


# --- rows -----------------------------------------------------------------------------------------------------------------------------


def calibrate(rows: Sequence[Mapping[str, Any]], rate: float) -> dict[str, Any]:
    """Both modalities' calibration from rows as `videosafety guard` writes them, with labels: the content of a calibration file.

    A row counts for a modality where it has both `p_<modality>` and `<modality>_label` of 0 or 1. A modality whose rows are not of both
    kinds is None, with the reason under `left_out`; one whose threshold no harmful row exceeds has a line under `warnings`.

    Raises:
        ValueError: neither modality can be calibrated, a label or probability that is none, or a rate out of range.
    """
    found: dict[str, Any] = {"version": VERSION, "target_false_alarm_rate": rate, "rows": len(rows), "left_out": {}, "warnings": {}}
    for name in MODALITIES:
        pairs = [pair for number, row in enumerate(rows, start=1) if (pair := _pair(row, name, number)) is not None]
        safe, harmful = (sum(label == kind for _, label in pairs) for kind in (0, 1))
        if safe and harmful:
            fitted = fit([p for p, _ in pairs], [label for _, label in pairs], rate)
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


def _pair(row: Mapping[str, Any], name: str, number: int) -> tuple[float, int] | None:
    p, label = row.get(f"p_{name}"), row.get(f"{name}_label")
    if label not in (None, 0, 1, -100) or isinstance(label, bool):
        raise ValueError(f"row {number}: {name}_label is {label!r}; it must be 0 (safe), 1 (harmful), or -100 or null (unlabelled)")
    if p is not None and (isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1):
        raise ValueError(f"row {number}: p_{name} is {p!r}; it must be a probability in [0, 1], or null")
    return None if p is None or label in (None, -100) else (float(p), int(label))
