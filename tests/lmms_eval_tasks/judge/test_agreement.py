"""Agreement figures against hand-computed and published values, and the laws that they obey."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from videosafety.lmms_eval_tasks.judge.agreement import (
    Confusion,
    Disagreement,
    cohen_kappa,
    confusion,
    disagreements,
    krippendorff_alpha,
    member_votes,
    pairwise_kappa,
    panel_labels,
    votes,
)
from videosafety.lmms_eval_tasks.judge.verdict import Label, Reason, Verdict, unscored

N = None
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four coders, twelve units, missing data; nominal .743.
FOUR_CODERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
# The same paper, sections A and B: two coders, binary and nominal; .095 and .692.
TWO_CODERS_BINARY = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
TWO_CODERS = [list("aabbdcccedda"), list("babbbccceddd")]
labels = st.sampled_from(["safe", "unsafe", None])


@pytest.mark.parametrize(
    ("coders", "alpha"), [(FOUR_CODERS, 0.743), (TWO_CODERS_BINARY, 0.095), (TWO_CODERS, 0.692)], ids=["four", "binary", "nominal"]
)
def test_alpha_of_krippendorffs_own_examples(coders, alpha):
    assert krippendorff_alpha(coders) == pytest.approx(alpha, abs=5e-4)


def test_alpha_by_hand():
    # rows aa, ab, bb: coincidences aa 2, ab 1, ba 1, bb 2; observed 2, by chance 2*3*3/5 = 3.6
    assert krippendorff_alpha([["a", "a", "b"], ["a", "b", "b"]]) == pytest.approx(1 - 2 / 3.6)


@pytest.mark.parametrize(
    "coders", [[], [[], []], [["a", N], [N, "a"]], [["a", "a"], ["a", "a"]]], ids=["none", "no rows", "no pair", "one label"]
)
def test_alpha_undefined(coders):
    assert krippendorff_alpha(coders) is None


def test_kappa_by_hand():
    # 20 rows yes-yes, 5 yes-no, 10 no-yes, 15 no-no: the textbook example, 0.4
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second).kappa == pytest.approx(0.4)
    assert cohen_kappa(first, second).n == 50


def test_kappa_leaves_out_rows_without_both_labels():
    assert cohen_kappa(["a", "b", N, "a"], ["a", "b", "a", N]) == cohen_kappa(["a", "b"], ["a", "b"])


@pytest.mark.parametrize(("first", "second", "n"), [([], [], 0), ([N], ["a"], 0), (["a", "a"], ["a", "a"], 2)])
def test_kappa_undefined(first, second, n):
    assert cohen_kappa(first, second) == cohen_kappa(second, first)
    assert (cohen_kappa(first, second).kappa, cohen_kappa(first, second).n) == (None, n)


def test_rows_must_match():
    for call in (lambda: cohen_kappa([1], []), lambda: krippendorff_alpha([[1], []]), lambda: confusion([1], [], 1)):
        with pytest.raises(ValueError, match="shorter"):
            call()


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=30))
def test_kappa_is_scikit_learns(pairs):
    first, second = zip(*pairs, strict=True)
    both = [(a, b) for a, b in pairs if a and b]
    kappa = cohen_kappa(first, second).kappa
    if kappa is None:
        assert len({label for pair in both for label in pair}) < 2
    else:
        assert kappa == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))


@given(st.lists(st.sampled_from("ab"), min_size=2, max_size=20).filter(lambda row: len(set(row)) > 1), st.integers(2, 4))
def test_perfect_agreement_is_one(row, judges):
    assert krippendorff_alpha([row] * judges) == pytest.approx(1)
    assert cohen_kappa(row, row).kappa == pytest.approx(1)


@given(st.lists(st.lists(labels, min_size=3, max_size=3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_order_and_names_of_labels_do_not_matter(rows, random):
    coders = list(zip(*rows, strict=True))
    alpha = krippendorff_alpha(coders)
    shuffled = random.sample(rows, len(rows))
    renamed = [[{"safe": 7, "unsafe": "x", None: None}[label] for label in coder] for coder in zip(*shuffled, strict=True)]
    others = [krippendorff_alpha(coders[::-1]), krippendorff_alpha(renamed)]
    assert others == ([None, None] if alpha is None else pytest.approx([alpha, alpha]))
    if alpha is not None:
        assert alpha <= 1 + 1e-9
    assert cohen_kappa(coders[0], coders[1]) == cohen_kappa(coders[1], coders[0])


def test_pairwise():
    table = pairwise_kappa({"a": [1, 0, 1, 0], "b": [1, 0, 1, 0], "c": [0, 1, 0, N]})
    assert list(table) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert table["a", "b"].kappa == pytest.approx(1)
    assert (table["a", "c"].kappa, table["a", "c"].n) == (pytest.approx(-0.8), 3)


def test_confusion():
    counts = confusion(["u", "u", "u", "s", "s", N, "s"], ["u", "s", "u", "s", "u", "u", N], positive="u")
    assert counts == Confusion(tp=2, fp=1, tn=1, fn=1)
    assert (counts.n, counts.accuracy, counts.tpr, counts.tnr) == (5, 3 / 5, 2 / 3, 1 / 2)
    empty = confusion([], [], positive="u")
    assert (empty.n, empty.accuracy, empty.tpr, empty.tnr) == (0, None, None, None)


def panel(**votes: str) -> Verdict:
    raw = json.dumps(
        {name: {"label": label, "reason": None, "stance": None, "p_unsafe": None, "detail": ""} for name, label in votes.items()}
    )
    return Verdict(Label.SAFE, judge="panel:a+b+c", raw=raw)


def test_disagreements_of_a_panel():
    verdicts = [
        panel(a="safe", b="safe", c="safe"),
        panel(a="safe", b="unsafe", c="unscored"),
        panel(a="safe", b="safe", c="unscored"),
        unscored(Reason.EMPTY_ANSWER, judge="panel:a+b+c"),
    ]
    assert disagreements(verdicts) == [Disagreement(1, {"a": "safe", "b": "unsafe", "c": "unscored"})]
    assert panel_labels([votes(verdict) for verdict in verdicts]) == {
        "a": ["safe", "safe", "safe", N],
        "b": ["safe", "unsafe", "safe", N],
        "c": ["safe", N, N, N],
    }
    assert member_votes(verdicts[3]) == {}
    with pytest.raises(ValueError, match="offline@1"):
        disagreements([Verdict(Label.SAFE, judge="offline@1")])
