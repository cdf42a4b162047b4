"""Part of a test server, never the real Hub: repositories with commits, branches, tags and pull requests, in memory; blobs in a folder."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_LARGE = """7z arrow avi bin bz2 ckpt gguf gif gz h5 jpeg jpg mkv model mov mp3 mp4 msgpack npy npz onnx parquet pickle pkl png pt pth
rar safetensors tar tgz wav webm webp xz zip zst"""
LFS_SUFFIXES = _LARGE.split()
REGULAR_LIMIT = 10_000_000  # bytes: what is larger, or not text, goes to LFS


class Refusal(Exception):
    """An answer with an error: status, the Hub's X-Error-Code where it has one, and a message."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True, slots=True)
class File:
    """One file of a commit. oid: git's SHA-1 of the blob, or of its LFS pointer; sha256 and xet (hash) only for LFS files."""

    oid: str
    size: int
    sha256: str | None = None
    xet: str | None = None

    @property
    def blob(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True, slots=True)
class Commit:
    """A snapshot: path -> File."""

    sha: str
    files: dict[str, File]
    title: str
    body: str
    who: str
    parent: str | None
    date: str


@dataclass
class Repo:
    """kind: models, datasets or spaces. gated: False, "auto" or "manual". granted: users let in. discussions: by number - 1."""

    kind: str
    id: str
    private: bool
    created: str
    sdk: str | None = None
    gated: bool | str = False
    granted: set[str] = field(default_factory=set)
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit; pull requests as refs/pr/1
    tags: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)  # every commit, oldest first
    discussions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def type(self) -> str:
        return self.kind[:-1]


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_sha1(data: bytes) -> str:
    """What git calls a blob with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    return path.rpartition(".")[2].lower() in LFS_SUFFIXES or size > REGULAR_LIMIT or b"\0" in sample


class Store:
    """All repositories, by "models/org/name"; every change takes `lock`."""

    def __init__(self, folder: Path) -> None:
        self.blobs = folder / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, Repo] = {}
        self.commits: dict[str, Commit] = {}
        self.lock = threading.RLock()

    def path(self, blob: str) -> Path:
        return self.blobs / blob

    def keep(self, data: bytes) -> File:
        """Store a regular file."""
        file = File(git_sha1(data), len(data))
        self.path(file.oid).write_bytes(data)
        return file

    def lfs_file(self, sha256: str, xet: str | None = None) -> File:
        """The LFS file whose bytes are stored already."""
        size = self.path(sha256).stat().st_size
        return File(git_sha1(pointer(sha256, size)), size, sha256, xet)

    def create(self, kind: str, name: str, who: str, private: bool = False, sdk: str | None = None) -> Repo:
        repo = self.repos[f"{kind}/{name}"] = Repo(kind, name, private, now(), sdk)
        attributes = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.commit(repo, "main", {".gitattributes": self.keep(attributes.encode())}, "initial commit", who=who)
        return repo

    def commit(self, repo: Repo, branch: str, files: dict[str, File], title: str, body: str = "", who: str = "") -> Commit:
        """Put a new commit on a branch."""
        parent = repo.branches.get(branch)
        told = [parent, sorted((path, file.blob) for path, file in files.items()), title, time.time_ns()]
        made = Commit(hashlib.sha1(json.dumps(told).encode()).hexdigest(), files, title, body, who, parent, now())
        self.commits[made.sha] = made
        repo.branches[branch] = made.sha
        repo.history.append(made.sha)
        return made

    def at(self, repo: Repo, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or hash (7 digits or more)."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = repo.branches.get(name) or repo.tags.get(name)
        if sha is None and len(name) >= 7:
            sha = next((known for known in repo.history if known.startswith(name)), None)
        if sha is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]

    def read(self, repo: Repo, path: str, revision: str = "main") -> bytes:
        """The content of a file, as tests ask for it."""
        return self.path(self.at(repo, revision).files[path].blob).read_bytes()
