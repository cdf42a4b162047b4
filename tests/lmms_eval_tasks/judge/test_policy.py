"""What of the policy a judging model reads."""

from __future__ import annotations

from videosafety.lmms_eval_tasks.judge.policy import policy
from videosafety.lmms_eval_tasks.judge.prompt import Template
from videosafety.lmms_eval_tasks.judge.verdict import Item


def test_the_policy_in_the_prompt_is_the_rows_category_in_full_or_a_line_on_each() -> None:
    template = Template("verdict.jinja")
    one, everything, unknown = (template.render(Item("q", "a", category)).system for category in ("theft", None, "no such"))
    bodies = {name: body for group in policy()["groups"].values() for name, body in group["categories"].items()}
    assert [body["title"] for body in bodies.values() if body["definition"] in one] == [bodies["theft"]["title"]]
    assert all(line in one for line in bodies["theft"]["not_allowed"] + bodies["theft"]["allowed"])
    assert all(f"- {body['title']}: {body['definition']}" in everything for body in bodies.values())
    assert not any(line in everything for body in bodies.values() for line in body["not_allowed"])
    assert unknown == everything
    assert policy()["general"].strip() in one
    assert policy()["general"].strip() in everything
