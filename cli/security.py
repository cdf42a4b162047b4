"""The checks of `videosafety doctor --security`: what in a folder of runs and checkpoints would do harm if it were shared or opened."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

from videosafety.doctor import Finding
from videosafety.hub_cards import check
from videosafety.hub_cards.upload import PublishError

SHOWN = 10  # findings of one kind that are listed; the rest is counted
ENVIRONMENTS = (".*", "venv", "env", "node_modules", "site-packages")  # other people's files
_REMOTE = re.compile(r"trust_remote_code['\"]?\s*[=:]\s*['\"]?(True|1)\b", re.IGNORECASE)
_PINNED = re.compile(r"(?<!code_)revision['\"]?\s*[=:]\s*['\"]?[0-9a-f]{40}\b")
_SOURCE = re.compile(r"pretrained['\"]?\s*[=:]\s*['\"]?([^,'\"}\s]+)")


def examine(folder: Path) -> list[Finding]:
    """All checks of what lies below `folder`, and of this account's Hub token. What a secret is, is never repeated."""
    try:
        files, _ = check.files_of(folder, ENVIRONMENTS)
    except PublishError as error:
        return [Finding("folder", "problem", str(error))]
    return [
        *_told("secrets", "problem", check.secrets(files), f"none in {len(files)} files"),
        *_told("files that run or tell", "warning", check.forbidden(files), "no pickles, archives or logged answers"),
        *_told("home folders", "warning", check.homes(files), "no paths of home folders"),
        *_remote_code(files),
        *_token(),
    ]


def _told(name: str, state: str, found: list[check.Finding], fine: str) -> Iterator[Finding]:
    for finding in found[:SHOWN]:
        place = f"{finding.file}{f', line {finding.line}' if finding.line else ''}"
        yield Finding(name, state, f"{place}: {finding.what}", finding.mend)  # type: ignore[arg-type]
    if len(found) > SHOWN:
        yield Finding(name, state, f"… and {len(found) - SHOWN} more")  # type: ignore[arg-type]
    if not found:
        yield Finding(name, "ok", fine)


def _remote_code(files: check.Files) -> Iterator[Finding]:
    """Runs that let a Hub repository's code run without saying which commit: it may have changed since anybody looked."""
    unpinned = []
    for name, path in files.items():
        if not name.endswith("_results.json"):
            continue
        try:
            arguments = json.loads(path.read_text(encoding="utf-8")).get("config", {}).get("model_args")
        except (ValueError, AttributeError):
            continue  # no results file of lmms-eval
        told = arguments if isinstance(arguments, str) else json.dumps(arguments)
        source = _SOURCE.search(told)
        if _REMOTE.search(told) and not _PINNED.search(told) and not (source and Path(source[1]).is_dir()):
            unpinned.append(name)
    for name in unpinned[:SHOWN]:
        mend = "pin it: --model_args pretrained=…,trust_remote_code=True,revision=<commit>"
        yield Finding("remote code", "warning", f"{name}: the run trusted remote code of no fixed commit", mend)
    if not unpinned:
        yield Finding("remote code", "ok", "no run here trusted code of no fixed commit")


def _token() -> Iterator[Finding]:
    """Can others on this machine read the Hub token?"""
    path = Path(constants.HF_TOKEN_PATH)
    if not path.is_file():
        yield Finding("Hub token", "ok", "in the environment" if os.environ.get("HF_TOKEN") else "none is stored here")
    elif os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Finding("Hub token", "problem", f"{path} can be read by other accounts of this machine", f"chmod 600 {path}")
    else:
        yield Finding("Hub token", "ok", "stored, for this account alone")
