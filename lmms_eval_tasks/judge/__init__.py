"""Judges: one file per kind, one typed verdict, one place that names the judge in use."""

from __future__ import annotations

import os
from functools import cache

from videosafety.lmms_eval_tasks.judge.offline import OfflineJudge
from videosafety.lmms_eval_tasks.judge.refusal import RefusalJudge
from videosafety.lmms_eval_tasks.judge.verdict import Judge, Label, Reason, Stance, Verdict, unscored

__all__ = ["Judge", "Label", "Reason", "Stance", "Verdict", "get_judge", "judge_spec", "unscored"]

JUDGES: dict[str, type[Judge]] = {"offline": OfflineJudge, "refusal": RefusalJudge}


def judge_spec() -> str:
    """The judge in use: the environment variable VIDEOSAFETY_JUDGE, else `offline`."""
    return os.environ.get("VIDEOSAFETY_JUDGE", "offline")


@cache
def get_judge(spec: str) -> Judge:
    """The judge that a spec names.

    Raises:
        ValueError: when this version has no such judge; the message lists those it has.
    """
    if spec not in JUDGES:
        raise ValueError(f"unknown judge {spec!r}: this version has {', '.join(sorted(JUDGES))}. Set VIDEOSAFETY_JUDGE to one of them.")
    return JUDGES[spec]()
