"""VideoSafetyEval, the authors' set (arXiv 2505.16643), for those who have it: it is not released, so nothing of it ships here."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, local_copy
from videosafety.lmms_eval_tasks.vsb.docs import rows_of_folder

HELP = (
    "videosafety: vse_* needs the authors' VideoSafetyEval, which is not released. If you have it, lay it out as a folder with rows.jsonl "
    "(id, cell: hh | sh | safeq, query, video, and where known category, language) and the videos, and name it: "
    "VIDEOSAFETY_DATA_DIR/vse, or VIDEOSAFETY_VSE=<folder or Hub dataset id@revision>. For the open set use vsb_*."
)


def folder() -> Path:
    """Where the user's copy lies. Raises MissingData, with what to do, where there is none."""
    named = os.environ.get("VIDEOSAFETY_VSE")
    if not named:
        found = local_copy("vse")
        if found is None:
            raise MissingData(HELP)
        return found
    if Path(named).expanduser().is_dir():
        return Path(named).expanduser()
    repo, _, revision = named.partition("@")
    if not revision:
        raise MissingData(f"videosafety: VIDEOSAFETY_VSE={named} is no folder here; as a Hub dataset pin its revision: {named}@<commit>")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = snapshot_download(repo, repo_type="dataset", revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise MissingData(f"videosafety: could not fetch VIDEOSAFETY_VSE={named} from the Hub: {str(error).splitlines()[0]}") from error
    return Path(path)


def _cell(name: str) -> Dataset:
    run.start()
    rows = rows_of_folder("vse", folder(), name, video=True)
    repo, _, revision = os.environ.get("VIDEOSAFETY_VSE", "").partition("@")
    if revision:
        run.note("data", {"vse": {"name": "VideoSafetyEval", "repo": repo, "revision": revision}})
    return run.counted(f"vse_{name}", rows)


def hh(_: Dataset) -> Dataset:
    return _cell("hh")


def sh(_: Dataset) -> Dataset:
    return _cell("sh")


def safeq(_: Dataset) -> Dataset:
    return _cell("safeq")
