"""Part of a test server, never the real Hub: files going up (commits, LFS, Xet) and coming down."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import time
from typing import Any

import hub_discussions
from hub_calls import Call, Reply, address, behind_gate, commit_of, repo_of
from hub_metadata import problems, results_problem
from hub_store import File, Refusal, Repo, is_lfs

# --- uploads --------------------------------------------------------------------------------------------------------------------


def preupload(call: Call) -> Reply:
    repo, body = repo_of(call, write="create_pr" not in call.query), call.json()
    known, ignored = commit_of(call, repo).files, [line.strip() for line in body.get("gitIgnore", "").splitlines()]
    told = []
    for file in body["files"]:
        path, old = file["path"], known.get(file["path"])
        lfs = is_lfs(path, file["size"], base64.b64decode(file.get("sample", "")))
        skip = any(fnmatch.fnmatch(path, rule) or fnmatch.fnmatch(path, rule.rstrip("/") + "/*") for rule in ignored if rule)
        mode = "lfs" if lfs else "regular"
        told.append({"path": path, "uploadMode": mode, "shouldIgnore": skip, "oid": old and old.blob})
    return Reply({"files": told})


def commit(call: Call) -> Reply:
    """All of it or nothing: the branch moves last."""
    as_pull = "create_pr" in call.query
    repo, store, branch = repo_of(call, write=not as_pull), call.hub.store, call.parts["rev"]
    if as_pull and call.user() is None:
        raise Refusal(401, None, "Invalid username or password.")
    lines = [json.loads(line) for line in call.read().splitlines() if line.strip()]
    head = next(line["value"] for line in lines if line["key"] == "header")
    for line in lines:  # before the lock: a Xet file is put together by way of this very server
        if line["key"] == "lfsFile":
            _stored(call, line["value"])
    with store.lock:
        if branch not in repo.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        parent = head.get("parentCommit")
        if parent and not as_pull and not repo.branches[branch].startswith(parent):
            raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(store.at(repo, branch).files)
        for line in lines:
            _apply(call, repo, files, line["key"], line["value"])
        title, body, who = head["summary"], head.get("description", ""), call.user() or ""
        told: dict[str, Any] = {"success": True, "hookOutput": ""}
        if as_pull:
            pull = hub_discussions.open_pull(store, repo, title, body, who)
            branch = f"refs/pr/{pull['num']}"
            told["pullRequestUrl"] = f"{address(call, repo)}/discussions/{pull['num']}"
        made = store.commit(repo, branch, files, title, body, who)
    return Reply(told | {"commitOid": made.sha, "commitUrl": f"{address(call, repo)}/commit/{made.sha}"})


def _stored(call: Call, value: dict[str, Any]) -> None:
    sha256, stored = value["oid"], call.hub.store.path(value["oid"])
    if not stored.exists() and not call.hub.xet.rebuild(sha256, call.hub.url, f"xet-read-{call.user()}", stored):
        raise Refusal(400, None, f"LFS object {sha256} of {value['path']} was not uploaded")


def _apply(call: Call, repo: Repo, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    store, path = call.hub.store, value.get("path", "")
    if key != "header" and (path.startswith("/") or {"..", ".git", ""} & set(path.rstrip("/").split("/"))):
        raise Refusal(400, None, f"invalid path {path!r}")
    if key == "file":
        data = base64.b64decode(value["content"])
        if path == "README.md" and (found := problems(data.decode("utf-8", "replace"), repo.type)):
            raise Refusal(400, None, f"invalid metadata in README.md: {'; '.join(found)}")
        if re.fullmatch(r"\.eval_results/[^/]+\.yaml", path) or (path == "eval.yaml" and repo.kind == "datasets"):
            wrong = results_problem(path, data)
            if wrong:
                raise Refusal(400, None, wrong)
        files[path] = store.keep(data)
    elif key == "lfsFile":
        sha256 = value["oid"]
        files[path] = store.lfs_file(sha256, call.hub.xet.by_sha256.get(sha256, (None, 0))[0])
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
    elif key == "deletedFolder":
        for inside in [known for known in files if known.startswith(path.rstrip("/") + "/")]:
            del files[inside]
    elif key != "header":
        raise Refusal(400, None, f"this test server knows no commit line {key!r}")


def lfs_batch(call: Call) -> Reply:
    """For whoever may open a pull request, too: what is uploaded shows only once it is committed."""
    repo_of(call)
    if call.user() is None:
        raise Refusal(401, None, "Invalid username or password.")
    told = []
    for item in call.json()["objects"]:
        place = f"{call.hub.url}/lfs/{item['oid']}"
        actions = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
        there = call.hub.store.path(item["oid"]).exists()
        told.append({"oid": item["oid"], "size": item["size"]} | ({} if there else {"actions": actions}))
    return Reply({"transfer": "basic", "objects": told}, headers={"Content-Type": "application/vnd.git-lfs+json"})


def lfs_put(call: Call) -> Reply:
    """As S3 does: the address is the permission."""
    oid = call.parts["oid"]
    part = call.hub.store.path(f"{oid}.{time.monotonic_ns()}.part")
    call.save(part)
    if hashlib.sha256(part.read_bytes()).hexdigest() != oid:
        part.unlink()
        raise Refusal(400, None, "the bytes do not have this SHA-256")
    part.rename(call.hub.store.path(oid))
    return Reply(headers={"ETag": f'"{oid}"'})


def lfs_verify(call: Call) -> Reply:
    return Reply({}, 200 if call.hub.store.path(call.parts["oid"]).exists() else 404)


# --- downloads ------------------------------------------------------------------------------------------------------------------


def resolve(call: Call) -> Reply:
    repo = repo_of(call)
    behind_gate(call, repo)
    commit = commit_of(call, repo)
    file, headers = commit.files.get(call.parts["path"]), {"X-Repo-Commit": commit.sha}
    if file is None:
        told = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Reply({"error": "Entry not found"}, 404, headers | told)
    headers |= {"ETag": f'"{file.blob}"', "Content-Type": "application/octet-stream"}
    if file.sha256 is None:
        return Reply(call.hub.store.path(file.blob), headers=headers)
    headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
    if file.xet and call.hub.has_xet:
        headers["X-Xet-Hash"] = file.xet
        headers["Link"] = f'<{call.hub.url}/api/{repo.kind}/{repo.id}/xet-read-token/{commit.sha}>; rel="xet-auth"'
    # To another host, as the Hub does: a redirect to the same one would be followed, and these headers lost.
    return Reply("", 302, headers | {"Location": f"{call.hub.cdn}/cdn/{file.sha256}"})


def cdn(call: Call) -> Reply:
    """Signed addresses in the real one: a token has no business here."""
    if call.token():
        raise Refusal(400, None, "the client sent its token to a foreign host")
    oid = call.parts["oid"]
    return Reply(call.hub.store.path(oid), headers={"ETag": f'"{oid}"', "Content-Type": "application/octet-stream"})


# --- Xet ------------------------------------------------------------------------------------------------------------------------


def xet_token(call: Call) -> Reply:
    repo = repo_of(call, write=call.parts["mode"] == "write" and "create_pr" not in call.query)
    behind_gate(call, repo)
    token, expires = f"xet-{call.parts['mode']}-{call.user()}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": call.hub.url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return Reply({"accessToken": token, "exp": expires, "casUrl": call.hub.url}, headers=headers)


def _xet_only(call: Call, mode: str) -> None:
    if not re.match(rf"xet-({mode}|write)-", call.token()):
        raise Refusal(401, None, f"no Xet token that may {mode}")


def put_xorb(call: Call) -> Reply:
    _xet_only(call, "write")
    return Reply({"was_inserted": call.hub.xet.add_xorb(call.parts["hash"], call.read())})


def put_shard(call: Call) -> Reply:
    _xet_only(call, "write")
    try:
        call.hub.xet.add_shard(call.read())
    except KeyError as error:
        raise Refusal(400, None, f"the shard names a xorb that was not sent: {error}") from error
    return Reply({"result": 1})


def reconstruction(call: Call) -> Reply:
    _xet_only(call, "read")
    if call.parts["hash"] not in call.hub.xet.files:
        raise Refusal(404, None, "no such file")
    told = call.hub.xet.reconstruction(call.parts["hash"], call.hub.url, call.span())
    if told is None:
        raise Refusal(416, None, "past the end of the file")
    call.headers.pop("range", None)  # it was about the file, not about this reply
    return Reply(told)


def xorb(call: Call) -> Reply:
    return Reply(call.hub.xet.path(call.parts["hash"]))
