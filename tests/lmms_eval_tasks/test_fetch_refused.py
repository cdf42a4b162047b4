"""Every way a set cannot be fetched is one line with the exact next step, and nothing of a token or of half a set."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from data_servers import Site
from toy_set import FILES, NOISE, WANTED, contents, kinds, known, refusal, root, site, toy, zipped  # noqa: F401

from videosafety.lmms_eval_tasks import catalog, data, download, fetch
from videosafety.lmms_eval_tasks.catalog import DataSet
from videosafety.lmms_eval_tasks.fetch import MARKER


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        pytest.param("github", 404, "no longer has this repository or commit", id="github 404"),
        pytest.param("github", 403, "GitHub refused access (HTTP 403)", id="github 403"),
        pytest.param("github", 500, "run `videosafety data get toy` again", id="github 500"),
        pytest.param("hub", 404, "is not there, or not open to this machine's login", id="hub 404"),
        pytest.param("hub", 401, "log in with `hf auth login`", id="hub 401"),
        pytest.param("hub", 403, "hf auth login", id="hub 403"),
        pytest.param("hub", 418, "the Hub answered HTTP 418", id="hub 418"),
    ],
)
def test_refused(site: Site, root: Path, known: Callable[..., DataSet], kind: str, status: int, says: str) -> None:
    known(kind)
    site.refuse = status
    assert says in refusal(lambda: fetch.get("toy"))
    assert fetch.status("toy").state == "absent"


def test_a_gate_names_page_login_and_command(
    site: Site, root: Path, known: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    known("hub", gate="accept the terms on its page")
    site.gated = True
    for text in (refusal(lambda: fetch.get("toy")), refusal(lambda: fetch.fetched("toy")), fetch.status("toy").advice):
        for part in ("https://huggingface.co/datasets/owner/name", "accept the terms", "`hf auth login`", "`videosafety data get toy`"):
            assert part in text
        assert "hf_secret" not in text
    assert "accept" in refusal(lambda: data.find("toy"))
    site.gated = False  # passed
    assert contents(fetch.get("toy")) == WANTED


@kinds
def test_a_gated_set_is_not_fetched_by_a_task(site: Site, root: Path, known: Callable[..., DataSet], kind: str) -> None:
    known(kind, gate="ask for access")
    refusal(lambda: fetch.fetched("toy"))
    assert site.asked == []


@kinds
def test_offline_says_what_to_run_elsewhere(
    site: Site, root: Path, known: Callable[..., DataSet], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(kind)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = refusal(lambda: data.find("toy"))
    assert "HF_HUB_OFFLINE is set" in text
    assert "`VIDEOSAFETY_DATA_DIR=DIR videosafety data get toy`" in text
    assert site.asked == []


@kinds
def test_no_network_says_what_to_run_elsewhere(
    site: Site, root: Path, known: Callable[..., DataSet], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(kind)
    for name in ("GITHUB_API", "GITHUB_TARBALLS", "HUB"):
        monkeypatch.setattr(download, name, "http://127.0.0.1:9")
    text = refusal(lambda: data.find("toy"))
    assert "cannot be reached from here" in text
    assert "on a machine with network" in text


def test_what_cannot_be_fetched_says_so(root: Path, known: Callable[..., DataSet]) -> None:
    known("none", gate="the authors have not released it")
    for call in (fetch.get, fetch.fetched):
        assert "lay your own copy out as VIDEOSAFETY_DATA_DIR/toy (the authors have not released it)" in refusal(
            lambda call=call: call("toy")
        )
    assert "known are toy" in refusal(lambda: fetch.get("other"))
    known("own", layout=())
    assert fetch.status("toy").state == "ships"


def test_a_copy_of_the_users_is_used_as_it_is(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    known()
    (root / "toy" / "images").mkdir(parents=True)
    (root / "toy" / "rows.json").write_text("mine")
    here = fetch.status("toy")
    assert (here.state, here.missing) == ("partial", ("images/*.png",))
    assert "lacks images/*.png" in refusal(lambda: fetch.get("toy"))
    (root / "toy" / "images" / "1.png").write_bytes(b"mine")
    assert fetch.status("toy").state == "local"
    assert fetch.get("toy") == root / "toy"
    assert site.asked == []
    (root / "toy" / MARKER).write_text("{not json")
    assert fetch.status("toy").state == "local"  # a damaged marker vouches for nothing


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").is_dir(), reason="needs a place where root cannot write")
def test_a_disk_that_cannot_be_written_is_told(site: Site, known: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    known()
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", "/proc/self/nowhere")
    assert "cannot be written" in refusal(lambda: fetch.get("toy"))


def test_no_room_is_told_before_anything_is_fetched(
    site: Site, root: Path, known: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    known("hub")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    assert "make room" in refusal(lambda: fetch.get("toy"))
    assert not any("/resolve/" in path for _, path, _ in site.asked)


# --- the catalog itself -----------------------------------------------------------------------------------------------------------


def test_every_set_of_ours_is_known_and_its_advice_is_one_line(root: Path) -> None:
    for name, found in catalog.catalog().items():
        here = fetch.status(name)
        assert here.state == ("ships" if found.source.kind == "own" else "absent")
        assert "\n" not in here.advice


@pytest.mark.parametrize("args", [["data", "get", "vse"], ["data", "status", "vse"]])
def test_the_command_ends_with_status_one(tmp_path: Path, args: list[str]) -> None:
    env = os.environ | {"VIDEOSAFETY_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "videosafety", *args], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "not released" in " ".join((done.stdout + done.stderr).split())
