"""Keep secrets out of everything that is logged: errors of servers often repeat the key they were sent."""

from __future__ import annotations

import os
import re

# Forms of keys, as their makers document them. `assigned` is for the rest: a name that says it is secret, and a value that could be.
SECRETS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an API key (sk-…)": r"\b[sr]k-[A-Za-z0-9_-]{20,}",
    "a Groq key": r"\bgsk_[A-Za-z0-9]{20,}",
    "an xAI key": r"\bxai-[A-Za-z0-9]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a signed token (JWT)": r"\beyJ(?:(?!-eyJ)[\w-]){10,}\.eyJ[\w-]{10,}\.",  # up to the next start only: time stays linear
    "a bearer token": r"\b(?i:bearer)\s+(?=[\w.~+/-]*\d)[\w.~+/-]{16,}",
    "a password in an address": r"(?<=://)[^/\s:@\"'<>{}$]+:[^/\s:@\"'<>{}$]+(?=@[\w.-])",
    "an assigned secret": (
        r"\b(?i:\w*(?:api_?key|access_?key|secret(?:_?key)?|password|(?:auth|access|hub|hf|wandb)_token))\b"
        r"[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/_.-]{16,}"
    ),
}
_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
# Shorter than any key: servers repeat them with stars in the middle.
_PARTS = r"(?i:\b(?:sk|hf|gsk|xai)[-_][\w*.-]{6,}|(?<=bearer )\S+|(?<=://)[^/\s@]+(?=@))"
_SHAPES = re.compile("|".join([_PARTS, *SECRETS.values()]), re.ASCII)
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
