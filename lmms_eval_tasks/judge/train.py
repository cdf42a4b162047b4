"""Train the judge `offline`, and cross-validate it: `python -m videosafety.lmms_eval_tasks.judge.train DATA [--check]`. Needs scikit-learn.

DATA holds `do_not_answer/annotated_response_*.csv` (id, question, response, harmful 0/1, action 0-5) and
`xstest/xstest_v2_completions_*.csv` (type, prompt). Writes weights/offline.json (what an answer does) and weights/questions.json (whether a
question is harmless on its face) beside this file; with --check it writes nothing and prints cross-validated figures, one JSON line each.
One thread, fixed seeds: the same bytes.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import yaml
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from .features import features
from .forest import Forest, logit
from .offline import judge_features
from .questions import Questions, terms

TREES, LEAF, NODES, SEED, FOLDS = 100, 4, 96, 0, 5
HARMFUL, ODD = 5, 6  # action 5 and labelled harmful; action 5 and labelled harmless
WEAK = 0.25  # the weight of one of our own examples, against one human label


@dataclass(frozen=True)
class Row:
    """One answer to learn from: who gave it, to which question (its number; -1 is our own), its features, action, and label."""

    text: str
    model: str
    question: int
    features: dict[str, float]
    action: int
    harmful: bool


def _examples() -> dict:
    return yaml.safe_load(resources.files(__package__).joinpath("examples.yml").read_text(encoding="utf-8"))


def harmless_questions() -> list[str]:
    """Our own questions that nobody could mean harm by."""
    return [question for line in _examples()["harmless"] for question in line.split("|")]


def xstest_prompts(folder: Path) -> list[tuple[str, bool]]:
    """The prompts of XSTest, and whether each is one of the safe ones. Every file holds the same prompts."""
    file = min(folder.glob("xstest_v2_completions_*.csv"))
    with open(file, encoding="utf-8", newline="") as lines:
        return [(row["prompt"], not row["type"].startswith("contrast")) for row in csv.DictReader(lines)]


def learn_questions(rows: Sequence[Row], own: Sequence[Row], prompts: Sequence[tuple[str, bool]]) -> Questions:
    """Tell harmless questions from those of Do-Not-Answer, of our harmful examples and of XSTest's unsafe contrasts."""
    known = {row.text: False for row in own if row.harmful} | {row.text: False for row in rows}
    known |= dict(prompts) | dict.fromkeys(harmless_questions(), True)
    seen = [terms(question) for question in known]
    vectors = DictVectorizer()
    x = vectors.fit_transform([dict.fromkeys(sorted(found), len(found) ** -0.5) for found in seen])
    model = LogisticRegression(C=3.0, class_weight="balanced", max_iter=2000).fit(x, list(known.values()))
    weights = {name: round(float(w), 2) for name, w in zip(vectors.get_feature_names_out(), model.coef_[0], strict=True)}
    return Questions({name: w for name, w in weights.items() if abs(w) >= 0.1}, round(float(model.intercept_[0]), 4))


def own_examples() -> list[Row]:
    """Our own examples, expanded: every request of a language with every answer, and the whole pairs."""
    data = _examples()
    del data["harmless"]
    pairs = [(int(action), query, answer) for action, query, answer in data.pop("pairs")]
    for kinds in data.values():
        subjects, asks = kinds.pop("subjects"), kinds.pop("ask")
        for i, subject in enumerate(subjects):
            for action, answers in kinds.items():
                pairs += [(int(action), asks[i % len(asks)].replace("{}", subject), a.replace("{}", subject)) for a in answers]
    return [Row(query, "own", -1, features(query, answer), action, action == HARMFUL) for action, query, answer in pairs]


def do_not_answer(folder: Path) -> list[Row]:
    """The labelled answers of every model in `folder`, in the order of the file names."""
    rows = []
    for file in sorted(folder.glob("annotated_response_*.csv")):
        with open(file, encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                harmful = row["harmful"] == "1"
                action = HARMFUL if harmful else ODD if row["action"] == "5" else int(row["action"])
                rows.append(
                    Row(
                        row["question"],
                        file.stem.split("_")[-1],
                        int(row["id"]),
                        features(row["question"], row["response"]),
                        action,
                        harmful,
                    )
                )
    if not rows:
        raise FileNotFoundError(f"no annotated_response_*.csv in {folder}")
    return rows


def grow(rows: Sequence[Row]) -> Forest:
    """A forest, not yet calibrated, that tells harmful answers from the other kinds. Rows that refuse are left out."""
    rows = [row for row in rows if not row.features["refuses"]]
    names = sorted(rows[0].features)
    x = np.array([[row.features[name] for name in names] for row in rows])
    y = np.array([row.action for row in rows])
    weight = np.array([WEAK if row.question < 0 else 1.0 for row in rows])
    for action in set(y.tolist()):  # every kind of answer weighs the same
        weight[y == action] /= weight[y == action].sum()
    model = ExtraTreesClassifier(TREES, min_samples_leaf=LEAF, max_leaf_nodes=NODES, random_state=SEED, n_jobs=1)
    model.fit(x, y, sample_weight=weight * len(rows))
    column = list(model.classes_).index(HARMFUL)
    trees = [_flatten(tree.tree_, column) for tree in model.estimators_]
    return Forest(names, [t[0] for t in trees], [t[1] for t in trees], [t[2] for t in trees])


def _flatten(tree, column: int) -> tuple[list[int], list[float], list[int]]:
    """One tree of scikit-learn, its nodes in preorder, so that a left child is always the next node."""
    feature: list[int] = []
    value: list[float] = []
    right: list[int] = []

    def visit(node: int) -> None:
        i = len(feature)
        leaf = tree.children_left[node] < 0
        share = tree.value[node][0]
        feature.append(-1 if leaf else int(tree.feature[node]))
        value.append(round(float(share[column] / share.sum()), 3) if leaf else round(float(tree.threshold[node]), 4))
        right.append(0)
        if not leaf:
            visit(tree.children_left[node])
            right[i] = len(feature)
            visit(tree.children_right[node])

    visit(0)
    return feature, value, right


def kappa(judged: np.ndarray, human: np.ndarray) -> float:
    """Cohen's kappa of two boolean arrays of one length; 0 where it is not defined."""
    observed, p, q = (judged == human).mean(), judged.mean(), human.mean()
    chance = p * q + (1 - p) * (1 - q)
    return float((observed - chance) / (1 - chance)) if chance < 1 else 0.0


def _fold(row: Row) -> int:
    """The fold of a question: neighbours in the list, which are often variants of one question, fall together."""
    return row.question // 3 % FOLDS


def calibrate(forest: Forest, rows: Sequence[Row], own: Sequence[Row]) -> Forest:
    """`forest` with a calibration and a threshold, both from scores of questions that the trees had not seen."""
    scores = np.zeros(len(rows))
    for fold in range(FOLDS):
        held = [i for i, row in enumerate(rows) if _fold(row) == fold]
        grown = grow([row for row in rows if _fold(row) != fold] + list(own))
        for i in held:
            scores[i] = grown.score(rows[i].features)
    refuses = np.array([row.features["refuses"] > 0 for row in rows])
    human = np.array([row.harmful for row in rows])
    x = np.array([[logit(score)] for score in scores])
    platt = LogisticRegression(C=1e6).fit(x[~refuses], human[~refuses])
    refused = (human[refuses].sum() + 0.5) / (refuses.sum() + 1)
    slope, offset = round(float(platt.coef_[0, 0]), 4), round(float(platt.intercept_[0]), 4)
    forest = replace(forest, slope=slope, offset=offset, refused=round(float(refused), 6))
    p = np.array([forest.probability(score) for score in scores])
    grid = np.round(np.arange(0.15, 0.7, 0.01), 2)
    kappas = np.array([kappa(~refuses & (p >= at), human) for at in grid])
    smooth = np.convolve(np.pad(kappas, 3, mode="edge"), np.ones(7) / 7, mode="valid")  # one peak on few positives means little
    return replace(forest, threshold=float(grid[int(smooth.argmax())]))


def train(rows: Sequence[Row], own: Sequence[Row]) -> Forest:
    """The forest that is shipped for these rows."""
    return calibrate(grow([*rows, *own]), rows, own)


def cross_validate(rows: Sequence[Row], own: Sequence[Row], prompts: Sequence[tuple[str, bool]], by_question: bool) -> list[dict]:
    """Agreement on each model's answers of forests that saw neither that model nor, if `by_question`, the questions of the fold.

    Threshold and calibration come from the training rows alone, as in `train`.
    """
    found, everything = [], []
    for model in sorted({row.model for row in rows}):
        held = [row for row in rows if row.model == model]
        rest = [row for row in rows if row.model != model]
        pairs = []
        for fold in range(FOLDS) if by_question else (None,):
            known = [row for row in rest if fold is None or _fold(row) != fold]
            forest, questions = train(known, own), learn_questions(known, own, prompts)
            for row in held:
                if fold is None or _fold(row) == fold:
                    p = judge_features(forest, questions, row.text, row.features)
                    pairs.append((p, p >= forest.threshold, row.harmful))
        everything += pairs
        found.append({"held_out": model, "questions_held_out": by_question, **_figures(pairs)})
    mean = round(sum(f["kappa"] for f in found) / len(found), 3)
    return [*found, {"held_out": "pooled", "questions_held_out": by_question, "mean_kappa": mean, **_figures(everything)}]


def plain_questions(rows: Sequence[Row], own: Sequence[Row], prompts: Sequence[tuple[str, bool]], folder: Path) -> dict:
    """How many full compliances with XSTest's prompts the judge calls unsafe, with the weights of questions learned without those prompts.

    People labelled compliance here, not harm: the rate on safe prompts should be near 0, that on their unsafe contrasts near 1 less the
    answers that are harmless all the same.
    """
    forest = train(rows, own)
    of_fold = [i // 5 % FOLDS for i in range(len(prompts))]
    learned = [learn_questions(rows, own, [p for p, f in zip(prompts, of_fold, strict=True) if f != fold]) for fold in range(FOLDS)]
    called: dict[bool, list[bool]] = {True: [], False: []}
    for file in sorted(folder.glob("xstest_v2_completions_*.csv")):
        with open(file, encoding="utf-8", newline="") as lines:
            for row, fold, (prompt, safe) in zip(csv.DictReader(lines), of_fold, prompts, strict=True):
                if row["final_label"] == "1_full_compliance":
                    p = judge_features(forest, learned[fold], prompt, features(prompt, row["completion"]))
                    called[safe].append(p >= forest.threshold)
    rates = {("safe" if safe else "contrast"): [round(float(np.mean(judged)), 3), len(judged)] for safe, judged in called.items()}
    return {"held_out": "XSTest prompts", "called_unsafe_and_n": rates}


def _figures(pairs: list[tuple[float, bool, bool]]) -> dict:
    p, judged, human = (np.array(column) for column in zip(*pairs, strict=True))
    return {
        "n": len(pairs),
        "harmful": int(human.sum()),
        "judged_harmful": int(judged.sum()),
        "right": int((judged & human).sum()),
        "accuracy": round(float((judged == human).mean()), 4),
        "kappa": round(kappa(judged, human), 3),
        "brier": round(float(((p - human) ** 2).mean()), 4),
    }


def main() -> None:
    data = Path(sys.argv[1])
    rows, own, prompts = do_not_answer(data / "do_not_answer"), own_examples(), xstest_prompts(data / "xstest")
    if "--check" in sys.argv[2:]:
        for by_question in (False, True):
            for figures in cross_validate(rows, own, prompts, by_question):
                print(json.dumps(figures), flush=True)
        print(json.dumps(plain_questions(rows, own, prompts, data / "xstest")))
        return
    weights = Path(__file__).parent / "weights"
    for name, model in (("offline", train(rows, own)), ("questions", learn_questions(rows, own, prompts))):
        (weights / f"{name}.json").write_text(model.dumps(), encoding="utf-8")
        print(f"{name}.json: {(weights / name).with_suffix('.json').stat().st_size} bytes")


if __name__ == "__main__":
    main()
