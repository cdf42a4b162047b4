"""Part of a test server, never the real Hub: a request, a reply, the users there are, and who may do what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from hub_store import Commit, Refusal, Repo

# Of the length and form of real ones, so that tests of secrets mean something; put together here so that no scanner takes them for such.
TOKENS = {"hf_" + user.ljust(34, "x"): user for user in ("alice", "bob", "carol")}
ALICE, BOB, CAROL = TOKENS
READ_ONLY = "hf_" + "alicereads".ljust(34, "x")  # alice's too, but may not write
ORGS = {"safety-lab": ("alice", "bob")}


@dataclass
class Reply:
    """body: JSON value, text, bytes, a file's path, or nothing."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """One request. hub: the server. parts: named groups of its route, unquoted. query: first values."""

    hub: Any
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # lower-case names
    read: Callable[[], bytes]
    save: Callable[[Path], None]
    parts: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.read() or b"{}")

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.read().decode())

    def user(self) -> str | None:
        """Who asks. Refuses tokens that nobody has."""
        token = self.token()
        if token and token != READ_ONLY and token not in TOKENS:
            raise Refusal(401, None, "Invalid username or password.")
        return "alice" if token == READ_ONLY else TOKENS.get(token)

    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ").strip()

    def span(self) -> tuple[int, int | None] | None:
        """(first, last) of a Range header, `last` None where it is open."""
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return found and (int(found[1]), int(found[2]) if found[2] else None)


# --- who may do what ------------------------------------------------------------------------------------------------------------


def owns(user: str | None, name: str) -> bool:
    """Whether `user` belongs to the owner of the repository `name`."""
    owner = name.partition("/")[0]
    return user is not None and (owner == user or user in ORGS.get(owner, ()))


def may_write(call: Call, name: str, what: str = "write to this repo") -> str:
    """Who writes. Refuses anonymous users, strangers, and tokens that may only read."""
    user = call.user()
    if user is None:
        raise Refusal(401, None, "Invalid username or password.")
    if not owns(user, name) or call.token() == READ_ONLY:
        raise Refusal(403, None, f"Forbidden: you don't have the rights to {what}")
    return user


def repo_of(call: Call, write: bool = False) -> Repo:
    """The repository that a path names. A private one does not exist for strangers."""
    name, kind, user = f"{call.parts['ns']}/{call.parts['name']}", call.parts.get("kind", "models"), call.user()
    repo = call.hub.store.repos.get(f"{kind}/{name}")
    if repo is None or (repo.private and not owns(user, name)):
        raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
    if write:
        may_write(call, name)
    return repo


def behind_gate(call: Call, repo: Repo) -> None:
    """Refuses the files of a gated repository to those who were not let in."""
    user = call.user()
    if repo.gated and not owns(user, repo.id) and user not in repo.granted:
        status, what = (403, "you are not in the authorized list") if user else (401, "please log in")
        raise Refusal(status, "GatedRepo", f"Access to {repo.type} {repo.id} is restricted: {what}.")


def commit_of(call: Call, repo: Repo) -> Commit:
    return call.hub.store.at(repo, call.parts.get("rev", "main"))


def address(call: Call, repo: Repo) -> str:
    return f"{call.hub.url}/{'' if repo.kind == 'models' else repo.kind + '/'}{repo.id}"
