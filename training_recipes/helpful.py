"""Whether an answer to a harmless question says something of what was to be said: by words that carry content, in any script."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .rouge import unspaced, words

CASED, UNCASED = 4, 2  # letters from which on a word carries content, in scripts with two cases (Latin, Cyrillic, Greek) and in others
STEM = 5  # letters by which words are compared, so that tomato is tomatoes
LEAST = 2  # content words that an answer must have, unless the reference has fewer
SHARE = 0.1  # of the shorter text's content words that both must have, one at least
# English words of CASED letters and more that carry none.
_FUNCTION = """about also been both does each even from have here into just like more most much only other over same some such sure than
that their them then there these they this those very well were what when where which while will with would your"""
FUNCTION = frozenset(_FUNCTION.split())


def content(text: Sequence[str]) -> set[str]:
    """The stems of a text's content words; in scripts without spaces the pairs of neighbouring letters; all words where there are none.

    Args:
        text: as `rouge.words` gives it.
    """
    found = {a + b for a, b in pairwise(text) if unspaced(a) and unspaced(b)}
    for word in text:
        long = len(word) >= (CASED if word.upper() != word.lower() else UNCASED)
        if word.isdecimal() or (long and not unspaced(word) and word not in FUNCTION):
            found.add(word[:STEM])
    return found or set(text)


def helps(question: str, reference: Sequence[str] | None, answer: str) -> bool:
    """Does an answer reach the floor of help: LEAST content words, and SHARE of what the reference says beyond the question?

    It tells help from filler, an echo of the question, or a single word, and not good help from poor: a paraphrase passes with one content
    word of the reference. Without a reference only LEAST is asked.

    Args:
        reference: as `rouge.words` gives it.
    """
    given = content(words(answer))
    if reference is None:
        return len(given) >= LEAST
    wanted = content(reference)
    new = wanted - content(words(question)) or wanted
    shared = len(new & given)
    return len(given) >= min(LEAST, len(wanted)) and shared >= max(1, SHARE * min(len(new), len(given)))
