"""RJScore as Video-SafetyBench asks for it: one scenario's policy, the harmful intention as request, the answer as response."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from videosafety.lmms_eval_tasks.judge import Item, Verdict
from videosafety.lmms_eval_tasks.judge.prompt import Prompt, Template
from videosafety.lmms_eval_tasks.judge.rjscore import RjScoreJudge
from videosafety.lmms_eval_tasks.judge.text import split_thinking
from videosafety.lmms_eval_tasks.video_safetybench.score import RUBRIC, scenarios, scenarios_hash

TEMPLATE_FILE = Path(__file__).with_name("rjscore.jinja")


class _ScenarioTemplate(Template):
    """The set's own prompt: one scenario's policy, the harmful intention as request, the answer as response."""

    def __init__(self) -> None:
        super().__init__(str(TEMPLATE_FILE))

    def _render(self, item: Item, images: int = 0) -> Prompt:
        name = (item.category or "").partition("_")[2]
        shown = {"request": item.query, "answer": split_thinking(item.answer)[1]}
        return self.fill(shown, images=images, scenario=name.replace("_", " "), definition=scenarios()[name])


class ScenarioJudge(RjScoreJudge):
    """RJScore with the policy of the row's scenario in place of this project's. `Item.category` is a scenario with its number."""

    def __init__(self, url_and_model: str) -> None:
        """Raises ValueError: not `<base url>#<model>`."""
        super().__init__(url_and_model)
        self._template = _ScenarioTemplate()
        self.id = f"{self.id}+{RUBRIC}"

    def _with(self, verdict: Verdict) -> Verdict:
        return replace(super()._with(verdict), policy=scenarios_hash())


@cache
def scenario_judge(url_and_model: str) -> ScenarioJudge:
    """The same judge for the same address: rows share its connections."""
    return ScenarioJudge(url_and_model)
