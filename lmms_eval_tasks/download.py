"""Bytes from a Hugging Face dataset or a GitHub commit: resumed, capped, and every way it fails in one sentence."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from videosafety.lmms_eval_tasks import archive
from videosafety.lmms_eval_tasks.catalog import DataSet

HUB: str | None = None  # None: huggingface_hub's own endpoint (HF_ENDPOINT); tests name a local one
GITHUB_API = "https://api.github.com"
GITHUB_TARBALLS = "https://codeload.github.com"
MAX_BYTES = 128 * 2**30  # of one set, where its size is not known
SLACK = 4.0  # a download may be so many times as large as dataset.yml says
TIMEOUT = 60  # seconds without a byte
TRIES = 5  # connections of one download, each going on where the last was cut
CHUNK = 1 << 20
# What huggingface_hub's client (httpx or httpx2, so by name) raises of a connection that did stand. Anything else: there was none.
CUTS = ("ReadError", "ReadTimeout", "RemoteProtocolError", "WriteError", "CloseError")


class FetchError(RuntimeError):
    """Why a set could not be fetched; it holds no token and no address with one.

    gated: access must be asked for. elsewhere: there is no network here. again: the same command may well work later.
    """

    def __init__(self, why: str, *, gated: bool = False, elsewhere: bool = False, again: bool = False) -> None:
        super().__init__(why)
        self.gated, self.elsewhere, self.again = gated, elsewhere, again


def offline() -> bool:
    """Has the user asked for no network, in the words of huggingface_hub?"""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cap_of(found: DataSet) -> int:
    """The most bytes that a set's download may have."""
    return MAX_BYTES if found.size_mb is None else int((SLACK * found.size_mb + 64) * 2**20)


def check_room(need: int, found: DataSet, place: Path) -> None:
    """Raises FetchError where a download is larger than it may be, or than the disk has room for with its unpacked copy."""
    if need > cap_of(found):
        raise FetchError(f"its source has {need / 2**20:,.0f} MiB, far more than known; nothing was fetched")
    wanted = need * (2 if found.unpack or found.source.kind == "github" else 1)
    if (free := shutil.disk_usage(place).free) < wanted:
        raise FetchError(
            f"it needs about {wanted / 2**30:.1f} GiB and {place} has {free / 2**30:.1f}; make room or set VIDEOSAFETY_DATA_DIR"
        )


# --- Hugging Face -----------------------------------------------------------------------------------------------------------------


def from_hub(found: DataSet, part: Path) -> tuple[Path, str]:
    """Download a dataset's files into `part`; returns the folder and the full commit. huggingface_hub resumes by itself.

    Raises:
        FetchError: gated, gone, not reachable, too large, or no file of the kind that is wanted.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError  # of the client that huggingface_hub uses, whichever it is
    from huggingface_hub.utils import filter_repo_objects

    source, tree = found.source, part / "hub"
    assert source.id is not None  # the catalog checks it
    try:
        api = HfApi(endpoint=HUB)
        commit = _kept(part, source.revision) or _hub_commit(api, source.id, source.revision)
        _keep(part, commit)
        info = api.dataset_info(source.id, revision=commit, files_metadata=True)
        files = list(filter_repo_objects(info.siblings or [], allow_patterns=list(source.files), key=lambda file: file.rfilename))
        if not files:
            raise FetchError(f"{source.page} has no file like {', '.join(source.files)} at {commit[:12]}")
        check_room(sum(file.size or 0 for file in files), found, part)
        snapshot_download(source.id, repo_type="dataset", revision=commit, allow_patterns=list(source.files), local_dir=tree, endpoint=HUB)
    except (HTTPError, OSError) as error:
        raise _hub_failure(error, found) from error
    for file in files:  # where the network goes away, snapshot_download may return what it has
        there = tree / file.rfilename
        if not there.is_file() or (file.size is not None and there.stat().st_size != file.size):
            raise FetchError(f"{file.rfilename} did not come whole", again=True)
    return tree, commit


def _hub_failure(error: Exception, found: DataSet) -> FetchError:
    """One sentence for whatever huggingface_hub raised. Raises OSErrors of the disk as they are."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, hub.HfHubHTTPError):
        error = error.__cause__  # the Hub did answer
    page = found.source.page
    if isinstance(error, hub.GatedRepoError):
        return FetchError("its authors ask for their terms to be accepted, and the login of this machine has not", gated=True)
    if isinstance(error, hub.RepositoryNotFoundError):  # the Hub says so of private ones too
        return FetchError(f"{page} is not there, or not open to this machine's login", gated=found.gate is not None)
    if isinstance(error, hub.RevisionNotFoundError):
        return FetchError(f"{page} no longer has the commit {found.source.revision}")
    if isinstance(error, hub.HfHubHTTPError):
        code = error.response.status_code
        if code == 404:
            return FetchError(f"{page} is not there, or not as it was")
        return FetchError(f"the Hub answered HTTP {code}", gated=code in (401, 403), again=True)
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, hub.LocalEntryNotFoundError):
        raise error  # of the disk, not of the network
    if type(error).__name__ in CUTS:
        return FetchError(f"the connection was cut ({type(error).__name__})", again=True)
    return FetchError(f"the Hub cannot be reached from here ({type(error).__name__})", elsewhere=True)


def _hub_commit(api, repo: str, revision: str | None) -> str:  # type: ignore[no-untyped-def]
    """The full commit of `revision`, or of the head where it is None. The Hub's file addresses take no short ones."""
    if revision is not None and len(revision) == 40:
        return revision
    if revision is None:
        return str(api.dataset_info(repo).sha)
    full = {c.commit_id for c in api.list_repo_commits(repo, repo_type="dataset") if c.commit_id.startswith(revision)}
    if len(full) != 1:
        raise FetchError(f"{repo} has {len(full) or 'no'} commits that start with {revision}")
    return full.pop()


def _keep(part: Path, commit: str) -> None:
    """Remember which commit is being fetched, so that a fetch that is cut goes on with the same one."""
    (part / "commit").write_text(commit, encoding="ascii")


def _kept(part: Path, pinned: str | None) -> str | None:
    """The commit of a fetch that was cut, unless another one is pinned by now."""
    try:
        commit = (part / "commit").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    return commit if commit.startswith(pinned or "") else None


# --- GitHub -----------------------------------------------------------------------------------------------------------------------


def from_github(found: DataSet, part: Path) -> tuple[Path, str]:
    """Download a commit's tarball into `part` and unpack the files that are wanted; returns the folder and the full commit.

    Raises:
        FetchError: gone, not reachable, too large, damaged, or the tarball of another commit.
    """
    source, tree = found.source, part / "github"
    wanted = _kept(part, source.revision) or source.revision or _head(f"{GITHUB_API}/repos/{source.id}/commits/HEAD")
    _keep(part, wanted)
    ball = part / f"{wanted}.tar.gz"
    if not ball.is_file():
        resume(f"{GITHUB_TARBALLS}/{source.id}/tar.gz/{wanted}", ball, found)
    try:
        commit = _commit_of(ball)
        if commit is not None and not commit.startswith(wanted):
            raise FetchError(f"GitHub sent the commit {commit[:12]} for {wanted[:12]}")
        shutil.rmtree(tree, ignore_errors=True)
        check_room(ball.stat().st_size, found, part)
        count = archive.unpack(ball, tree, want=lambda name: _wanted(name, source.files))
    except archive.ArchiveError as error:
        ball.unlink()
        raise FetchError(str(error), again=True) from error
    if not count:
        raise FetchError(f"{source.page} has no file like {', '.join(source.files)} at {wanted[:12]}")
    return tree, commit or wanted


def _wanted(name: str, files: tuple[str, ...]) -> str | None:
    """A member's path in the repository, without the tarball's own top folder; None where no glob asks for it."""
    path = name.partition("/")[2]
    return path if path and any(fnmatch(path, pattern) for pattern in files) else None


def _commit_of(ball: Path) -> str | None:
    """The full commit that git wrote into the tarball's header (`git archive` does, and GitHub's tarballs are made so)."""
    comment = archive.comment(ball)
    return comment if re.fullmatch(r"[0-9a-f]{40}", comment) else None


def _head(address: str) -> str:
    """The commit at the head of the default branch."""
    request = urllib.request.Request(address, headers={"Accept": "application/vnd.github.sha", "User-Agent": "videosafety"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            text = answer.read(256).decode("ascii", "replace").strip()
    except urllib.error.HTTPError as error:
        raise _refused(error) from error
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"GitHub cannot be reached from here ({type(error).__name__})", elsewhere=True) from error
    if not re.fullmatch(r"[0-9a-f]{40}", text):
        raise FetchError("GitHub did not say which commit is the newest", again=True)
    return text


def _refused(error: urllib.error.HTTPError) -> FetchError:
    if error.code == 404:
        return FetchError("GitHub no longer has this repository or commit (HTTP 404)")
    if error.code in (401, 403):
        return FetchError(
            f"GitHub refused access (HTTP {error.code}): the repository is closed, or too much was asked from here", again=True
        )
    return FetchError(f"GitHub answered HTTP {error.code}", again=True)


def resume(address: str, target: Path, found: DataSet) -> None:
    """Download `address` into `target` through <target>.part, going on where an earlier try was cut if the server can.

    The server's ETag is kept beside the part and sent as If-Range: bytes of two versions are never joined.

    Raises:
        FetchError: refused, gone, larger than it may be, or cut TRIES times in a row without a byte more.
        OSError: the disk.
    """
    part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".etag")
    fruitless = 0
    while fruitless < TRIES:
        before = part.stat().st_size if part.exists() else 0
        if _once(address, part, tag, found):
            part.rename(target)
            tag.unlink(missing_ok=True)
            return
        fruitless = 0 if part.exists() and part.stat().st_size > before else fruitless + 1
    raise FetchError("the connection was cut again and again", again=True)


def _once(address: str, part: Path, tag: Path, found: DataSet) -> bool:
    """One connection. True where the file is whole, False where it was cut."""
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"User-Agent": "videosafety", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text(encoding="ascii")}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT) as answer:  # noqa: S310
            start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if answer.status != 206 or start is None or int(start[1]) != have:
                have = 0  # the whole file comes
                part.unlink(missing_ok=True)
            etag = answer.headers.get("ETag", "")
            if etag and not etag.startswith("W/") and etag.isascii():
                tag.write_text(etag, encoding="ascii")
            else:
                tag.unlink(missing_ok=True)  # no way to know that a later rest belongs to this start
            rest = answer.headers.get("Content-Length")
            total = have + int(rest) if rest is not None and rest.isdecimal() else None
            check_room(total or 0, found, part.parent)
            with open(part, "ab") as sink, tqdm(desc=found.name, initial=have, total=total, unit="B", unit_scale=True) as bar:
                while chunk := answer.read(CHUNK):
                    sink.write(chunk)
                    bar.update(len(chunk))
                    have += len(chunk)
                    if have > cap_of(found):
                        raise FetchError(f"its source sends more than {cap_of(found) / 2**20:,.0f} MiB, far more than known")
            return total is None or have == total
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is as long as the file, or longer: start again
            part.unlink(missing_ok=True)
            return False
        raise _refused(error) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        return False
    except urllib.error.URLError as error:
        raise FetchError(f"GitHub cannot be reached from here ({error.reason})", elsewhere=True) from error
