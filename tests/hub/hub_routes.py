"""Part of a test server, never the real Hub: its API, one function a route. The surface is what huggingface_hub 2.4 asks for."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable
from typing import Any

import hub_discussions
import hub_transfer
import yaml
from hub_calls import ORGS, READ_ONLY, Call, Reply, address, behind_gate, commit_of, may_write, owns, repo_of
from hub_metadata import front_matter, problems
from hub_store import Commit, File, Refusal, Repo, pointer

PAGE, EXPANDED_PAGE = 1000, 50


# --- repositories ---------------------------------------------------------------------------------------------------------------


def whoami(call: Call) -> Reply:
    user = call.user()
    if user is None:
        raise Refusal(401, None, "Invalid username or password.")
    orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org, members in ORGS.items() if user in members]
    role = "read" if call.token() == READ_ONLY else "write"
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return Reply({"type": "user", "name": user, "fullname": user, "isPro": False, "orgs": orgs, "auth": token})


def create(call: Call) -> Reply:
    body = call.json()
    name = f"{body.get('organization') or call.user()}/{body['name']}"
    kind = f"{body.get('type') or 'model'}s"
    user = may_write(call, name, f'create a {kind[:-1]} under the namespace "{name.partition("/")[0]}"')
    with call.hub.store.lock:
        known = call.hub.store.repos.get(f"{kind}/{name}")
        if known:
            return Reply({"error": f"You already created this {kind[:-1]} repo", "url": address(call, known)}, 409)
        repo = call.hub.store.create(kind, name, user, body.get("visibility") == "private", body.get("sdk"))
    return Reply({"url": address(call, repo), "name": name, "id": name})


def delete(call: Call) -> Reply:
    body = call.json()
    call.parts = {"ns": body.get("organization") or call.user() or "", "name": body["name"], "kind": f"{body.get('type') or 'model'}s"}
    repo = repo_of(call, write=True)
    del call.hub.store.repos[f"{repo.kind}/{repo.id}"]
    return Reply({})


def duplicate(call: Call) -> Reply:
    repo, wanted = repo_of(call), call.json()
    name = wanted["repository"]
    user = may_write(call, name)
    if f"{repo.kind}/{name}" in call.hub.store.repos:
        raise Refusal(409, None, "this repo exists already")
    copy = call.hub.store.create(repo.kind, name, user, wanted.get("visibility", "private") == "private", repo.sdk)
    call.hub.store.commit(copy, "main", dict(commit_of(call, repo).files), f"Duplicate from {repo.id}", who=user)
    return Reply({"url": address(call, copy)})


def settings(call: Call) -> Reply:
    repo, body = repo_of(call, write=True), call.json()
    if "visibility" in body:
        repo.private = body["visibility"] == "private"
    if "gated" in body:
        repo.gated = body["gated"]
    return Reply({"private": repo.private, "gated": repo.gated})


def grant(call: Call) -> Reply:
    """Let a user into a gated repository."""
    repo_of(call, write=True).granted.add(call.json()["user"])
    return Reply({})


def auth_check(call: Call) -> Reply:
    behind_gate(call, repo_of(call, write="write" in call.parts))
    return Reply({})


def listing(call: Call) -> Reply:
    """Repositories that the user may see; `author` and `search` narrow it."""
    user, wanted = call.user(), call.query
    shown = [
        about(call, repo, call.hub.store.at(repo, "main"))
        for repo in call.hub.store.repos.values()
        if repo.kind == call.parts["kind"] and (not repo.private or owns(user, repo.id))
    ]
    return Reply(
        [a for a in shown if wanted.get("author") in (None, a["author"]) and wanted.get("search", "").lower() in str(a["id"]).lower()]
    )


def about(call: Call, repo: Repo, commit: Commit) -> dict[str, Any]:
    card, store = {}, call.hub.store
    if readme := commit.files.get("README.md"):
        card = front_matter(store.path(readme.blob).read_text(encoding="utf-8"))
    results = [
        {"filename": path, "data": entry}
        for path, file in sorted(commit.files.items())
        if fnmatch.fnmatch(path, ".eval_results/*.yaml")
        for entry in yaml.safe_load(store.path(file.blob).read_bytes())
    ]
    told = {
        "_id": commit.sha[:24], "id": repo.id, "author": repo.id.partition("/")[0], "sha": commit.sha, "lastModified": commit.date,
        "createdAt": repo.created, "private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0,
        "tags": [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])],
        "cardData": card, "siblings": [{"rfilename": path} for path in sorted(commit.files)],
    }  # fmt: skip
    if repo.kind == "models":
        told |= {"modelId": repo.id, "library_name": card.get("library_name"), "pipeline_tag": card.get("pipeline_tag")}
        told |= {"model-index": card.get("model-index"), "evalResults": results}
    if repo.kind == "spaces":
        told |= {"sdk": repo.sdk}
    return told


def info(call: Call) -> Reply:
    repo = repo_of(call)
    commit = commit_of(call, repo)
    told = about(call, repo, commit)
    if "blobs" in call.query:
        told["siblings"] = [
            {"rfilename": path, "size": file.size, "blobId": file.oid} | ({"lfs": _lfs(file)} if file.sha256 else {})
            for path, file in sorted(commit.files.items())
        ]
    return Reply(told)


def validate(call: Call) -> Reply:
    body = call.json()
    errors = [{"message": problem} for problem in problems(body["content"], body.get("repoType") or "model")]
    empty = not errors and not front_matter(body["content"])
    warnings = [{"message": "empty or missing yaml metadata in repo card"}] if empty else []
    return Reply({"errors": errors, "warnings": warnings}, 400 if errors else 200)


# --- trees ----------------------------------------------------------------------------------------------------------------------


def _lfs(file: File) -> dict[str, Any]:
    return {
        "sha256": file.sha256, "oid": file.sha256, "size": file.size, "pointerSize": len(pointer(file.sha256 or "", file.size)),
    }  # fmt: skip


def _entry(path: str, file: File | None, commit: Commit, expand: bool) -> dict[str, Any]:
    """A file, or a folder where `file` is None."""
    told: dict[str, Any] = {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    if file:
        told |= {"type": "file", "size": file.size, "oid": file.oid} | ({"lfs": _lfs(file)} if file.sha256 else {})
        told |= {"xetHash": file.xet} if file.xet else {}
    return told | ({"lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}} if expand else {})


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "1")


def tree(call: Call) -> Reply:
    repo = repo_of(call)
    commit, below = commit_of(call, repo), call.parts.get("path", "").strip("/")
    start = f"{below}/" if below else ""
    found: dict[str, File | None] = {}
    for path, file in sorted(commit.files.items()):
        if path.startswith(start):
            steps = path[len(start) :].split("/")
            depth = len(steps) if _true(call.query.get("recursive")) else 1
            found |= {start + "/".join(steps[:n]): None for n in range(1, min(depth, len(steps) - 1) + 1)}
            found |= {path: file} if len(steps) <= depth else {}
    if below and not found:
        raise Refusal(404, "EntryNotFound", f'{below} does not exist on "{call.parts["rev"]}"')
    expand = _true(call.query.get("expand"))
    first, size = int(call.query.get("cursor", 0)), EXPANDED_PAGE if expand else PAGE
    page = [_entry(path, file, commit, expand) for path, file in list(found.items())[first : first + size]]
    more = f'<{call.hub.url}{call.path}?recursive={call.query.get("recursive", "")}&expand={expand}&cursor={first + size}>; rel="next"'
    return Reply(page, headers={"Link": more} if first + size < len(found) else {})


def paths_info(call: Call) -> Reply:
    repo = repo_of(call)
    commit, body = commit_of(call, repo), call.form()
    found = []
    for path in (path.strip("/") for path in body["paths"]):
        file = commit.files.get(path)
        if file or any(known.startswith(path + "/") for known in commit.files):
            found.append(_entry(path, file, commit, _true(body["expand"][0])))
    return Reply(found)


def refs(call: Call) -> Reply:
    repo = repo_of(call)

    def listed(names: dict[str, str], kind: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

    plain = {name: sha for name, sha in repo.branches.items() if not name.startswith("refs/")}
    pulls = [{"name": n.split("/")[-1], "ref": n, "targetCommit": sha} for n, sha in repo.branches.items() if n.startswith("refs/pr/")]
    return Reply({"branches": listed(plain, "heads"), "tags": listed(repo.tags, "tags"), "converts": [], "pullRequests": pulls})


def history(call: Call) -> Reply:
    commit: Commit | None = commit_of(call, repo_of(call))
    told = []
    while commit:
        told.append(
            {"id": commit.sha, "title": commit.title, "message": commit.body, "date": commit.date, "authors": [{"user": commit.who}]}
        )
        commit = call.hub.store.commits.get(commit.parent or "")
    return Reply(told)


def add_ref(call: Call) -> Reply:
    """A tag (its revision in the address, its name in the body) or a branch (the other way round)."""
    repo, body = repo_of(call, write=True), call.json()
    tag = call.parts["what"] == "tag"
    name, start = (body["tag"], call.parts["ref"]) if tag else (call.parts["ref"], body.get("startingPoint") or "main")
    kept = repo.tags if tag else repo.branches
    if name in kept:
        raise Refusal(409, None, f"Reference {name} exists already")
    kept[name] = call.hub.store.at(repo, start).sha
    return Reply({})


def drop_ref(call: Call) -> Reply:
    repo = repo_of(call, write=True)
    kept = repo.tags if call.parts["what"] == "tag" else repo.branches
    if kept.pop(call.parts["ref"], None) is None:
        raise Refusal(404, "RevisionNotFound", "no such reference")
    return Reply({})


# --- the table ------------------------------------------------------------------------------------------------------------------

KIND, NAME = "(?P<kind>models|datasets|spaces)", "(?P<ns>[^/]+)/(?P<name>[^/]+)"
API, FILES = f"/api/{KIND}/{NAME}", f"/(?:(?P<kind>datasets|spaces)/)?{NAME}"
REV, HASH = "(?P<rev>[^/]+)", "(?P<hash>[0-9a-f]{64})"
TABLE: list[tuple[str, str, Callable[[Call], Reply]]] = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("DELETE", "/api/repos/delete", delete),
    ("POST", "/api/validate-yaml", validate),
    ("GET", f"/api/{KIND}", listing),
    ("GET", API, info),
    ("GET", f"{API}/revision/{REV}", info),
    ("GET", f"{API}/tree/{REV}(?:/(?P<path>.*))?", tree),
    ("POST", f"{API}/paths-info/{REV}", paths_info),
    ("GET", f"{API}/refs", refs),
    ("GET", f"{API}/commits/{REV}", history),
    ("POST", f"{API}/preupload/{REV}", hub_transfer.preupload),
    ("POST", f"{API}/commit/{REV}", hub_transfer.commit),
    ("PUT", f"{API}/settings", settings),
    ("POST", f"{API}/duplicate", duplicate),
    ("POST", f"{API}/user-access-request/grant", grant),
    ("GET", f"{API}/auth-check(?P<write>/write)?", auth_check),
    ("GET", f"{API}/xet-(?P<mode>read|write)-token/{REV}", hub_transfer.xet_token),
    ("POST", f"{API}/(?P<what>tag|branch)/(?P<ref>[^/]+)", add_ref),
    ("DELETE", f"{API}/(?P<what>tag|branch)/(?P<ref>[^/]+)", drop_ref),
    *((method, API + tail, function) for method, tail, function in hub_discussions.TABLE),
    ("POST", f"{FILES}\\.git/info/lfs/objects/batch", hub_transfer.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", hub_transfer.lfs_put),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", hub_transfer.lfs_verify),
    ("GET", "/cdn/(?P<oid>[0-9a-f]{64})", hub_transfer.cdn),
    ("POST", f"/v1/xorbs/[^/]+/{HASH}", hub_transfer.put_xorb),
    ("POST", "(?:/v1)?/shards", hub_transfer.put_shard),
    ("GET", f"/v1/reconstructions/{HASH}", hub_transfer.reconstruction),
    ("GET", f"/xorbs/{HASH}", hub_transfer.xorb),
    ("GET", f"{FILES}/resolve/{REV}/(?P<path>.+)", hub_transfer.resolve),
]
ROUTES = [(method, re.compile(pattern), function) for method, pattern, function in TABLE]
