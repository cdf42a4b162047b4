"""Judges: one file per kind, one typed verdict, one place that names the judge in use."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

from videosafety.lmms_eval_tasks.judge.text import thinking_opened
from videosafety.lmms_eval_tasks.judge.verdict import Item, Judge, Label, LocalJudge, Reason, RemoteJudge, Stance, Verdict, unscored

__all__ = [
    "Item",
    "Judge",
    "Label",
    "LocalJudge",
    "Reason",
    "RemoteJudge",
    "Stance",
    "Verdict",
    "get_judge",
    "judge_facts",
    "judge_spec",
    "unscored",
]

# kind -> (module, what makes the judge from what follows the colon). Modules are imported when asked for: a run with an offline judge
# needs neither a client library nor a model.
JUDGES = {
    "offline": ("offline", "OfflineJudge"),
    "refusal": ("refusal", "RefusalJudge"),
    "keyword": ("keyword", "KeywordJudge"),
    "openai": ("llm", "LlmJudge.openai"),
    "local": ("llm", "LlmJudge.local"),
    "rjscore": ("rjscore", "RjScoreJudge"),
    "guard": ("guard", "GuardJudge"),
    "panel": ("panel", "PanelJudge"),
}
FORMS = (
    "offline, refusal, keyword:<list>, openai:<model>, local:<url>#<model> (both with ?images=N to show N frames of each video), "
    "rjscore:<url>#<model>, guard:<hf id>, panel:<spec>+<spec>"
)


def judge_spec() -> str:
    """The judge in use: the environment variable VIDEOSAFETY_JUDGE, else `offline`."""
    return os.environ.get("VIDEOSAFETY_JUDGE", "offline")


def judge_facts(spec: str, judge: Judge) -> dict[str, Any]:
    """What a results file says of the judge: its spec and id, and `thinking_opened` where the user said that answers begin in thinking."""
    return {"spec": spec, "id": judge.id} | ({"thinking_opened": True} if thinking_opened() else {})


@cache
def get_judge(spec: str) -> Judge:
    """The judge that a spec names; the same object for the same spec.

    Raises:
        ValueError: no such judge, or its extra is not installed; the message says which there are, or what to install.
    """
    kind, _, rest = spec.partition(":")
    if kind not in JUDGES or (kind in ("offline", "refusal")) == (":" in spec) or (":" in spec and not rest):
        raise ValueError(f"unknown judge {spec!r}: set VIDEOSAFETY_JUDGE to one of {FORMS}")
    module, path = JUDGES[kind]
    try:
        make: Any = importlib.import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(f"the judge {spec!r} needs {error.name}: pip install 'videosafety[judge]'") from error
    for name in path.split("."):
        make = getattr(make, name)
    if kind == "panel":
        return make([get_judge(member) for member in rest.split("+")])
    return make(rest) if rest else make()
