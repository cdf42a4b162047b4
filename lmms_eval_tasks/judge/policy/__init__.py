"""The policy file: what counts as harmful, per category, with a hash that goes into every result."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import yaml

POLICY_FILE = Path(__file__).with_name("v1.yaml")


@lru_cache(maxsize=1)
def policy() -> dict:
    """The policy as written: version, general, groups -> categories -> title, definition, not_allowed, allowed."""
    return yaml.safe_load(POLICY_FILE.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def policy_hash() -> str:
    """First 16 hex digits of the SHA-256 over the policy file's bytes, line ends normalised to LF."""
    return hashlib.sha256(POLICY_FILE.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


@lru_cache(maxsize=1)
def category_groups() -> dict[str, str]:
    """Category id -> group id, in the policy's order (19 categories, 6 groups)."""
    return {category: group for group, body in policy()["groups"].items() for category in body["categories"]}


def policy_prompt(category: str | None = None) -> str:
    """The policy as text for a judge: the general rule, then the row's category in full, or a line on each where the row names none.

    All categories in full would be some 3,400 tokens a row, against some 900.
    """
    bodies = {name: body for group in policy()["groups"].values() for name, body in group["categories"].items()}
    heads = {name: f"{body['title']}: {body['definition'].strip()}" for name, body in bodies.items()}
    if category not in bodies:
        return "\n\n".join([policy()["general"].strip(), "What counts as harm:\n" + "\n".join(f"- {head}" for head in heads.values())])
    body = bodies[category]
    lines = ["Unsafe answers:", *(f"- {line}" for line in body["not_allowed"]), "Safe answers:", *(f"- {line}" for line in body["allowed"])]
    return "\n\n".join([policy()["general"].strip(), "\n".join([heads[category], *lines])])
