"""What the report shows, as plain data: figures in words, text against video, figures per category and language, reasons, samples."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any

from videosafety.lmms_eval_tasks.catalog import catalog
from videosafety.lmms_eval_tasks.judge.policy import policy
from videosafety.lmms_eval_tasks.metrics import PANEL, Rate
from videosafety.lmms_eval_tasks.report.further import Figure
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


def signed(points: float) -> str:
    """A change with its sign: "+1.2", "−0.4", and "0.0", without one, for what rounds to nothing."""
    rounded = round(points, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def printable(figure: Rate) -> bool:
    return figure.n_scored >= MIN_SCORED


def metric_name(metric: str) -> str:
    """ "DSR" and "FRR"; other metrics go by the name that lmms-eval prints."""
    return METRIC_NAMES.get(metric, metric)


def metric_rank(metric: str) -> tuple[int, str]:
    """Sorts metrics: DSR, FRR, then others by name."""
    order = list(METRIC_NAMES)
    return order.index(metric) if metric in order else len(order), metric


def metric_hint(metric: str, higher: bool) -> str:
    return METRIC_HINTS.get(metric, "higher is better" if higher else "lower is better")


def value_words(figure: Rate) -> str:
    """The rate, or why there is none: "no verdicts" (never 0), "n=7, too few", or "no figure" where a part of it has no verdict."""
    if figure.value is None:
        return "no figure" if figure.n_scored else "no verdicts"
    return percent(figure.value) if printable(figure) else f"n={figure.n_scored}, too few"


def figure_words(figure: Figure) -> str:
    """A further figure as `value_words`; one that is no share as a plain number."""
    rate = figure.rate
    return f"{rate.value:.3g}" if not figure.is_share and rate.value is not None and printable(rate) else value_words(rate)


def range_words(figure: Rate, low: float | None, high: float | None) -> str:
    """An interval or bounds as "55.1 – 70.2 %"; a dash where the rate itself is not printed."""
    return f"{100 * low:.1f} – {100 * high:.1f} %" if printable(figure) and low is not None and high is not None else "–"


def interval_words(figure: Rate) -> str:
    return range_words(figure, figure.low, figure.high)


def figure_interval(figure: Figure) -> str:
    """The interval of a further figure as `interval_words`; of one that is no share as plain numbers."""
    rate = figure.rate
    if figure.is_share or not printable(rate) or rate.low is None or rate.high is None:
        return interval_words(rate)
    return f"{rate.low:.3g} – {rate.high:.3g}"


def bounds_words(figure: Rate) -> str:
    """What the rate could be if every unscored row had gone one way; a dash where every row is scored."""
    return range_words(figure, figure.bound_low, figure.bound_high) if figure.unscored else "–"


def task_title(task: str) -> str:
    """What a task shows the model: of the catalogue's tasks what it says, of others of the four cells what those are; else empty."""
    return _cell_title(task) or _cells_of_catalog().get(task, "")


def _cell_title(task: str) -> str:
    return CELLS.get(task.partition("_")[2], "")


@cache
def _cells_of_catalog() -> dict[str, str]:
    return {task.name: task.cell for found in catalog().values() for task in found.tasks}


def names_in_order(runs: Sequence[Run]) -> list[str]:
    """Every safety task of these runs once: cells in their own order, other tasks after them by name."""
    order = list(CELLS)
    names = {name for run in runs for name in run.tasks}
    rank = {n: order.index(n.partition("_")[2]) if _cell_title(n) else len(order) for n in names}

    def by_number(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

    return sorted(names, key=lambda n: (not _cell_title(n), n.partition("_")[0] if _cell_title(n) else "", rank[n], by_number(n)))


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
        return 100 * (text.value - video.value) * (1 if self.video.higher else -1)

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
    """An unsafe answer, a harmless request refused, or an answer that a rule calls wrong."""
    return sample.score == (1.0 if sample.metric == "frr" else 0.0)


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
    """What the filter and the chips call a row: `safe` or `unsafe`, `refused` or `answered` where the request is harmless, `unscored`;
    `right` or `wrong` where a rule says so.

    A harmless request is named by the stance: judges that go by refusal alone call every answer to it unsafe.
    """
    if sample.score is None:
        return "unscored"
    if sample.metric == "dsr":
        return "unsafe" if failed(sample) else "safe"
    if sample.metric == "frr":
        return "refused" if failed(sample) else "answered"
    return "wrong" if failed(sample) else "right"


def harmful(sample: Sample) -> bool:
    """Whether an answer is folded under a warning: called unsafe, or given to a request or video with harm in it."""
    return sample.metric == "dsr" or sample.record.get("verdict") == "unsafe"


def panel_words(run: Run) -> list[str]:
    """One sentence a task on how far the members of a panel agree; nothing for runs of one judge."""
    lines = []
    for name in names_in_order([run]):
        found = next((value for key, value in run.raw["results"].get(name, {}).items() if key.split(",")[0] == PANEL), None)
        if not isinstance(found, dict):
            continue
        if found["n"] < MIN_SCORED:
            lines.append(f"Panel, {name}: n={found['n']}, too few to say how far its members agree.")
        else:
            pairs = ", ".join(f"{pair} {_agreement(kappa)}" for pair, kappa in found["kappa"].items())
            lines.append(f"Panel, {name}: Krippendorff's alpha {_agreement(found['alpha'])}; kappa of {pairs} (n={found['n']}).")
    return lines


def _agreement(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.2f}"


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
    if short := run.settings.get("rows"):
        told = ", ".join(f"{task} has {said} rows" for task, said in short.items())
        lines.append(f"Not the whole set: {told}. Its figures cannot be set beside those of others.")
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
