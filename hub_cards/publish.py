"""`videosafety publish model`: checked here, uploaded to a side branch, loaded back from there, compared, and only then put on main."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import HTTPError
from huggingface_hub.hf_api import CommitInfo

from videosafety.hub_cards import check
from videosafety.hub_cards.cards import RECORD, Card, model_card
from videosafety.hub_cards.results import FOLDER, KEPT
from videosafety.hub_cards.upload import PublishError, check_card, check_repo, read_remote, said
from videosafety.lmms_eval_tasks.data import cache_dir
from videosafety.lmms_eval_tasks.judge.redact import redact

CODE = Path(__file__).parents[1] / "hf_models"  # the code that build-alarm puts beside weights
LOAD_BACK = Path(__file__).with_name("load_back.py")
CURVES = "plots.png"  # which a run draws of itself
SIDE_BRANCH = "videosafety-publish-"  # and the first digits of what is published
# What a repository may hold that no checkpoint folder does: the Hub's own file, and what `publish results` wrote.
OTHERS = (".gitattributes", KEPT, f"{FOLDER}/")

Operation: TypeAlias = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


@dataclass(frozen=True, slots=True)
class Plan:
    """A checkpoint that has passed all checks. files: path in the repository -> the file, or for the card its bytes.

    code: the files that loading runs. foreign: those of them that are not ours, byte for byte. warnings: worth a look, no reason to stop.
    """

    repo: str
    files: Mapping[str, Path | bytes]
    card: str
    code: tuple[str, ...]
    foreign: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """Where it is. changed: False where main held the same already. compared: what was computed twice with the same bits."""

    url: str
    commit: str
    changed: bool
    compared: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    pull_request: str | None = None


# --- the plan: nothing is sent ----------------------------------------------------------------------------------------------------------


def plan(
    folder: Path,
    repo: str,
    *,
    licence: str | None = None,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    kept: str | None = None,
) -> Plan:
    """Check a checkpoint folder and write its card. Of a run's folder the checkpoint-<step> folders stay here, with a warning, as they hold
    what resuming needs, pickles too; and TensorBoard's `runs`, whose file names tell the machine's name.

    Args:
        licence: as the Hub writes it; by default that of the folder's own README.md.
        exclude: patterns of what to leave out. include: of rows and media that are to go up.
        kept: the repository's safety_results.json, which the card then shows.

    Raises:
        PublishError: everything that is wrong with the folder, a line each.
    """
    check_repo(repo)
    steps = _of_the_run(folder)
    files, left_out = check.files_of(folder, [*exclude, *steps])
    bad = check.forbidden(files)
    told = {finding.file for finding in bad}
    drawn = [CURVES] if (folder / RECORD).is_file() else []
    found = [*bad, *(finding for finding in check.unasked(files, [*include, *drawn]) if finding.file not in told), *check.secrets(files)]
    if found:  # before anything in the folder is read further
        raise PublishError(_listed(folder, found))
    tensors = check.tensors(files)
    code, found = check.code_of(files)
    if found:
        raise PublishError(_listed(folder, found))
    foreign = tuple(name for name in code if not (CODE / name).is_file() or (CODE / name).read_bytes() != files[name].read_bytes())
    card = model_card(Card(folder, repo, files, tensors, bool(code), licence, foreign), kept)
    check_card(card, "model", online=False)
    bodies: dict[str, Path | bytes] = {**files, "README.md": card.encode()}
    bodies.pop(KEPT, None)  # it belongs to the repository, not to the checkpoint
    warnings = [f"{', '.join(steps)} of the run: left out, as nobody but the run needs them"] if steps else []
    warnings += [str(finding) for finding in check.homes(files)]
    left_out = [name for name in left_out if name.partition("/")[0] not in steps or name in steps]  # a line each, not one for every file
    return Plan(repo, bodies, card, tuple(code), foreign, tuple(left_out), tuple(warnings))


def _of_the_run(folder: Path) -> list[str]:
    """The folders that a run left beside its result: checkpoint-<step> by their steps, then `runs`; none in a folder of another kind."""
    if not (folder / RECORD).is_file():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(names, key=lambda name: int(name.rpartition("-")[2])) + ["runs"] * (folder / "runs").is_dir()


def _listed(folder: Path, found: Sequence[check.Finding]) -> str:
    lines = [str(finding) for finding in found]
    return f"{folder} cannot be published:\n  " + "\n  ".join(lines)


def remote_results(repo: str) -> str | None:
    """The safety_results.json of a repository; None where it has none, or there is no such repository yet.

    Raises:
        PublishError: the Hub is not reached, or refuses.
    """
    with said(repo):
        if not HfApi(library_name="videosafety").repo_exists(repo):
            return None
    return read_remote(repo, "model", KEPT)


# --- publishing -------------------------------------------------------------------------------------------------------------------------


def publish(
    folder: Path, made: Plan, *, public: bool = False, create_pr: bool = False, tag: str | None = None, trust_code: bool = False
) -> Published:
    """Make the repository's main hold exactly what the plan says (and results that were published to it).

    A new repository is private until the end. The files go to a side branch in one commit; a process without this package and without
    caches loads them from there, and must compute what the local folder does, bit for bit. Then main gets the same files in one commit, and
    the branch goes. So others see the old state or the new one, never a part; run again, it goes on where it was cut.

    Args:
        public: show it to everyone at the end. create_pr: leave main alone and open a pull request. tag: a name for the new commit.
        trust_code: run code of the folder that is not this package's own.

    Raises:
        PublishError: no access, no network, or what came back is not what went up; main is untouched then.
    """
    if made.foreign and not trust_code:
        names = ", ".join(made.foreign)
        raise PublishError(f"loading {folder} runs {names}, which is not this package's own code: read it, then say --trust-remote-code")
    api = HfApi(library_name="videosafety")
    with tempfile.TemporaryDirectory(dir=_room(), prefix="publish-") as scratch, said(made.repo):
        expected = None
        if not api.repo_exists(made.repo):
            if create_pr:
                raise PublishError(f"{made.repo} is not there, so there is nothing to propose a change to: leave --create-pr out")
            expected = compute(str(folder.resolve()), None, bool(made.code), Path(scratch) / "here")  # before there is anything on the Hub
            api.create_repo(made.repo, private=True, exist_ok=True)
        info = api.model_info(made.repo)
        before, url = str(info.sha), f"{api.endpoint}/{made.repo}"
        there = _tree(api, made.repo, before)
        wanted = {name: _digests(body) for name, body in made.files.items()}
        changed = {name for name, digests in wanted.items() if there.get(name) not in digests}
        removed = tuple(name for name in there if name not in wanted and not name.startswith(OTHERS))
        _sweep(api, made.repo, tag, None if changed or removed else before)
        done = Published(url, before, False)
        if changed or removed:
            expected = expected or compute(str(folder.resolve()), None, bool(made.code), Path(scratch) / "here")
            digest = hashlib.sha256(json.dumps(sorted(wanted.items())).encode()).hexdigest()[:12]
            change = _Change(api, made, wanted, before, changed, removed, f"Checkpoint {digest}, by videosafety publish model")
            if create_pr:
                return change.propose(expected, Path(scratch))
            with change.side_branch(f"{SIDE_BRANCH}{digest}") as branch:
                staged = change.commit(branch, [*change.adds(changed), *change.deletes()]).oid
                compared = change.compare(staged, expected, Path(scratch))
                done = Published(url, change.promote(staged), True, compared, removed)
        if tag:
            api.create_tag(made.repo, tag=tag, revision=done.commit, exist_ok=True)
        if public and info.private:
            api.update_repo_settings(made.repo, visibility="public")
    return done


def _room() -> Path:
    """A folder with room for a second copy of the checkpoint."""
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sweep(api: HfApi, repo: str, tag: str | None, commit: str | None) -> None:
    """Remove the side branches of earlier runs that were cut.

    Raises:
        PublishError: the tag is at another commit; `commit` is None where there will be a new one.
    """
    refs = api.list_repo_refs(repo)
    taken = {ref.name: ref.target_commit for ref in refs.tags}.get(tag or "")
    if taken and taken != commit:
        raise PublishError(f"{repo} has a tag {tag} already, at commit {taken[:12]}: choose another name, tags are not moved")
    for ref in refs.branches:
        if ref.name.startswith(SIDE_BRANCH):
            api.delete_branch(repo, branch=ref.name)


def _tree(api: HfApi, repo: str, revision: str) -> dict[str, str]:
    """Path -> SHA-256 of an LFS file, git's SHA-1 of any other."""
    items = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {item.path: item.lfs.sha256 if item.lfs else item.blob_id for item in items if isinstance(item, RepoFile)}


@dataclass(frozen=True, slots=True)
class _Change:
    """What is to be done to a repository whose main is at `before`. wanted: the digests of all files that it is to hold."""

    api: HfApi
    made: Plan
    wanted: Mapping[str, tuple[str, str]]
    before: str
    changed: set[str]
    removed: Sequence[str]
    message: str

    def adds(self, names: set[str]) -> list[Operation]:
        return [CommitOperationAdd(path_in_repo=name, path_or_fileobj=self.made.files[name]) for name in sorted(names)]

    def deletes(self) -> list[Operation]:
        return [CommitOperationDelete(path_in_repo=name) for name in self.removed]

    def commit(self, branch: str, operations: Sequence[Operation], create_pr: bool = False) -> CommitInfo:
        return self.api.create_commit(
            self.made.repo, operations, commit_message=self.message, revision=branch, parent_commit=self.before, create_pr=create_pr
        )

    @contextmanager
    def side_branch(self, name: str) -> Iterator[str]:
        """A new branch at main, gone at the end, however that comes."""
        self.api.create_branch(self.made.repo, branch=name, revision=self.before)
        try:
            yield name
        finally:
            with suppress(HTTPError, OSError):  # the next run removes it then; if there is a failure to be told, it is another one
                self.api.delete_branch(self.made.repo, branch=name)

    def compare(self, revision: str, expected: Path, scratch: Path) -> tuple[str, ...]:
        """Raises PublishError where the commit does not hold what the plan says, or computes something else than the local folder."""
        there = _tree(self.api, self.made.repo, revision)
        wrong = sorted(name for name, digests in self.wanted.items() if there.get(name) not in digests)
        stale = sorted(name for name in there if name not in self.made.files and not name.startswith(OTHERS))
        if wrong or stale:
            raise PublishError(
                f"{self.made.repo}: the Hub does not hold what was sent, {(wrong + stale)[0]} for one (a .gitignore in the repository may "
                "leave files out); main is untouched. Run this again."
            )
        return same(expected, compute(self.made.repo, revision, bool(self.made.code), scratch / "there"))

    def promote(self, staged: str) -> str:
        """Put the compared files on main: large ones by reference, so that nothing is sent twice. Returns main's commit."""
        large = {item for item, digest in _tree(self.api, self.made.repo, staged).items() if item in self.changed and len(digest) == 64}
        copies: list[Operation] = [CommitOperationCopy(name, name, src_revision=staged) for name in sorted(large)]
        done = self.commit("main", [*self.adds(self.changed - large), *copies, *self.deletes()])
        if _tree(self.api, self.made.repo, done.oid) != _tree(self.api, self.made.repo, staged):
            raise PublishError(
                f"{self.made.repo}: main, at {done.oid}, is not what was loaded back from {staged}: go back to {self.before}"
            )
        return done.oid

    def propose(self, expected: Path, scratch: Path) -> Published:
        """The change as a pull request; one that is open with the same title, which names the content, is not opened again."""
        repo, url = self.made.repo, f"{self.api.endpoint}/{self.made.repo}"
        for found in self.api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open"):
            if found.title == self.message:
                return Published(url, self.before, False, pull_request=found.url)
        done = self.commit("main", [*self.adds(self.changed), *self.deletes()], create_pr=True)
        try:
            compared = self.compare(done.oid, expected, scratch)
        except PublishError as error:
            raise PublishError(f"{error} The pull request {done.pr_url} is open: close it.") from error
        return Published(url, done.oid, True, compared, tuple(self.removed), done.pr_url)


# --- loading back -----------------------------------------------------------------------------------------------------------------------


def compute(source: str, revision: str | None, code: bool, scratch: Path) -> Path:
    """The file with what a process of its own computes with a checkpoint: without this package, and without caches.

    Args:
        source: a folder, or a repository with the `revision` of its weights and code. code: whether code beside the weights is run.

    Raises:
        PublishError: it cannot be loaded, or not run.
    """
    scratch.mkdir(parents=True)
    out = scratch / "computed.safetensors"
    asked = {"source": source, "revision": revision, "code": code, "out": str(out)}
    caches = {"HF_HUB_CACHE": "hub", "HF_MODULES_CACHE": "modules", "HF_XET_CACHE": "xet"}
    env = dict(os.environ) | {name: str(scratch / folder) for name, folder in caches.items()}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"} | ({} if revision else {"HF_HUB_OFFLINE": "1"})
    done = subprocess.run(
        [sys.executable, "-I", str(LOAD_BACK)], input=json.dumps(asked), env=env, cwd=scratch, capture_output=True, text=True
    )
    if done.returncode != 0 or not out.is_file():
        last = redact((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        place = f"{source} at {revision}" if revision else source
        mend = "main is untouched; run this again" if revision else "nothing was sent; mend the folder first"
        raise PublishError(f"{place} cannot be loaded by transformers alone: {last}; {mend}")
    return out


def same(here: Path, there: Path) -> tuple[str, ...]:
    """The names of what was computed, equal bit for bit.

    Raises:
        PublishError: something differs; main is untouched then.
    """
    from safetensors.torch import load_file

    mine, theirs = load_file(here), load_file(there)
    for name, tensor in mine.items():
        other = theirs.get(name)
        if other is None or other.shape != tensor.shape or other.numpy().tobytes() != tensor.numpy().tobytes():
            far = "" if other is None or other.shape != tensor.shape else f", by up to {(other - tensor).abs().nan_to_num().max():.3g}"
            raise PublishError(f"what was uploaded computes other {name} than the folder{far}; main is untouched: run this again")
    return tuple(mine)


def _digests(body: Path | bytes) -> tuple[str, str]:
    """(SHA-256, git's SHA-1 of the blob): one of them is how the Hub names a file's content."""
    size = len(body) if isinstance(body, bytes) else body.stat().st_size
    plain, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for block in _read(body):
        plain.update(block)
        git.update(block)
    return plain.hexdigest(), git.hexdigest()


def _read(body: Path | bytes) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    with open(body, "rb") as file:
        while block := file.read(1 << 22):
            yield block
