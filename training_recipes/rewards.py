"""Rewards for GRPO: `format_reward`, `dra_paper` (the paper's formula) and `dra_safe` (what the answer does counts most).

Stock TRL takes them by path, `trl grpo … --reward_funcs videosafety.training_recipes.rewards.dra_safe` (TRL 1.16's script itself wants
`pip install "trl[math-verify]"`), and calls them with the prompts, the completions and every other column of the data set. `dra_paper` and
`dra_safe` are whole rewards, each to be used alone: see `reward_weights`. The columns that they read, of which a row needs those of its
type:

    visual_label, textual_label   0 safe, 1 harmful; needed in safety rows
    reference                     the answer's text alone, without tags
    problem_type                  "free-form-and-choice" (safety, also where the column is missing or null), or a key of `problems.PROBLEMS`
    query                         the bare question, where the prompt adds instructions to it; the judge reads it
    category, language, videos, images   passed on to the judge
    id, label_version             named in errors; refused unless 0 means safe
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videosafety.lmms_eval_tasks.judge import Item, Verdict, get_judge, judge_spec
from videosafety.lmms_eval_tasks.judge.batch import judge_all
from videosafety.lmms_eval_tasks.judge.keyword import KeywordJudge
from videosafety.lmms_eval_tasks.judge.refusal import RefusalJudge
from videosafety.lmms_eval_tasks.judge.reward import answered, asked
from videosafety.lmms_eval_tasks.judge.text import thinking_opened
from videosafety.lmms_eval_tasks.metrics import refusal_score, safe_score

from .helpful import helps
from .problems import PROBLEMS, SAFETY, read_reference, score
from .schema import CURRENT, IMAGE, VIDEO
from .tags import Tagged, parse, tag_count

WHOLE = ("dra_paper", "dra_safe")  # rewards that hold every term already
FORMAT = 1.0  # what r_format is worth (released code)
STANCE_ALONE = (RefusalJudge, KeywordJudge)  # judges whose label follows the stance and says nothing about harm: help is "unsafe"
_stance_of = RefusalJudge()
_Terms = dict[str, float]  # the terms of one row's reward, weighted: their sum is the reward


@dataclass(frozen=True, slots=True)
class Weights:
    """The factors of the terms: α of ROUGE, γ of each label, and in `dra_safe` ± `answer` for what the answer does.

    α lies between `alpha_min` and `alpha_max`. The defaults of α and γ are the paper's recipe (released code: α .1 and .5, γ 1 and 1),
    that of `answer` is the two labels' together. 2·answer must exceed what all other terms can move (γ_v + γ_t + α_max): then no answer
    that does wrong beats one that does right, whatever their labels and their ROUGE.

    Raises:
        ValueError: a weight is negative, alpha_min exceeds alpha_max, or `answer` is too small.
    """

    alpha_min: float = 0.1
    alpha_max: float = 0.5
    visual: float = 1.0
    textual: float = 1.0
    answer: float = 2.0

    def __post_init__(self) -> None:
        if not (0 <= self.alpha_min <= self.alpha_max and self.visual >= 0 and self.textual >= 0):
            raise ValueError(f"weights must be ≥ 0 and alpha_min ≤ alpha_max: {self}")
        labels = self.visual + self.textual
        if not (self.answer >= labels and 2 * self.answer > labels + self.alpha_max):
            raise ValueError(f"`answer` must be ≥ visual + textual, and twice it > visual + textual + alpha_max: {self}")

    def alpha(self, visual_right: bool, textual_right: bool) -> float:
        """α = α_min + (1 - Correct_v·Correct_t)(α_max - α_min): the low weight where both labels are right."""
        return self.alpha_min + (1 - visual_right * textual_right) * (self.alpha_max - self.alpha_min)


PAPER = Weights()


def format_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 for a completion that is in form (`tags.parse`), else 0.0. Rows of another type than safety may leave the label tags out.

    Raises:
        ValueError: an unknown `problem_type`, columns of unequal length, or VIDEOSAFETY_THINKING_OPENED is set.
    """
    return [FORMAT * (row.tagged is not None) for row in _rows(prompts, completions, columns)]


def dra_paper(prompts: Sequence[Any], completions: Sequence[Any], *, weights: Weights = PAPER, **columns: Any) -> list[float | None]:
    """The paper's reward: r_format + α·r_ROUGE + γ_v·r_v + γ_t·r_t, in [0, 3.1] with the recipe's weights (α: `Weights.alpha`).

    It can be hacked: what the answer does is worth α_min of 3.1, and complying with a harmful request under the right labels scores 3.0.
    It is here to reproduce the paper; train with `dra_safe`. A completion out of form scores 0: it has neither labels nor answer. Rows of
    another type than safety score r_format + the problem's score (`problems.py`), as in the released code.

    Args:
        weights: other factors, for example `functools.partial(dra_paper, weights=Weights(alpha_max=1.0))`.

    Raises:
        ValueError: as `format_reward`, or a row lacks labels or a reference; the message names the row.
    """
    _no_column(weights=weights, kind=Weights)
    rows = _rows(prompts, completions, columns, need_labels=True)
    for row in rows:
        if row.reference is None:
            raise ValueError(f"{row.where}: no reference, which dra_paper compares answers with; dra_safe can do without")
    return [sum(_terms(row, weights).values()) for row in rows]


def dra_safe(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    judge: str | None = None,
    weights: Weights = PAPER,
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """`dra_paper` ± `weights.answer` for what the answer does, so that it does right before all else: in [-2, 5.1] by default.

    Where either label says harmful, an answer that the judge calls safe is right (DSR). Where both say safe, one that does not refuse, not
    even in part (1 - FRR), that the judge calls safe too, and that reaches a floor of help (`helpful.helps`): so over-refusal, filler and
    harm cost the same. A judge that gives no stance is helped out by the rules of `refusal`; the labels of `refusal` and `keyword:…` say
    nothing about harm and do not count there. Only what stands in <answer> is judged. A completion out of form gives no answer, which is
    wrong: -2, less than any other. ROUGE counts where the row has a reference, and keeps answers that do right apart.

    None where the judge has no verdict (`Verdict.reason`). TRL leaves such a completion out of its group's mean and gives it advantage 0,
    but only while every reward function says None of it: with another one beside it, even at weight 0, TRL counts None as 0, which ranks
    an answer that nobody judged below one that did harm. Hence: use it alone.

    Args:
        judge: a judge's spec; None: VIDEOSAFETY_JUDGE, else `offline`.
        weights: other factors.
        log_metric, log_extra: TRL's; get the mean of every term, the share of unscored answers, and for each row why it is unscored.

    Raises:
        ValueError: as `dra_paper`, except that references may be missing; no such judge; or a prompt that asks for tags without a column
            `query`, since judges take the words "harmful" and "safe" in instructions for part of the question.
    """
    _no_column(judge=judge, kind=str | None)
    _no_column(weights=weights, kind=Weights)
    ask = get_judge(judge or judge_spec())
    rows = _rows(prompts, completions, columns, need_labels=True)
    items = {i: row.item() for i, row in enumerate(rows) if row.safety}
    shown = [i for i in items if rows[i].tagged]
    verdicts = dict(zip(shown, judge_all(ask, [items[i] for i in shown]), strict=True))
    harm = not isinstance(ask, STANCE_ALONE)
    terms = [_safe_terms(row, items.get(i), verdicts.get(i), weights, harm) for i, row in enumerate(rows)]
    if log_metric is not None:
        _log_means(log_metric, terms)
    if log_extra is not None:
        log_extra("unscored", ["" if found else _why(verdicts[i]) for i, found in enumerate(terms)])
    return [None if found is None else sum(found.values()) for found in terms]


def reward_weights(names: Sequence[str]) -> list[float]:
    """What to pass to TRL as `reward_weights` for these reward functions, named as in `reward_funcs`: 1 for each.

    Raises:
        ValueError: `dra_paper` or `dra_safe` is not alone. They contain the format already, and TRL counts a None of `dra_safe` as 0 when
            another function gives a number.
    """
    whole = [name for name in names if name.rpartition(".")[2] in WHOLE]
    if whole and len(names) > 1:
        raise ValueError(
            f"reward_funcs: {whole[0]} is a whole reward and must stand alone, got {', '.join(names)}; "
            "to add a term, write one function that calls it and adds to every reward that is not None"
        )
    return [1.0] * len(names)


# --- rows -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """One completion with what the data set says of its prompt, checked."""

    where: str
    prompt: Any
    tagged: Tagged | None
    problem_type: str
    labels: tuple[int, int] | None
    reference: Any  # what `read_reference` made of it; None where there is none
    told: Mapping[str, Any]

    @property
    def safety(self) -> bool:
        return self.problem_type == SAFETY

    def item(self) -> Item:
        """What the judge is shown."""
        query = self.told.get("query")
        if query is None:
            query = asked(self.prompt)
            if tag_count(query):
                raise ValueError(
                    f"{self.where}: the prompt asks for tags, and the judge must not read that as part of the question: "
                    "add a column `query` with the bare question"
                )
        for placeholder in (VIDEO, IMAGE):
            query = query.replace(placeholder, "")
        media = [path for name in ("videos", "images") for path in self.told.get(name) or () if isinstance(path, str)]
        answer = self.tagged.answer if self.tagged else ""
        return Item(query.strip(), answer, self.told.get("category"), self.told.get("language"), tuple(media))


def _rows(prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], need_labels: bool = False) -> list[_Row]:
    if thinking_opened():
        raise ValueError(
            "VIDEOSAFETY_THINKING_OPENED=1 says that completions begin inside <think>, but rewards read the tag from the completion: "
            "unset it, and train with a chat template that does not open it"
        )
    lists = {"completions": completions} | {name: columns[name] for name in _COLUMNS if columns.get(name) is not None}
    for name, values in lists.items():
        if len(values) != len(prompts):
            raise ValueError(f"{name}: {len(values)} values for {len(prompts)} prompts")
    rows = []
    for i, prompt in enumerate(prompts):
        told = {name: values[i] for name, values in lists.items()}
        where = f"row {i}" + (f" (id {told['id']!r})" if told.get("id") is not None else "")
        rows.append(_row(where, prompt, told, need_labels))
    return rows


_COLUMNS = (
    *("visual_label", "textual_label", "reference", "problem_type", "query"),
    *("category", "language", "videos", "images", "id", "label_version"),
)


def _row(where: str, prompt: Any, told: Mapping[str, Any], strict: bool) -> _Row:
    kind = SAFETY if told.get("problem_type") is None else told["problem_type"]
    if kind != SAFETY and kind not in PROBLEMS:
        raise ValueError(f"{where}: unknown problem_type {kind!r}; one of {', '.join(map(repr, (SAFETY, *PROBLEMS)))}")
    tagged = parse(answered(told["completions"]), labels=kind == SAFETY)
    if not strict:
        return _Row(where, prompt, tagged, kind, None, None, told)
    if told.get("label_version") not in (None, CURRENT):
        raise ValueError(f"{where}: label_version {told['label_version']!r}, must be {CURRENT!r}: convert the row (schema.to_current)")
    labels: Any = (told.get("visual_label"), told.get("textual_label"))
    if kind == SAFETY and not all(label in (0, 1) for label in labels):
        raise ValueError(
            f"{where}: visual_label {labels[0]!r} and textual_label {labels[1]!r} must be 0 (safe) or 1 (harmful); "
            "label the row, or give its problem_type where it is not about safety"
        )
    reference = told.get("reference")
    if reference is not None or kind != SAFETY:
        if isinstance(reference, str) and tag_count(reference):
            raise ValueError(f"{where}: the reference holds tags: give the answer's text alone, and the labels in their columns")
        try:
            reference = read_reference("free-form" if kind == SAFETY else kind, reference)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return _Row(where, prompt, tagged, kind, labels if kind == SAFETY else None, reference, told)


def _no_column(kind: Any, **keyword: Any) -> None:
    """TRL passes every column as a keyword: one that is named like an option of ours would take its place."""
    for name, value in keyword.items():
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` is an option of this reward, got {type(value).__name__}; rename the data set's column {name!r}")


# --- terms ----------------------------------------------------------------------------------------------------------------------------


def _terms(row: _Row, weights: Weights) -> _Terms:
    """The weighted terms that both rewards share. A completion out of form has them all at 0."""
    tagged = row.tagged
    if row.labels is None:
        task = score(row.problem_type, row.reference, tagged.answer) if tagged else 0.0
        return {"format": FORMAT * (tagged is not None), "task": task}
    if tagged is None:
        return {"format": 0.0, "rouge": 0.0, "visual": 0.0, "textual": 0.0}
    visual, textual = tagged.visual == row.labels[0], tagged.textual == row.labels[1]
    rouge = 0.0 if row.reference is None else weights.alpha(visual, textual) * score("free-form", row.reference, tagged.answer)
    return {"format": FORMAT, "rouge": rouge, "visual": weights.visual * visual, "textual": weights.textual * textual}


def _safe_terms(row: _Row, item: Item | None, verdict: Verdict | None, weights: Weights, harm: bool) -> _Terms | None:
    """The terms of `dra_safe`; None where the judge has no verdict.

    `item` is None in rows that are not about safety, `verdict` where a completion out of form gave nothing to judge.
    `harm`: whether the judge's labels tell harm, and not just the stance.
    """
    terms = _terms(row, weights)
    if item is None:
        return terms
    right = 0.0 if verdict is None else _right(row, verdict, item, harm)
    return None if right is None else terms | {"answer": weights.answer * (2 * right - 1)}


def _right(row: _Row, verdict: Verdict, item: Item, harm: bool) -> float | None:
    """1.0 where the answer does right, 0.0 where it does wrong, None where nobody can say."""
    safe = safe_score(verdict)
    if row.labels != (0, 0) or safe is None:
        return safe
    refused = refusal_score(verdict if verdict.stance else _stance_of(item))
    if refused is None:
        return None
    return float(not refused and (bool(safe) or not harm) and helps(item.query, row.reference, item.answer))


def _why(verdict: Verdict) -> str:
    return verdict.reason.value if verdict.reason else "no_stance"


def _log_means(log_metric: Callable[[str, float], None], rows: Sequence[_Terms | None]) -> None:
    scored = [row for row in rows if row is not None]
    if rows:
        log_metric("dra_safe/unscored", 1 - len(scored) / len(rows))
    for name in dict.fromkeys(name for row in scored for name in row):
        values = [row[name] for row in scored if name in row]
        log_metric(f"dra_safe/{name}", sum(values) / len(values))
