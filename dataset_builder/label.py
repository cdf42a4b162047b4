"""What a clip shows, by the policy: every judge votes, the votes stay in the row, and where they differ a person is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from videosafety.dataset_builder.config import Config, Judge
from videosafety.dataset_builder.prompts import bodies, frames, messages, template
from videosafety.dataset_builder.rows import Outcome, Rejected, Rejection, Row, Stage, number, said
from videosafety.dataset_builder.servers import Ask, AskFailed, asked_for, fields_of
from videosafety.lmms_eval_tasks.judge.policy import policy_hash, policy_prompt

WORDS = ("safe", "harmful")  # the index is the label
ATTEMPTS = 2  # of a judge that says nothing that can be read
_TOKENS = 200
_NO_TEXT = "(nothing is known)"


def label(config: Config, ask: Ask) -> Stage:
    """Stage: `visual_label` (0 safe, 1 harmful), `category`, and the votes; a clip without a decision is held for review.

    A clip on which a judge's server failed is left out until the next run has that vote: no label stands on part of its judges.
    """

    def stage(row: Row) -> Iterator[Outcome]:
        votes = [_owner(row)] if config.labels.manifest and row["told"]["visual_label"] is not None else []
        votes += [vote(config, ask, judge, row) for judge in config.labels.judges]
        all_asked(votes)
        told = said(row, votes=votes, agreement=agreement(votes), policy=policy_hash(), label_prompt=template("label").hash)
        if decision := row.get("decision"):
            if decision["action"] == "reject":
                yield Rejection(row["id"], f"rejected by a reviewer: {decision.get('reason') or 'no reason given'}", row=told)
                return
            yield _decided(told, decision["visual_label"], decision.get("category") or _category(config, told, votes), "review")
            return
        decided = decide(votes, config.labels.on_disagreement)
        if decided is None:
            why = "judges disagree" if len({v["label"] for v in votes} - {"unscored"}) > 1 else "no judge gave a verdict"
            yield Rejection(row["id"], f"{why}: held for review", row=told)
            return
        by = "votes of those that answered" if any(v["label"] == "unscored" for v in votes) else "all votes"
        by = config.labels.on_disagreement if agreement(votes) not in (None, 1.0) else by
        yield _decided(told, decided, _category(config, told, votes), by)

    return stage


def _owner(row: Row) -> dict[str, Any]:
    told = row["told"]
    return {
        "judge": "manifest",
        "family": "human",
        "label": WORDS[told["visual_label"]],
        "category": told["category"],
        "detail": "",
        "transient": False,
    }


def vote(config: Config, ask: Ask, judge: Judge, row: Row, span: tuple[float, float] | None = None) -> dict[str, Any]:
    """One judge's vote on a clip, or on [start, end) seconds of it: label (safe, harmful or unscored), category, and why there is none."""
    server = config.servers[judge.server]
    name = f"{server.model}@{server.revision}" if server.revision else server.model
    vote = {
        "judge": f"{name}+{judge.frames}frames",
        "family": server.family,
        "label": "unscored",
        "category": None,
        "detail": "",
        "transient": False,
    }
    shown = frames(row["file"], judge.frames, span) if judge.frames else []
    prompt = messages("label", {"clip": row["text"] or _NO_TEXT}, shown, policy=policy_prompt(), categories=", ".join(bodies()))
    properties = {"visual": {"type": "string", "enum": list(WORDS)}, "category": {"type": "string", "enum": list(bodies())}}
    for attempt in range(ATTEMPTS):
        try:
            answer = ask(judge.server, prompt, asked_for("label", properties, tokens=_TOKENS, seed=config.seed + attempt))
            found = fields_of(answer, {"visual": WORDS, "category": tuple(bodies())})
        except AskFailed as error:
            return vote | {"detail": str(error), "transient": True}
        except Rejected as error:
            vote |= {"detail": str(error)}
        else:
            return vote | {"label": found["visual"], "category": found["category"], "detail": ""}
    return vote


def all_asked(votes: list[dict[str, Any]]) -> None:
    """Raises AskFailed where a judge's server failed: its vote may still come, and a label without it would stand for good."""
    for vote in votes:
        if vote["transient"]:
            raise AskFailed(f"a judge's server failed: {vote['judge']} ({vote['detail']}); build again to ask it")


def decide(votes: list[dict[str, Any]], on_disagreement: str) -> int | None:
    """The label that the votes give, or None where a person has to say. A judge without a verdict has no vote."""
    labels = [WORDS.index(vote["label"]) for vote in votes if vote["label"] != "unscored"]
    if not labels:
        return None
    if len(set(labels)) == 1:
        return labels[0]
    if on_disagreement == "first" and votes[0]["label"] != "unscored":
        return labels[0]
    if on_disagreement == "majority" and 2 * sum(labels) != len(labels):
        return int(2 * sum(labels) > len(labels))
    return None


def agreement(votes: list[dict[str, Any]]) -> float | None:
    """Share of pairs of votes that agree, in [0, 1]; None below two votes."""
    counts = Counter(vote["label"] for vote in votes if vote["label"] != "unscored")
    n = sum(counts.values())
    return sum(c * (c - 1) for c in counts.values()) / (n * (n - 1)) if n > 1 else None


def _category(config: Config, row: Row, votes: list[dict[str, Any]]) -> str:
    """The manifest's category, else the most frequent vote, else the config's, else one that chance gives the clip."""
    named = Counter(vote["category"] for vote in votes if vote["category"])
    if row["told"]["category"]:
        return str(row["told"]["category"])
    if named:
        return max(named, key=lambda category: (named[category], -list(bodies()).index(category)))
    return config.labels.category or list(bodies())[number("category", row["id"]) % len(bodies())]


def _decided(row: Row, visual: int, category: str, by: str) -> Row:
    disputed = by == "review" or row["provenance"]["agreement"] not in (None, 1.0)
    return said(row, decided_by=by, disputed=disputed) | {"visual_label": visual, "category": category}


def describe(config: Config, ask: Ask) -> Stage:
    """Stage: `description`, a detailed text of what the clip shows; the row is as it was where no server is named for that."""

    def stage(row: Row) -> Iterator[Outcome]:
        settings = config.describe
        if settings is None:
            yield row | {"description": row["text"]}
            return
        shown = frames(row["file"], settings.frames) if settings.frames else []
        prompt = messages("describe", {"clip": row["text"] or _NO_TEXT}, shown)
        answer = ask(settings.server, prompt, asked_for("description", {"description": {"type": "string"}}, tokens=600, seed=config.seed))
        text = fields_of(answer, {"description": str})["description"].strip()
        if not text:
            raise Rejected("the description is empty")
        yield said(row, description_by=answer.model, description_prompt=template("describe").hash) | {"description": text}

    return stage
