"""How far the offline judges agree with people: accuracy and Cohen's kappa on labelled answers, one JSON line a figure.

    python benchmarks/judge_agreement.py DATA

First the judges as they are shipped, on files that their rules or weights have met ("cross_validated": false); then `offline` trained
anew without the answering model, the question or the data set that it is tried on (true; needs scikit-learn, takes some minutes).

DATA holds `xstest/*.csv` (columns prompt, completion, final_label; refused is 2_full_refusal or 3_partial_refusal; Röttger et al.,
NAACL 2024) and `do_not_answer/*.csv` (question, response, harmful 0/1; Wang et al., arXiv 2308.13387).
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

from videosafety.lmms_eval_tasks.judge import Item, Label, Stance, Verdict, get_judge, train, validate


def agreement(pairs: list[tuple[bool, bool]]) -> dict[str, float | int]:
    """Accuracy and Cohen's kappa of (judge, human) pairs."""
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    judged, human = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    chance = judged * human + (1 - judged) * (1 - human)
    return {"n": n, "accuracy": round(observed, 3), "kappa": round((observed - chance) / (1 - chance), 3)}


def measure(
    file: Path, query: str, answer: str, judge: str, says: Callable[[Verdict], bool], human: Callable[[dict[str, str]], bool]
) -> dict:
    with open(file, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    verdicts = [(get_judge(judge)(Item(row[query], row[answer])), row) for row in rows]
    scored = [(says(verdict), human(row)) for verdict, row in verdicts if verdict.scored]
    return {"file": file.name, "judge": get_judge(judge).id, "coverage": round(len(scored) / len(rows), 3), **agreement(scored)}


def main() -> None:
    data = Path(sys.argv[1])
    for file in sorted(data.glob("xstest/*.csv")):
        refused = measure(
            file, "prompt", "completion", "refusal", lambda v: v.stance is not Stance.COMPLIES, lambda r: r["final_label"][0] in "23"
        )
        print(json.dumps({"cross_validated": False, **refused}))
    for file in sorted(data.glob("do_not_answer/*.csv")):
        unsafe = measure(file, "question", "response", "offline", lambda v: v.label is Label.UNSAFE, lambda r: r["harmful"] == "1")
        print(json.dumps({"cross_validated": False, **unsafe}))
    for figures in validate.figures(train.load(data)):
        print(json.dumps({"cross_validated": True, "judge": get_judge("offline").id, **figures}), flush=True)


if __name__ == "__main__":
    main()
