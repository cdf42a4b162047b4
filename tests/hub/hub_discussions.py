"""Part of a test server, never the real Hub: discussions and pull requests."""

from __future__ import annotations

from typing import Any

from hub_calls import Call, Reply, repo_of
from hub_store import Refusal, Repo, Store, now


def _new(repo: Repo, title: str, text: str, who: str, pull: bool) -> dict[str, Any]:
    made = {
        "num": len(repo.discussions) + 1, "title": title, "author": {"name": who}, "createdAt": now(), "status": "open",
        "repo": {"name": repo.id, "type": repo.type}, "isPullRequest": pull, "events": [], "filesWithConflicts": [],
        "changes": {"base": "refs/heads/main"},
    }  # fmt: skip
    repo.discussions.append(made)
    _event(made, who, "comment", {"edited": False, "hidden": False, "latest": {"raw": text}})
    return made


def _event(discussion: dict[str, Any], who: str, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    event = {"id": f"{discussion['num']}-{len(discussion['events'])}", "type": kind, "createdAt": now(), "author": {"name": who}}
    discussion["events"].append(event | {"data": data})
    return discussion["events"][-1]


def open_pull(store: Store, repo: Repo, title: str, text: str, who: str) -> dict[str, Any]:
    """A pull request against main; its branch is refs/pr/<number>."""
    made = _new(repo, title, text, who, pull=True)
    repo.branches[f"refs/pr/{made['num']}"] = made["base"] = repo.branches["main"]
    return made


def _find(call: Call, repo: Repo) -> dict[str, Any]:
    number = int(call.parts["num"])
    if not 1 <= number <= len(repo.discussions):
        raise Refusal(404, None, f"no discussion {number}")
    return repo.discussions[number - 1]


def _user(call: Call) -> str:
    user = call.user()
    if user is None:
        raise Refusal(401, None, "Invalid username or password.")
    return user


def create(call: Call) -> Reply:
    repo, body, user = repo_of(call), call.json(), _user(call)
    if not 3 <= len(body["title"]) <= 200:
        raise Refusal(400, None, "a title has 3 to 200 characters")
    if body["pullRequest"]:
        made = open_pull(call.hub.store, repo, body["title"], body["description"], user)
        made["status"] = "draft"
    else:
        made = _new(repo, body["title"], body["description"], user, pull=False)
    return Reply({"num": made["num"]})


def listing(call: Call) -> Reply:
    shown = repo_of(call).discussions
    wanted = {"pull_request": True, "discussion": False}.get(call.query.get("type", ""))
    shown = [one for one in shown if wanted in (None, one["isPullRequest"])]
    open_ones = {"open": ("open", "draft"), "closed": ("closed", "merged")}.get(call.query.get("status", ""))
    shown = [one for one in shown if (open_ones is None or one["status"] in open_ones)]
    shown = [one for one in shown if call.query.get("author") in (None, one["author"]["name"])]
    return Reply({"discussions": shown, "count": len(shown), "start": 0})


def details(call: Call) -> Reply:
    return Reply(_find(call, repo_of(call)))


def comment(call: Call) -> Reply:
    data = {"edited": False, "hidden": False, "latest": {"raw": call.json()["comment"]}}
    return Reply({"newMessage": _event(_find(call, repo_of(call)), _user(call), "comment", data)})


def status(call: Call) -> Reply:
    found, wanted = _find(call, repo_of(call, write=True)), call.json()["status"]
    found["status"] = wanted
    return Reply({"newStatus": _event(found, _user(call), "status-change", {"status": wanted})})


def merge(call: Call) -> Reply:
    """What the pull request changed since it was opened goes onto main."""
    repo, store, user = repo_of(call, write=True), call.hub.store, _user(call)
    found = _find(call, repo)
    if not found["isPullRequest"] or found["status"] not in ("open", "draft"):
        raise Refusal(400, None, "nothing to merge")
    with store.lock:
        before, after = store.commits[found["base"]].files, store.at(repo, f"refs/pr/{found['num']}").files
        files = dict(store.at(repo, "main").files)
        files |= {path: file for path, file in after.items() if before.get(path) != file}
        files = {path: file for path, file in files.items() if path in after or path not in before}
        made = store.commit(repo, "main", files, f"{found['title']} (#{found['num']})", who=user)
    found["status"], found["changes"]["mergeCommitId"] = "merged", made.sha
    _event(found, user, "status-change", {"status": "merged"})
    return Reply({})


TABLE = [
    ("POST", "/discussions", create),
    ("GET", "/discussions", listing),
    ("GET", r"/discussions/(?P<num>\d+)", details),
    ("POST", r"/discussions/(?P<num>\d+)/comment", comment),
    ("POST", r"/discussions/(?P<num>\d+)/status", status),
    ("POST", r"/discussions/(?P<num>\d+)/merge", merge),
]
