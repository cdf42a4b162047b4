"""Rows that the recipes train on, from the train split: thinking triples for SFT and GRPO, and preference pairs, each with both labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from videosafety.dataset_builder.config import Config, ConfigError
from videosafety.dataset_builder.lists import dump_line
from videosafety.dataset_builder.prompts import messages, template
from videosafety.dataset_builder.rows import Outcome, Rejected, Rejection, Row, Stage
from videosafety.dataset_builder.servers import Answer, Ask, asked_for, fields_of
from videosafety.dataset_builder.write import replacing
from videosafety.lmms_eval_tasks.judge import Item, Label, Stance, Verdict, get_judge
from videosafety.lmms_eval_tasks.judge.policy import policy_hash, policy_prompt
from videosafety.training_recipes.data import row_problems
from videosafety.training_recipes.schema import CURRENT, SAFETY_TYPE, new_row
from videosafety.training_recipes.tags import parse, tag_count

KINDS = ("sft", "grpo", "dpo")  # files: sft.jsonl has triples, grpo.jsonl answers to compare with, dpo.jsonl pairs
_PROVENANCE = "provenance"
_WORDS = ("safe", "harmful")
# What the answer does in each cell. The rule of hs: its words are harmless, and the help that they ask for is not.
_STANCE = {
    "hh": "It declines in one or two friendly sentences, names the rule in plain words, and offers something that helps without the harm.",
    "hs": "It says what the video shows and why it will not help to do the same, and offers something that helps without the harm.",
    "sh": "It declines in one or two friendly sentences, names the rule in plain words, and may speak of what the video really shows.",
    "safeq": "It helps in full: concrete, correct, friendly, without warnings that nobody needs.",
}


def training(config: Config, ask: Ask) -> Stage:
    """Stage: of one row of the set the training rows, each as {"kind": one of KINDS, "row": in the recipes' schema, "provenance": …}.

    The bridge is text (as in SafeVid, arXiv 2505.11926): a description of the clip, the query and the policy go to a language model,
    which thinks by the rules and answers. The answer to reject comes from a model that is shown no policy, and counts only where the
    judge finds it worse: harmful help, or a refusal of a harmless query.
    """
    settings = config.training
    if settings is None:
        raise ConfigError("the config has no section training")
    judge: Any = get_judge(settings.judge)
    if not callable(judge):
        raise ConfigError(f"training.judge {settings.judge!r} asks a server; name one that does not, such as offline")

    def stage(row: Row) -> Iterator[Outcome]:
        answer, thinking, model = _reasoned(config, ask, row)
        if problem := _fault(judge, row, answer, chosen=True):
            raise Rejected(f"the answer to choose is no good: {problem}")
        facts = {
            "source": config.name, "prompt": row["query"], "videos": [row["video"]], "visual_label": row["visual_label"],
            "textual_label": row["textual_label"], "language": row["language"], "category": row["category"], "label_version": CURRENT,
        }  # fmt: skip
        triple = (
            f"<think>{thinking}</think>\n<answer>{answer}</answer>\n"
            f"<vidType>{row['visual_label']}</vidType>\n<textType>{row['textual_label']}</textType>"
        )
        if parse(triple) is None:
            raise Rejected("thinking or answer holds tags")
        made_by = {
            "row": row["id"], "reason": {"model": model, "prompt": template("reason").hash}, "reject": None, "judge": judge.id,
            "policy": policy_hash(), **{key: row["provenance"].get(key) for key in ("clip_sha256", "config", "builder", "versions")},
        }  # fmt: skip
        yield _checked("sft", row, facts, made_by, completion=triple)
        yield _checked("grpo", row, facts, made_by, reference=answer, problem_type=SAFETY_TYPE)
        if settings.reject is not None:
            try:
                worse = _worse(config, ask, judge, row, answer)
                yield _checked("dpo", row, facts, made_by | {"reject": {"model": worse.model}}, chosen=answer, rejected=worse.text)
            except Rejected as error:
                yield Rejection(row["id"], str(error), what="dpo", transient=error.transient)

    return stage


def _reasoned(config: Config, ask: Ask, row: Row) -> tuple[str, str, str]:
    """(answer, thinking, the model that wrote both). Raises Rejected."""
    assert config.training is not None
    shown = {"video": row["description"] or "(nothing is known)", "query": row["query"]}
    prompt = messages(
        "reason", shown, policy=policy_prompt(row["category"]), stance=_STANCE[row["cell"]],
        visual=_WORDS[row["visual_label"]], textual=_WORDS[row["textual_label"]],
    )  # fmt: skip
    properties = {"thinking": {"type": "string"}, "answer": {"type": "string"}}
    reply = ask(config.training.reason, prompt, asked_for("reasoning", properties, tokens=900, seed=config.seed))
    found = fields_of(reply, {"thinking": str, "answer": str})
    answer, thinking = found["answer"].strip(), found["thinking"].strip()
    if tag_count(answer) or tag_count(thinking):
        raise Rejected("thinking or answer holds tags")
    return answer, thinking, reply.model


def _worse(config: Config, ask: Ask, judge: Callable[[Item], Verdict], row: Row, chosen: str) -> Answer:
    """The answer to reject, and the model that wrote it. Raises Rejected where it is no worse than the chosen one."""
    assert config.training is not None
    assert config.training.reject is not None
    text = f"A video shows the following. {row['description']}\n\n{row['query']}" if row["description"] else row["query"]
    reply = ask(config.training.reject, [{"role": "user", "content": text}], {"max_tokens": 600, "seed": config.seed, "temperature": 0.0})
    answer = reply.text.strip()
    if tag_count(answer) or not answer:
        raise Rejected("the answer to reject is empty or holds tags")
    if answer == chosen or not _fault(judge, row, answer, chosen=False):
        raise Rejected("the answer to reject is no worse than the chosen one")
    return Answer(answer, reply.model)


def _fault(judge: Callable[[Item], Verdict], row: Row, answer: str, chosen: bool) -> str | None:
    """What the judge has against an answer in its cell. Without a verdict a chosen answer has a fault, and one to reject has none."""
    verdict = judge(Item(row["query"], answer, row["category"], row["language"]))
    if verdict.label is Label.UNSCORED:
        return f"the judge gave no verdict ({verdict.reason.value if verdict.reason else 'no reason'})" if chosen else None
    if verdict.label is Label.UNSAFE:
        return "the judge calls it unsafe"
    if row["cell"] == "safeq" and verdict.stance is Stance.REFUSES:
        return "it refuses a harmless query"
    return None


def _checked(kind: str, row: Row, facts: dict[str, Any], made_by: dict[str, Any], **target: Any) -> Row:
    made = new_row(id=f"{row['id']}-{kind}", **facts, **target)
    if problems := row_problems(made):
        raise Rejected(f"no sound training row: {problems[0]}")
    kept = {key: value for key, value in made.items() if value not in (None, [])}
    return {"id": made["id"], "kind": kind, "row": kept, "provenance": {"id": made["id"], **made_by}}


def write(rows: Iterable[Row], folder: Path) -> Counter[str]:
    """Write `sft.jsonl`, `grpo.jsonl` and `dpo.jsonl`; paths of media start at `folder`. How many rows each has; none where it has none.

    `provenance.jsonl` says of each of them, by `id`, who made it from which row of the set: the recipes' schema has no place for that.

    A query with two text labels in the split (the words of one cell are those of another) is left out of the later rows: the recipes
    refuse rows that contradict each other.
    """
    counts: Counter[str] = Counter()
    labels: dict[str, int] = {}
    with ExitStack() as opened:
        files: dict[str, TextIO] = {}
        for name in (*KINDS, _PROVENANCE):
            part = opened.enter_context(replacing(folder / f"{name}.jsonl"))
            files[name] = opened.enter_context(open(part, "w", encoding="utf-8", newline="\n"))
        for made in rows:
            row = made["row"]
            if labels.setdefault(row["prompt"], row["textual_label"]) == row["textual_label"]:
                files[made["kind"]].write(dump_line(row))
                files[_PROVENANCE].write(dump_line(made["provenance"]))
                counts[f"{made['kind']} rows"] += 1
    for kind in KINDS:
        if not counts[f"{kind} rows"]:
            (folder / f"{kind}.jsonl").unlink()
    if not counts:
        (folder / f"{_PROVENANCE}.jsonl").unlink()
    return counts
