"""One commit to the Hub for everything but checkpoints: private unless said, gated before anything is up, nothing where nothing changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, ModelCard, RepoCard, SpaceCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from videosafety.lmms_eval_tasks.judge.redact import one_line

CARDS: dict[str, type[RepoCard]] = {"model": ModelCard, "dataset": DatasetCard, "space": SpaceCard}
GATES = ("auto", "manual")  # the Hub's two ways to answer a request for access


class PublishError(ValueError):
    """Why nothing was published, in one line that names the mend; it holds no token."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What is to stand in a repository: path -> bytes, or the local file that holds them.

    kind: model, dataset or space. gate: auto or manual where access must be asked for. public: shown to everyone once all is up; a
    repository that is there keeps its visibility otherwise. owned: folders in which every other file is removed. create_pr: propose the
    change instead of making it.
    """

    repo: str
    kind: str
    files: Mapping[str, bytes | Path]
    message: str
    gate: str | None = None
    public: bool = False
    owned: tuple[str, ...] = ()
    create_pr: bool = False


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where it is now. `changed` is False where the repository held the same already; `pull_request` is the address of a proposal."""

    url: str
    commit: str
    changed: bool
    pull_request: str | None = None


def sizes(upload: Upload) -> list[tuple[str, int]]:
    """(path, bytes) of everything that would go up."""
    return [(name, len(body) if isinstance(body, bytes) else body.stat().st_size) for name, body in sorted(upload.files.items())]


def check_repo(repo: str) -> None:
    """Raises PublishError unless `repo` reads ORG/NAME."""
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(f"{repo!r} is no repository: give ORG/NAME ({one_line(str(error))})") from error
    if repo.count("/") != 1:
        raise PublishError(f"{repo!r} is no repository: give ORG/NAME")


def check_card(text: str, kind: str, online: bool) -> None:
    """Raises PublishError where a README's metadata is not what huggingface_hub reads, or, `online`, what the Hub takes."""
    try:
        card = CARDS[kind](text)
        if online:
            card.validate(repo_type=kind)
    except ValueError as error:
        raise PublishError(f"README.md: the Hub refuses its metadata: {one_line(str(error))}") from error


def push(upload: Upload, api: HfApi | None = None) -> Pushed:
    """Make the repository hold what `upload` says, in one commit: others see all of it or nothing.

    Cut in the middle, it is finished by the same call: files that are up are not sent again.

    Raises:
        PublishError: no access, no network, metadata that the Hub refuses, or a gate that cannot be set and confirmed.
    """
    api = api or HfApi(library_name="videosafety")
    check_repo(upload.repo)
    with said(upload.repo):
        card = upload.files.get("README.md")
        if card is not None:
            check_card((card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8"), upload.kind, online=True)
        if not upload.create_pr and upload.kind != "model":
            sdk = "static" if upload.kind == "space" else None
            # private even where it is to be public: it is shown when all of it is up
            api.create_repo(upload.repo, repo_type=upload.kind, private=True, exist_ok=True, space_sdk=sdk)
        if upload.gate:
            set_gate(api, upload.repo, upload.kind, upload.gate)
        info = api.repo_info(upload.repo, repo_type=upload.kind)
        before = str(info.sha)
        if upload.create_pr and (open_one := _same_proposal(api, upload)):
            return Pushed(_address(api, upload), before, False, open_one)
        operations = _operations(upload, api.list_repo_files(upload.repo, repo_type=upload.kind, revision=before))
        done = api.create_commit(
            upload.repo, operations, commit_message=upload.message, repo_type=upload.kind, parent_commit=before, create_pr=upload.create_pr
        )
        if upload.public and info.private:
            api.update_repo_settings(upload.repo, repo_type=upload.kind, visibility="public")
    return Pushed(_address(api, upload), done.oid, done.oid != before, done.pr_url)


def set_gate(api: HfApi, repo: str, kind: str, gate: str) -> None:
    """Have the Hub ask for access requests, and make sure that it does. A stricter gate that is there is left.

    Raises:
        PublishError: the Hub does not say afterwards that the repository is gated; nothing has been uploaded then.
    """
    if api.repo_info(repo, repo_type=kind).gated == "manual":
        return
    try:
        api.update_repo_settings(repo, repo_type=kind, gated=gate)  # type: ignore[arg-type]
        found = api.repo_info(repo, repo_type=kind).gated
    except (HTTPError, OSError) as error:
        raise PublishError(
            f"{repo}: access requests could not be turned on ({one_line(str(error))}); nothing was uploaded. "
            "Turn them on in the repository's settings, or use a token that may, and run this again."
        ) from error
    if found != gate:
        raise PublishError(
            f"{repo}: the Hub does not confirm that access must be asked for (it says gated={found!r}); nothing was uploaded. "
            "Turn access requests on in the repository's settings and run this again."
        )


def read_remote(repo: str, kind: str, path: str, revision: str | None = None) -> str | None:
    """The text of a file in a repository; None where the repository has none of that name.

    Raises:
        PublishError: no such repository or revision, no access, or no network.
    """
    from huggingface_hub import hf_hub_download

    with said(repo):
        try:
            return Path(hf_hub_download(repo, path, repo_type=kind, revision=revision)).read_text(encoding="utf-8")
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None


def _operations(upload: Upload, there: list[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    stale = [name for name in there if name not in upload.files and PurePosixPath(name).parts[0] in upload.owned]
    adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=body) for name, body in sorted(upload.files.items())]
    return [*adds, *(CommitOperationDelete(path_in_repo=name) for name in stale)]


def _same_proposal(api: HfApi, upload: Upload) -> str | None:
    """The address of an open pull request with this very title, which names the content."""
    open_ones = api.get_repo_discussions(upload.repo, repo_type=upload.kind, discussion_type="pull_request", discussion_status="open")
    return next((found.url for found in open_ones if found.title == upload.message), None)


def _address(api: HfApi, upload: Upload) -> str:
    prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[upload.kind]
    return f"{api.endpoint}/{prefix}{upload.repo}"


@contextmanager
def said(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub and its client raise into one PublishError with the next step."""
    try:
        yield
    except PublishError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PublishError(f"{repo}: not found, or not for this token; check the name and `hf auth login` ({_status(error)})") from error
    except HFValidationError as error:
        raise PublishError(f"{repo!r} is no repository: give ORG/NAME") from error
    except HfHubHTTPError as error:
        mend = {
            401: "log in with `hf auth login`",
            403: "use a token that may write there",
            412: "somebody else changed it meanwhile: run this again",
        }.get(_status(error), "run this again: what is up is not sent again")
        raise PublishError(f"{repo}: the Hub refused it ({one_line(str(error))}); {mend}") from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: what hf_xet raises of a connection
        raise PublishError(
            f"{repo}: the Hub was not reached ({one_line(str(error))}); run this again: what is up is not sent again"
        ) from error


def _status(error: HfHubHTTPError) -> int:
    return error.response.status_code if error.response is not None else 0
