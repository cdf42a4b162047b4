"""A small forest of decision trees and its calibration, read from JSON and walked in plain Python."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources


@dataclass(frozen=True)
class Forest:
    """Trees over named features, and what makes a probability of their mean.

    Every tree is flat: node i asks whether `names[feature[i]] <= value[i]` and goes on to i + 1 if so, else to `right[i]`; a leaf has
    feature -1, and its value is the score. `slope` and `offset` make a probability of log odds to which the trees' are a part (Platt),
    `threshold` is the calibrated probability from which an answer counts as unsafe, `refused` the probability of an answer that the trees
    never see because it refuses.
    """

    names: list[str]
    feature: list[list[int]]
    value: list[list[float]]
    right: list[list[int]]
    slope: float = 1.0
    offset: float = 0.0
    threshold: float = 0.5
    refused: float = 0.0

    def score(self, features: Mapping[str, float]) -> float:
        """The mean score of the trees, in [0, 1], before calibration."""
        x = [features[name] for name in self.names]
        total = 0.0
        for feature, value, right in zip(self.feature, self.value, self.right, strict=True):
            node = 0
            while feature[node] >= 0:
                node = node + 1 if x[feature[node]] <= value[node] else right[node]
            total += value[node]
        return total / len(self.feature)

    def probability(self, log_odds: float) -> float:
        """The calibrated probability that belongs to log odds."""
        return round(1.0 / (1.0 + math.exp(-(self.slope * log_odds + self.offset))), 6)

    def dumps(self) -> str:
        """One JSON object, the same bytes for the same forest."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"


def logit(score: float) -> float:
    """The log odds of a score, kept finite at 0 and 1."""
    return math.log((score + 1e-3) / (1.0 - score + 1e-3))


def shipped(name: str) -> Forest:
    """The forest that comes with the package."""
    return Forest(**json.loads(resources.files(__package__).joinpath("weights", name + ".json").read_text(encoding="utf-8")))
