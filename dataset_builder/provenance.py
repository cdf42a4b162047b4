"""What a row says of its own making: the same keys in every row, so that Parquet has one schema, and nothing that tells of this machine."""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from typing import Any

VERSION = "2"  # of the stages: raised whenever one of them makes other rows of the same input, so that everything is done again

VOTE = {"judge": "string", "family": "string", "label": "string", "category": "string", "detail": "string"}
QUERY = {"origin": "string", "model": "string", "form": "string", "attempts": "int64", "prompt": "string", "check": "string"}
TRANSLATION = {"model": "string", "back_model": "string", "back": "string", "chrf": "double", "prompt": "string"}
DECISION = {"action": "string", "reviewer": "string", "reason": "string"}
KEYS: dict[str, Any] = {
    "source": "string",
    "path": "string",
    "origin": "string",
    "licence": "string",
    "sha256": "string",
    "shot": ["double"],
    "clip_sha256": "string",
    "motion": "double",
    "fingerprint": "string",
    "fingerprint_by": "string",
    "cluster": "string",
    "votes": [VOTE],
    "agreement": "double",
    "decided_by": "string",
    "disputed": "bool",
    "policy": "string",
    "label_prompt": "string",
    "description_by": "string",
    "description_prompt": "string",
    "spans_by": "string",
    "query": QUERY,
    "translation": TRANSLATION,
    "decisions": [DECISION],
    "config": "string",
    "builder": "string",
    "versions": {"videosafety": "string", "av": "string", "numpy": "string"},
}


def complete(found: dict[str, Any], config: str) -> dict[str, Any]:
    """All keys, with None or [] where nothing is known; keys that are not listed are dropped."""
    facts = found | {"config": config, "builder": VERSION, "versions": dict(versions())}
    return {key: _as(kind, facts.get(key)) for key, kind in KEYS.items()}


def _as(kind: Any, value: Any) -> Any:
    if isinstance(kind, list):
        return [_as(kind[0], entry) for entry in value or []]
    if isinstance(kind, dict):
        return None if value is None else {key: _as(inner, value.get(key)) for key, inner in kind.items()}
    return value


@lru_cache(maxsize=1)
def versions() -> tuple[tuple[str, str], ...]:
    return tuple((name, importlib.metadata.version(name)) for name in ("videosafety", "av", "numpy"))


def arrow(kind: Any) -> Any:
    """The Arrow type of an entry of KEYS."""
    import pyarrow

    if isinstance(kind, list):
        return pyarrow.list_(arrow(kind[0]))
    if isinstance(kind, dict):
        return pyarrow.struct([(key, arrow(inner)) for key, inner in kind.items()])
    return {"string": pyarrow.string(), "double": pyarrow.float64(), "int64": pyarrow.int64(), "bool": pyarrow.bool_()}[kind]
