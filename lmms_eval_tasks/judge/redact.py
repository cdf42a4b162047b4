"""Keep secrets out of everything that is logged: errors of servers often repeat the key they were sent."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_SHAPES = re.compile(r"\b(?:sk|hf|gsk|xai)[-_][\w*.-]{6,}|(?<=bearer )\S+|(?<=://)[^/\s@]+(?=@)", re.IGNORECASE)
MASK = "[redacted]"


def redact(text: str) -> str:
    """`text` without the values of environment variables that hold secrets, and without what looks like a key or a password in a URL."""
    secrets = {value for name in os.environ if _NAMES.search(name) and len(value := os.environ.get(name, "")) >= 8}
    for value in sorted(secrets, key=len, reverse=True):  # a key may contain another
        text = text.replace(value, MASK)
    return _SHAPES.sub(MASK, text)


def one_line(text: str, limit: int = 300) -> str:
    """`text` redacted, in one line of at most `limit` characters: what goes into a verdict's detail."""
    return " ".join(redact(text).split())[:limit]
