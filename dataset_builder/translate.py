"""Queries in ten languages: translated, translated back by a second call, and kept only where the meaning came back."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator

from videosafety.dataset_builder.config import Config, Translate
from videosafety.dataset_builder.prompts import messages, template
from videosafety.dataset_builder.queries import cleaned, fault
from videosafety.dataset_builder.rows import Outcome, Rejected, Rejection, Row, Stage, said
from videosafety.dataset_builder.servers import Answer, Ask, asked_for, fields_of

NAMES = {
    "en": "English", "zh": "Simplified Chinese", "es": "Spanish", "ar": "Arabic", "hi": "Hindi",
    "fr": "French", "pt": "Portuguese", "ru": "Russian", "ja": "Japanese", "de": "German",
}  # fmt: skip
# First words of the Unicode names of a script's letters. Languages that are not here are written in Latin letters.
_SCRIPTS = {"zh": ("CJK",), "ja": ("HIRAGANA", "KATAKANA", "CJK"), "ar": ("ARABIC",), "hi": ("DEVANAGARI",), "ru": ("CYRILLIC",)}
_ORDER, _BETA = 6, 2.0  # chrF's own choice (Popović 2015)


def chrf(text: str, reference: str) -> float:
    """chrF of two texts, in [0, 1]: F-score, recall counting twice, over character n-grams up to 6, without white space and case."""
    said, wanted = ("".join(t.casefold().split()) for t in (text, reference))
    precision: list[float] = []
    recall: list[float] = []
    for n in range(1, _ORDER + 1):
        found, there = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (said, wanted))
        if not found or not there:
            continue
        common = sum((found & there).values())
        precision.append(common / found.total())
        recall.append(common / there.total())
    if not precision or not any(precision):
        return 0.0
    p, r = sum(precision) / len(precision), sum(recall) / len(recall)
    return (1 + _BETA**2) * p * r / (_BETA**2 * p + r)


def script_share(text: str, language: str) -> float:
    """Share of the letters that belong to the language's script, in [0, 1]; 0 without letters."""
    letters = [unicodedata.name(letter, "") for letter in text if letter.isalpha()]
    return sum(name.startswith(_SCRIPTS.get(language, ("LATIN",))) for name in letters) / len(letters) if letters else 0.0


def translate(config: Config, ask: Ask) -> Stage:
    """Stage: the row, and one row for each target language whose translation stood the check."""

    def stage(row: Row) -> Iterator[Outcome]:
        yield row
        settings = config.translate
        for language in settings.targets if settings else ():
            assert settings is not None
            try:
                yield _translated(config, settings, ask, row, language)
            except Rejected as error:
                yield Rejection(row["id"], str(error), what=language, transient=error.transient)

    return stage


def _translated(config: Config, settings: Translate, ask: Ask, row: Row, language: str) -> Row:
    there = _said(config, ask, settings.server, row["query"], "en", language)
    if problem := fault(there.text):
        raise Rejected(problem)
    if script_share(there.text, language) < 0.5:
        raise Rejected(f"not written in the letters of {NAMES[language]}")
    if there.text.casefold() == row["query"].casefold():
        raise Rejected("not translated")
    back = _said(config, ask, settings.back, there.text, language, "en")
    score = chrf(back.text, row["query"])
    if score < settings.min_chrf:
        raise Rejected(f"the meaning did not come back: chrF {score:.2f}, {settings.min_chrf:g} wanted")
    facts = {
        "model": there.model,
        "back_model": back.model,
        "back": back.text,
        "chrf": round(score, 4),
        "prompt": template("translate").hash,
    }
    return said(row, translation=facts) | {"id": row["id"].removesuffix("en") + language, "query": there.text, "language": language}


def _said(config: Config, ask: Ask, server: str, text: str, source: str, target: str) -> Answer:
    prompt = messages("translate", {"text": text}, source=NAMES[source], target=NAMES[target])
    answer = ask(server, prompt, asked_for("translation", {"translation": {"type": "string"}}, tokens=600, seed=config.seed))
    return Answer(cleaned(fields_of(answer, {"translation": str})["translation"]), answer.model)
