"""How `offline` agrees with people on answering models, questions and data sets that it was not trained on. Needs scikit-learn.

Every figure comes from a model that is trained anew without what is held out; threshold and calibration are from its training rows alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.metrics import average_precision_score

from .offline import Model
from .train import FOLDS, Row, kappa, train

Judged = list[tuple[Row, float, bool]]  # a row, its p_unsafe, whether it is called unsafe


def _judge(model: Model, rows: Sequence[Row]) -> Judged:
    judged = [(row, model.p_unsafe(row.text, row.features, row.words)) for row in rows]
    return [(row, p, p >= model.forest.threshold) for row, p in judged]


def _hold_out(rows: Sequence[Row], source: str, model: str | None = None, fold: int | None = None) -> Judged:
    """Train without the rows of a source, or only of one answering model or one fold of its questions there, and judge them."""
    held = [r for r in rows if r.source == source and model in (None, r.model) and fold in (None, r.fold)]
    out = set(map(id, held))
    return _judge(train([r for r in rows if id(r) not in out]), held)


def by_model(rows: Sequence[Row], by_question: bool) -> Iterator[dict]:
    """Do-Not-Answer, an answering model held out at a time; with `by_question` no model's answer to the question was seen either."""
    everything: Judged = []
    kappas = []
    for model in sorted({row.model for row in rows if row.source == "do_not_answer"}):
        judged: Judged = []
        for fold in range(FOLDS) if by_question else (None,):
            known = [r for r in rows if r.source != "do_not_answer" or (r.model != model and (fold is None or r.fold != fold))]
            asked = [r for r in rows if r.source == "do_not_answer" and r.model == model and (fold is None or r.fold == fold)]
            judged += _judge(train(known), asked)
        figures = _figures(judged)
        kappas.append(figures["kappa"])
        everything += judged
        yield {"data": "do_not_answer", "held_out": model, "questions_held_out": by_question, **figures}
    mean = round(float(np.mean(kappas)), 3)
    yield {"data": "do_not_answer", "held_out": "pooled", "questions_held_out": by_question, "mean_kappa": mean, **_figures(everything)}


def xstest(rows: Sequence[Row]) -> Iterator[dict]:
    """XSTest three ways: its prompts held out (five folds), an answering model held out, and nothing of it known."""
    ours = sorted({row.model for row in rows if row.source == "xstest"})
    by_prompt = [_hold_out(rows, "xstest", fold=fold) for fold in range(FOLDS)]
    yield {"data": "xstest", "held_out": "prompts", **_plain([pair for judged in by_prompt for pair in judged])}
    models = [_hold_out(rows, "xstest", model=model) for model in ours]
    yield {"data": "xstest", "held_out": "model", **_plain([pair for judged in models for pair in judged])}
    yield {"data": "xstest", "held_out": "data set", **_plain(_hold_out(rows, "xstest"))}


def by_data_set(rows: Sequence[Row]) -> Iterator[dict]:
    """Do-Not-Answer from XSTest and our examples alone, and each of our files of natural pairs from all else."""
    known, asked = [r for r in rows if r.source != "do_not_answer"], [r for r in rows if r.source == "do_not_answer"]
    yield {"data": "do_not_answer", "held_out": "data set", **_figures(_judge(train(known, "xstest"), asked))}
    for name in ("persons", "risks"):
        yield {"data": name, "held_out": "data set", **_figures(_hold_out(rows, name))}


def _plain(judged: Judged) -> dict:
    """Rates of full compliances called unsafe, with safe prompts (should be near 0) and with their contrasts (near 1), and their n."""
    called = {risky: [unsafe for row, _, unsafe in judged if row.full and row.risky == risky] for risky in (False, True)}
    rates = {("contrast" if risky else "safe"): [round(float(np.mean(unsafe)), 3), len(unsafe)] for risky, unsafe in called.items()}
    return {"called_unsafe_and_n": rates}


def _figures(judged: Judged) -> dict:
    human, p, unsafe = (np.array(column) for column in zip(*((row.harmful, p, unsafe) for row, p, unsafe in judged), strict=True))
    return {
        "n": len(judged),
        "harmful": int(human.sum()),
        "judged_harmful": int(unsafe.sum()),
        "right": int((unsafe & human).sum()),
        "accuracy": round(float((unsafe == human).mean()), 4),
        "kappa": round(kappa(unsafe, human), 3),
        "average_precision": round(float(average_precision_score(human, p)), 3),
        "brier": round(float(((p - human) ** 2).mean()), 4),
    }


def figures(rows: Sequence[Row]) -> Iterator[dict]:
    """All figures of the card, one dict each. Takes some minutes."""
    for by_question in (False, True):
        yield from by_model(rows, by_question)
    yield from xstest(rows)
    yield from by_data_set(rows)


def print_figures(rows: Sequence[Row]) -> None:
    """One JSON line a figure."""
    for line in figures(rows):
        print(json.dumps(line), flush=True)
