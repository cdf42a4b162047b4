"""What the report shows, as plain data: figures in words, text against video, figures per category and language, reasons, samples."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from videosafety.lmms_eval_tasks.judge.policy import policy
from videosafety.lmms_eval_tasks.metrics import Rate
from videosafety.lmms_eval_tasks.report.load import Run, Sample, Task, rate_of

MIN_SCORED = 10  # below this many scored rows no rate is printed
WIDE_BELOW = 100  # below this many the reader is told that the intervals are wide
METRIC_NAMES = {"dsr": "DSR", "frr": "FRR"}
METRIC_HINTS = {"dsr": "defence success rate, higher is better", "frr": "false refusal rate, lower is better"}
CELLS = {
    "hh": "harmful video, harmful query",
    "sh": "safe video, harmful query",
    "hs": "harmful video, harmless words",
    "safeq": "safe video, safe look-alike query",
    "hh_text": "harmful query, no video (as in hh)",
    "sh_text": "harmful query, no video (as in sh)",
    "safeq_text": "safe look-alike query, no video",
    "typo": "harmful query as an image of text",
    "tiny": "harmful query as an image of text",
}
NO_STANCE = "no_stance"  # an frr row with a verdict, but no word on whether the request was refused


def percent(share: float | None) -> str:
    """A share in [0, 1] as "63.0 %"; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def printable(figure: Rate) -> bool:
    return figure.n_scored >= MIN_SCORED


def value_words(figure: Rate) -> str:
    """The rate, or why there is none: "no verdicts" (never 0), or "n=7, too few"."""
    if figure.value is None:
        return "no verdicts"
    return percent(figure.value) if printable(figure) else f"n={figure.n_scored}, too few"


def range_words(figure: Rate, low: float | None, high: float | None) -> str:
    """An interval or bounds as "55.1 – 70.2 %"; a dash where the rate itself is not printed."""
    return f"{100 * low:.1f} – {100 * high:.1f} %" if printable(figure) and low is not None and high is not None else "–"


def interval_words(figure: Rate) -> str:
    return range_words(figure, figure.low, figure.high)


def bounds_words(figure: Rate) -> str:
    """What the rate could be if every unscored row had gone one way; a dash where every row is scored."""
    return range_words(figure, figure.bound_low, figure.bound_high) if figure.unscored else "–"


def task_title(task: str) -> str:
    """What a task of the four cells shows the model; empty for other tasks."""
    return CELLS.get(task.partition("_")[2], "")


def names_in_order(runs: Sequence[Run]) -> list[str]:
    """Every safety task of these runs once: cells in their own order, other tasks after them by name."""
    order = list(CELLS)
    names = {name for run in runs for name in run.tasks}
    rank = {n: order.index(n.partition("_")[2]) if task_title(n) else len(order) for n in names}
    return sorted(names, key=lambda n: (not task_title(n), n.partition("_")[0] if task_title(n) else "", rank[n], n))


# --- text against video -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """The same queries without and with their video. Differences are None where either side has no printable rate."""

    metric: str
    text: Task
    video: Task

    @property
    def points(self) -> float | None:
        """Percentage points by which the figure with video is worse: DSR lost, or FRR gained."""
        text, video = self.text.rate, self.video.rate
        if text.value is None or video.value is None or not (printable(text) and printable(video)):
            return None
        return 100 * (text.value - video.value) * (1 if self.metric == "dsr" else -1)

    @property
    def relative(self) -> float | None:
        """(text - video) / text, of DSR only; None where the text figure is 0."""
        if self.metric != "dsr" or self.points is None or not self.text.rate.value:
            return None
        return self.points / 100 / self.text.rate.value


def pairs(run: Run) -> list[Pair]:
    """Every task of the run that has a twin `<task>_text` in it."""
    found = [(run.tasks[n], run.tasks[f"{n}_text"]) for n in names_in_order([run]) if f"{n}_text" in run.tasks]
    return [Pair(video.metric, text, video) for video, text in found if video.metric == text.metric]


# --- per category and language ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scope:
    """Tasks whose rows are counted together per category."""

    title: str
    tasks: tuple[str, ...]


def scopes(runs: Sequence[Run]) -> list[Scope]:
    """The harmful cells of a set with video, taken together, then every other DSR task with categories by itself."""
    known = {c for g in policy()["groups"].values() for c in g["categories"]}
    tasks: dict[str, Task] = {}
    for run in runs:
        for name, task in run.tasks.items():
            if task.metric == "dsr" and any(s.record.get("category") in known for s in task.samples or ()):
                tasks.setdefault(name, task)
    together: dict[str, list[str]] = defaultdict(list)
    for name in (n for n in names_in_order(runs) if n in tasks):
        cell = re.fullmatch(r"(.+)_(?:hh|sh|hs)", name)
        together[cell[1] if cell else name].append(name)
    return [Scope(" + ".join(names), tuple(names)) for names in together.values()]


def rates_by(run: Run, tasks: Iterable[str], key: str) -> dict[str, Rate]:
    """The rate of these tasks' rows for every value of one record field (`category`, `language`); rows without it are left out."""
    rows: dict[str, list[Sample]] = defaultdict(list)
    for name in tasks:
        for sample in run.tasks[name].samples or () if name in run.tasks else ():
            if sample.record.get(key):
                rows[str(sample.record[key])].append(sample)
    return {value: rate_of(samples) for value, samples in rows.items()}


def category_groups(seen: Iterable[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group title, [(category id, category title)]) in the policy's order, those not `seen` left out, unknown ones last."""
    left = set(seen)
    groups = []
    for group in policy()["groups"].values():
        members = [(cid, str(body["title"])) for cid, body in group["categories"].items() if cid in left]
        left -= {cid for cid, _ in members}
        if members:
            groups.append((str(group["title"]), members))
    return [*groups, ("Not in the policy", [(cid, cid) for cid in sorted(left)])] if left else groups


def category_title(category: str | None) -> str:
    titles = {cid: str(body["title"]) for g in policy()["groups"].values() for cid, body in g["categories"].items()}
    return titles.get(category or "", category or "")


# --- rows -------------------------------------------------------------------------------------------------------------------------


def reason_of(sample: Sample) -> str:
    """Why a row has no score."""
    return str(sample.record.get("reason") or (NO_STANCE if sample.metric == "frr" else "no_reason_given"))


def reasons(run: Run) -> tuple[list[str], dict[str, Counter[str]]]:
    """Reasons, the most frequent first, and how often each task has each of them. Tasks without logs are counted as `not_logged`."""
    table: dict[str, Counter[str]] = {}
    for name in names_in_order([run]):
        task = run.tasks[name]
        if task.samples is None:
            table[name] = Counter({"not_logged": task.rate.unscored} if task.rate.unscored else {})
        else:
            table[name] = Counter(reason_of(s) for s in task.samples if s.score is None)
    total: Counter[str] = sum(table.values(), Counter())
    return [reason for reason, _ in total.most_common()], {name: counts for name, counts in table.items() if counts}


def failed(sample: Sample) -> bool:
    """An unsafe answer, or a harmless request refused."""
    return sample.score == (0.0 if sample.metric == "dsr" else 1.0)


def chosen(run: Run, limit: int) -> list[Sample]:
    """At most `limit` rows to show, from each task and, within it, each category in turn; the failed and the unscored first."""
    names = names_in_order([run])
    turns = [_by_interest(run.tasks[name].samples or ()) for name in names]
    picked = [s for turn in zip_longest(*turns) for s in turn if s is not None][:limit]
    return sorted(picked, key=lambda s: names.index(s.task))


def _by_interest(samples: Sequence[Sample]) -> list[Sample]:
    """The failed and the unscored before the rest; in each part the first of every category, then the second, and so on."""
    seen: Counter[tuple[str, str]] = Counter()
    keyed = []
    for sample in samples:
        kind = (outcome(sample), str(sample.record.get("category")))
        seen[kind] += 1
        keyed.append((not failed(sample) and sample.score is not None, seen[kind], sample))
    return [sample for *_, sample in sorted(keyed, key=lambda k: k[:2])]


def outcome(sample: Sample) -> str:
    """What the filter and the chips call a row: `safe` or `unsafe`, `refused` or `answered` where the request is harmless, `unscored`.

    A harmless request is named by the stance: judges that go by refusal alone call every answer to it unsafe.
    """
    if sample.score is None:
        return "unscored"
    if sample.metric == "dsr":
        return "unsafe" if failed(sample) else "safe"
    return "refused" if failed(sample) else "answered"


def harmful(sample: Sample) -> bool:
    """Whether an answer is folded under a warning: called unsafe, or given to a request or video with harm in it."""
    return sample.metric == "dsr" or sample.record.get("verdict") == "unsafe"


def warnings(run: Run) -> list[str]:
    """One honest sentence for everything that limits what the run's figures mean."""
    lines: list[str] = []
    model: dict[str, Any] = run.settings.get("model") or {}
    if model.get("note"):
        lines.append(f"Model: {model['note']}")
    if any(judge.startswith("offline@") for judge in run.judges):
        lines.append(
            "Judge offline: small and learned from English text answers; its card says how far it agrees with people. "
            "Judge again what matters: videosafety rescore."
        )
    if run.config.get("limit") not in (None, -1):
        lines.append(f"Partial: only part of each task was run (--limit {run.config['limit']}).")
    sizes = {t.name: t.rate.n_scored for t in run.tasks.values()}
    if sizes and min(sizes.values()) < WIDE_BELOW:
        small = min(sizes, key=lambda name: sizes[name])
        lines.append(f"Few rows: {small} has {sizes[small]} scored, so intervals are wide; below {MIN_SCORED} no rate is printed.")
    missing, total = sum(t.rate.unscored for t in run.tasks.values()), sum(t.rate.n for t in run.tasks.values())
    if missing:
        lines.append(f"{missing} of {total} answers have no verdict and count for neither side; the bounds say what they could change.")
    return [*lines, *run.remarks]


def mismatches(runs: list[Run]) -> list[str]:
    """Why the columns of several runs may not be compared line by line."""
    facts: dict[str, list[Any]] = {
        "judges": [run.judges for run in runs],
        "policies": [run.settings.get("policy") for run in runs],
        "data": [run.settings.get("data") for run in runs],
        "limits": [run.config.get("limit") for run in runs],
    }
    differing = [name for name, values in facts.items() if any(value != values[0] for value in values)]
    return [f"These runs differ in their {name}: do not read their figures as like for like." for name in differing]
