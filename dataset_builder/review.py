"""What people decide: a queue of disputed clips and a random sample, decisions, how far reviewers agree, the error rate they found."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videosafety.dataset_builder.lists import dump_line
from videosafety.dataset_builder.queries import CELLS, TEXTUAL
from videosafety.dataset_builder.rows import Row, digest, said
from videosafety.dataset_builder.write import replacing
from videosafety.lmms_eval_tasks.judge.agreement import krippendorff_alpha, pairwise_kappa
from videosafety.lmms_eval_tasks.judge.policy import category_groups
from videosafety.lmms_eval_tasks.metrics import rate

ACTIONS = ("accept", "fix", "reject")
_CAUTION = {action: rank for rank, action in enumerate(ACTIONS)}
CELL_OF = {(visual, TEXTUAL[cell]): cell for visual, cells in CELLS.items() for cell in cells}
FIXABLE = {"query": str, "visual_label": int, "textual_label": int, "category": str}
QUEUE_KEYS = (
    "id", "kind", "why", "video_id", "clip", "cell", "language", "query", "category", "visual_label", "textual_label", "votes",
    "description", "of",
)  # fmt: skip
DECISION_COLUMNS = ("action", "reviewer", "reason", "new_query", "new_visual_label", "new_textual_label", "new_category")


class ReviewError(ValueError):
    """A decision that cannot be taken up; the message names place and mend."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one reviewer says of one item: a clip, or a row. `why` is why it was in the queue.

    fix: what is to be other than it was; of a clip that was accepted the label and category that were.
    of: what of a row was seen, as `seen` gives it; empty for a clip, whose id is made of its content already.
    """

    id: str
    kind: str
    video_id: str
    action: str
    reviewer: str
    why: str
    reason: str = ""
    fix: Mapping[str, Any] | None = None
    at: float = 0.0
    of: str = ""


def checked(body: Any, items: Mapping[str, Mapping[str, Any]], where: str) -> Decision:
    """A decision as it came in, checked against the queue.

    Raises:
        ReviewError: another item, no reviewer, no such action, or a fix that changes nothing or to something that cannot be.
    """
    if not isinstance(body, dict) or body.get("id") not in items:
        raise ReviewError(f"{where}: no such item in the queue; build again, and load the page or the CSV anew")
    item = items[body["id"]]
    action, reviewer = body.get("action"), body.get("reviewer")
    if action not in ACTIONS:
        raise ReviewError(f"{where}: action must be {', '.join(ACTIONS)}, got {action!r:.40}")
    if not isinstance(reviewer, str) or not reviewer.strip() or len(reviewer) > 80:
        raise ReviewError(f"{where}: say who you are (reviewer, at most 80 characters)")
    fix = body.get("fix") or {}
    if not isinstance(fix, dict) or any(key not in FIXABLE or type(value) is not FIXABLE[key] for key, value in fix.items()):
        raise ReviewError(f"{where}: fix may hold {', '.join(FIXABLE)}, got {fix!r:.80}")
    if any(fix.get(key, 0) not in (0, 1) for key in ("visual_label", "textual_label")):
        raise ReviewError(f"{where}: labels are 0 (safe) or 1 (harmful)")
    if fix.get("category", "weapons") not in category_groups():
        raise ReviewError(f"{where}: {fix['category']!r:.40} is no category of the policy")
    if "query" in fix and not fix["query"].strip():
        raise ReviewError(f"{where}: the query is empty; reject the row instead")
    fix = {key: value.strip() if key == "query" else value for key, value in fix.items()}
    if action == "fix" and item["kind"] == "clip" and "visual_label" not in fix:
        raise ReviewError(f"{where}: a clip is fixed by its visual_label")
    if action == "fix" and not any(item.get(key) != value for key, value in fix.items()):
        raise ReviewError(f"{where}: the fix changes nothing; accept it instead")
    if action == "accept" and item["kind"] == "clip" and item.get("visual_label") is None:
        raise ReviewError(f"{where}: the judges gave this clip no label; say which (fix), or reject it")
    reason = body.get("reason") or ""
    if not isinstance(reason, str) or len(reason) > 500:
        raise ReviewError(f"{where}: reason must be text of at most 500 characters")
    if action == "accept":
        fix = {key: item[key] for key in ("visual_label", "category")} if item["kind"] == "clip" else {}
    return Decision(
        item["id"], item["kind"], item["video_id"], action, reviewer.strip(), item["why"], reason, fix if action != "reject" else None,
        of=item["of"],
    )  # fmt: skip


Key = tuple[str, str]  # the id of an item, and what of it was seen: another text under the same id is another item


class Decisions:
    """The decisions of a set: decisions.jsonl, appended to and never rewritten; each reviewer's last word on an item stands."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "decisions.jsonl"
        self._last: dict[tuple[Key, str], Decision] = {}
        if self.file.is_file():
            for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    decision = Decision(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise ReviewError(f"{self.file}, line {number}: no decision ({error}); remove the line") from error
                self._last[(decision.id, decision.of), decision.reviewer] = decision

    def add(self, decision: Decision) -> None:
        """Append a decision; on disk when this returns."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        stamped = Decision(**{**asdict(decision), "at": decision.at or round(time.time(), 3)})
        with open(self.file, "a", encoding="utf-8") as out:
            out.write(dump_line(asdict(stamped)))
            out.flush()
            os.fsync(out.fileno())
        self._last[(stamped.id, stamped.of), stamped.reviewer] = stamped

    def __len__(self) -> int:
        return len(self._last)

    def standing(self) -> dict[Key, Decision]:
        """Item -> the decision that counts: where reviewers differ the most careful (reject before fix before accept), then the last."""
        found: dict[Key, Decision] = {}
        for (item, _), decision in self._last.items():
            other = found.get(item)
            if other is None or (_CAUTION[decision.action], decision.at) > (_CAUTION[other.action], other.at):
                found[item] = decision
        return found

    def by(self, reviewer: str, items: Mapping[str, Mapping[str, Any]]) -> dict[str, Decision]:
        """Id -> what a reviewer said of those items of the queue, as they are now."""
        return {name: last for name, item in items.items() if (last := self._last.get(((name, item["of"]), reviewer))) is not None}

    def figures(self, there: Collection[Key]) -> dict[str, Any]:
        """What reviewers found. Only decisions on the items that are `there` count: of others nobody saw what the set holds.

        Returns:
            `error_rate`, `agreement`, `decisions` (how many count), `stale` (items with none that does).
        """
        counted = {key: decision for key, decision in self._last.items() if key[0] in there}
        stale = {item for (item, _), _ in self._last} - {item for (item, _), _ in counted}
        standing = [decision for item, decision in self.standing().items() if item in there]
        return {
            "error_rate": error_rate(standing),
            "agreement": _agreement(counted),
            "decisions": len(counted),
            "stale": len(stale),
        }


def _agreement(last: Mapping[tuple[Key, str], Decision]) -> dict[str, Any]:
    """How far reviewers agree on accept, fix or reject, as `agreement` says it, and who they are."""
    people = sorted({who for _, who in last})
    items = sorted({item for item, _ in last})
    actions = {who: [d.action if (d := last.get((item, who))) else None for item in items] for who in people}
    return {"reviewers": people, **agreement(actions)}


def agreement(labels: Mapping[str, Sequence[str | None]]) -> dict[str, Any]:
    """How far people or judges agree, by name the label of each item, None where there is none.

    Returns:
        `alpha`: Krippendorff's, over the `n` items with two labels; `kappa`: Cohen's of each two, with its own `n`; None where undefined.
    """
    two = sum(sum(label is not None for label in item) > 1 for item in zip(*labels.values(), strict=True))
    kappa = {f"{a} / {b}": {"kappa": k.kappa, "n": k.n} for (a, b), k in pairwise_kappa(labels).items()}
    return {"alpha": krippendorff_alpha(list(labels.values())), "kappa": kappa, "n": two}


def error_rate(standing: Iterable[Decision]) -> dict[str, Any]:
    """Share of the decided rows of the random sample that were not accepted, with its 95 % interval; None without any.

    n: rows. clips: of how many clips; rows of one clip share its label and its errors, and the interval is as wide as that makes it.
    """
    found = [decision for decision in standing if decision.why == "sample"]
    wrong = rate([float(decision.action != "accept") for decision in found], [decision.video_id for decision in found])
    return {
        "rate": wrong.value, "low": wrong.low, "high": wrong.high, "n": len(found),
        "wrong": sum(decision.action != "accept" for decision in found), "clips": len({decision.video_id for decision in found}),
    }  # fmt: skip


def seen(row: Row) -> str:
    """Identity of what a reviewer sees of a row: query, labels, category and clip. Ids outlive a change of seed or of the writing model."""
    return digest(row["query"], row["visual_label"], row["textual_label"], row["category"], row["provenance"]["clip_sha256"])


def clip_item(row: Row, why: str) -> dict[str, Any]:
    """A clip whose label a person has to give or to confirm."""
    return _item(row, "clip", why) | {"id": row["id"], "video_id": row["id"], "of": ""}


def row_item(row: Row, why: str) -> dict[str, Any]:
    return _item(row, "row", why) | {"of": seen(row)}


def _item(row: Row, kind: str, why: str) -> dict[str, Any]:
    votes = [{key: vote[key] for key in ("judge", "family", "label", "category", "detail")} for vote in row["provenance"]["votes"]]
    return {key: row.get(key) for key in QUEUE_KEYS} | {"kind": kind, "why": why, "votes": votes, "clip": Path(row["file"]).name}


def write_queue(items: Iterable[dict[str, Any]], folder: Path) -> int:
    """Write queue.jsonl for the page, and queue.csv for those who would rather fill in columns; how many items."""
    count = 0
    with replacing(folder / "queue.jsonl") as lines, replacing(folder / "queue.csv") as table:  # noqa: SIM117
        with open(lines, "w", encoding="utf-8") as out, open(table, "w", encoding="utf-8", newline="") as cells:
            sheet = csv.writer(cells)
            sheet.writerow([*QUEUE_KEYS, *DECISION_COLUMNS])
            for item in items:
                out.write(dump_line(item))
                votes = "; ".join(f"{vote['judge']}: {vote['label']}" for vote in item["votes"])
                shown = [votes if key == "votes" else item[key] for key in QUEUE_KEYS]
                sheet.writerow([*map(_cell, shown), *[""] * len(DECISION_COLUMNS)])
                count += 1
    return count


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula (CWE-1236)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def read_queue(folder: Path) -> dict[str, dict[str, Any]]:
    """Items by id. Raises ReviewError where nothing was built yet."""
    file = folder / "queue.jsonl"
    if not file.is_file():
        raise ReviewError(f"{file} is missing: build the set first (videosafety data build CONFIG)")
    return {item["id"]: item for item in map(json.loads, file.read_text(encoding="utf-8").split("\n")[:-1])}


def read_csv(file: Path, folder: Path) -> int:
    """Take up the decisions of a filled-in queue.csv, all or none; how many there were.

    Raises:
        ReviewError: no CSV of the queue, or a decision that cannot be taken up; the message names the line.
    """
    items, decisions = read_queue(folder), Decisions(folder)
    found: list[Decision] = []
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            sheet = csv.DictReader(opened)
            if lost := [name for name in ("id", "of", *DECISION_COLUMNS) if name not in (sheet.fieldnames or [])]:
                raise ReviewError(f"{file}: has no column {', '.join(lost)}; fill in {folder / 'queue.csv'}")
            for row in sheet:
                if not (row["action"] or "").strip():
                    continue
                where = f"{file}, line {sheet.line_num}"
                if row["id"] in items and row["of"] != items[row["id"]]["of"]:
                    raise ReviewError(f"{where}: this row is another since the table was written; fill in {folder / 'queue.csv'} anew")
                fix = {key: value for key in FIXABLE if (value := (row[f"new_{key}"] or "").strip())}
                body = {"id": row["id"], "action": row["action"].strip().lower(), "reviewer": row["reviewer"], "reason": row["reason"]}
                found.append(
                    checked({**body, "fix": {k: _number(v, where) if FIXABLE[k] is int else v for k, v in fix.items()}}, items, where)
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReviewError(f"{file}: cannot be read ({error})") from error
    for decision in found:
        decisions.add(decision)
    return len(found)


def _number(text: str, where: str) -> int:
    if text not in ("0", "1"):
        raise ReviewError(f"{where}: labels are 0 (safe) or 1 (harmful), got {text!r:.20}")
    return int(text)


def clip_decisions(decisions: Iterable[Decision]) -> dict[str, dict[str, Any]]:
    """Clip -> what was decided of it, by decisions on the clip itself, or by rows whose fix is about what the clip shows."""
    found: dict[str, dict[str, Any]] = {}
    for decision in sorted(decisions, key=lambda d: (d.kind == "clip", d.at)):  # those on the clip itself have the last word
        facts = {key: value for key, value in (decision.fix or {}).items() if key in ("visual_label", "category")}
        if decision.kind == "clip" and decision.action == "reject":
            found[decision.video_id] = {"action": "reject", "reason": decision.reason}
        elif "visual_label" in facts:
            found[decision.video_id] = {"action": "fix", **facts}
    return found


def apply(row: Row, *decisions: Decision | None) -> Row | str:
    """The row as reviewers want it, one decision after the other, or why it is left out. A new text label moves it to that cell."""
    for decision in decisions:
        if decision is None:
            continue
        if decision.action == "reject":
            return f"rejected by a reviewer: {decision.reason or 'no reason given'}"
        told = {"action": decision.action, "reviewer": decision.reviewer, "reason": decision.reason}
        fix = {key: value for key, value in (decision.fix or {}).items() if key in ("query", "textual_label", "category")}
        row = said(row, decisions=[*row["provenance"].get("decisions", []), told]) | fix
        row |= {"cell": CELL_OF[row["visual_label"], row["textual_label"]], "group": category_groups()[row["category"]]}
    return row


def for_translations(kept: Row | str, decision: Decision | None) -> Decision | str | None:
    """What becomes of the translations of an English row: its decision holds for them too, or a reason why they go, or nothing."""
    if isinstance(kept, str):
        return f"its English row was left out: {kept}"
    if decision is not None and "query" in (decision.fix or {}):
        return "its English query was changed by a reviewer"
    return decision if decision is not None and decision.action == "fix" else None
