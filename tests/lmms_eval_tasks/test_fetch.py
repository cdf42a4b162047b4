"""Fetching: whole and checked or not at all, and resumed after a cut."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
from data_servers import COMMIT, Site, tarball
from toy_set import FILES, NOISE, WANTED, contents, kinds, known, refusal, root, site, toy, zipped  # noqa: F401

from videosafety.lmms_eval_tasks import data, download, fetch
from videosafety.lmms_eval_tasks.catalog import DataSet
from videosafety.lmms_eval_tasks.fetch import MARKER

# --- whole and checked ------------------------------------------------------------------------------------------------------------


@kinds
def test_a_set_is_fetched_once_checked_and_marked(site: Site, root: Path, known: Callable[..., DataSet], kind: str) -> None:
    known(kind, sha256={"images/1.png": hashlib.sha256(NOISE).hexdigest()})
    assert fetch.status("toy").state == "absent"
    folder = fetch.get("toy")
    assert folder == root / "toy"
    assert contents(folder) == WANTED
    marker = json.loads((folder / MARKER).read_text())
    assert marker["revision"] == COMMIT  # in full, whatever was pinned
    assert marker["sha256"] == {name: hashlib.sha256(content).hexdigest() for name, content in WANTED.items()}
    assert (marker["files"], marker["bytes"]) == (2, sum(map(len, WANTED.values())))
    assert (fetch.status("toy").state, fetch.status("toy").revision) == ("ready", COMMIT)
    assert sorted(p.name for p in root.iterdir() if not p.name.endswith(".lock")) == ["toy"]
    asked = len(site.asked)
    assert fetch.get("toy") == fetch.fetched("toy") == data.find("toy") == folder
    assert len(site.asked) == asked, "what is here is not asked for again"


@kinds
def test_without_a_pinned_commit_the_head_is_taken_and_recorded(site: Site, root: Path, known: Callable[..., DataSet], kind: str) -> None:
    known(kind, source={"revision": None})
    assert json.loads((fetch.get("toy") / MARKER).read_text())["revision"] == COMMIT


def test_a_short_commit_of_the_hub_is_looked_up(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    known("hub", source={"revision": COMMIT[:8]})
    assert fetch.status(fetch.get("toy").name).revision == COMMIT
    known("hub", source={"revision": "fedcba9"})
    (root / "toy").rename(root / "other")
    assert "no commits that start with fedcba9" in refusal(lambda: fetch.get("toy"))


def test_tasks_fetch_an_open_set_by_themselves(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    known()
    assert contents(data.find("toy")) == WANTED


def test_without_the_variable_it_goes_into_the_cache(
    site: Site, tmp_path: Path, known: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    known()
    assert data.find("toy") == tmp_path / "data" / "toy"


@kinds
def test_archives_are_unpacked_and_not_kept(site: Site, root: Path, known: Callable[..., DataSet], kind: str) -> None:
    inner = zipped(x=b"y")
    files = {
        "rows.json": b"[]",
        "pictures.zip": zipped(**{"images__1.png": NOISE, "images__inner.zip": inner}),
        "more.zip": zipped(**{"a.txt": b"a"}),
    }
    site.files, site.balls = files, {COMMIT: tarball(files)}
    known(kind, source={"files": ("*",), "folder": ""}, unpack={"pictures.zip": ".", "more.zip": "more"})
    assert contents(fetch.get("toy")) == {"rows.json": b"[]", "images/1.png": NOISE, "images/inner.zip": inner, "more/a.txt": b"a"}


@kinds
def test_a_hostile_archive_ends_it_and_leaves_no_folder(site: Site, root: Path, known: Callable[..., DataSet], kind: str) -> None:
    files = {"rows.json": b"[]", "images.zip": zipped(**{"..__..__evil.png": b"x"})}
    site.files, site.balls = files, {COMMIT: tarball(files)}
    known(kind, source={"files": ("*",), "folder": ""}, unpack={"images.zip": "."})
    assert "no path inside" in refusal(lambda: fetch.get("toy"))
    assert fetch.status("toy").state == "absent"
    assert not list(root.parent.rglob("evil*"))


def test_a_link_among_the_wanted_files_ends_it(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    site.balls = {COMMIT: tarball(FILES, links={"data/images/2.png": "/etc/passwd"})}
    known()
    assert "link or a device" in refusal(lambda: fetch.get("toy"))
    site.balls = {COMMIT: tarball(FILES, links={"docs": "/etc"})}  # not wanted: no harm
    assert contents(fetch.get("toy")) == WANTED


# --- wrong content ----------------------------------------------------------------------------------------------------------------


@kinds
def test_a_wrong_hash_is_told_and_never_becomes_data(site: Site, root: Path, known: Callable[..., DataSet], kind: str) -> None:
    known(kind, sha256={"rows.json": "0" * 64})
    assert "rows.json has the hash" in refusal(lambda: fetch.get("toy"))
    assert fetch.status("toy").state == "absent"


@kinds
def test_a_layout_that_does_not_match_is_told_and_not_ready(site: Site, root: Path, known: Callable[..., DataSet], kind: str) -> None:
    known(kind, layout=("rows.json", "videos/*.mp4"), note="the videos come by a form")
    text = refusal(lambda: fetch.get("toy"))
    assert "lacks videos/*.mp4: the videos come by a form" in text
    here = fetch.status("toy")
    assert (here.state, here.missing, here.usable) == ("partial", ("videos/*.mp4",), False)
    assert "lacks videos/*.mp4" in refusal(lambda: fetch.get("toy"))  # what is there is not overwritten
    (root / "toy" / "videos").mkdir()
    (root / "toy" / "videos" / "1.mp4").write_bytes(b"by hand")
    assert fetch.status("toy").state == "local"
    assert fetch.get("toy") == root / "toy"


def test_a_tarball_of_another_commit_is_refused(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    site.balls = {COMMIT: tarball(FILES, commit="f" * 40)}
    known()
    assert "sent the commit ffffffffffff" in refusal(lambda: fetch.get("toy"))


@kinds
def test_files_that_are_not_in_the_source_are_told(site: Site, root: Path, known: Callable[..., DataSet], kind: str) -> None:
    known(kind, source={"files": ("nothing/*",)})
    assert "has no file like nothing/*" in refusal(lambda: fetch.get("toy"))
    known(kind, source={"folder": "elsewhere"})
    assert "no folder 'elsewhere'" in refusal(lambda: fetch.get("toy"))


@kinds
def test_more_than_is_known_is_not_fetched(
    site: Site, root: Path, known: Callable[..., DataSet], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(kind)
    monkeypatch.setattr(download, "cap_of", lambda found: 1000)
    assert "far more than known" in refusal(lambda: fetch.get("toy"))


def test_caps_follow_the_size_that_is_known() -> None:
    assert download.cap_of(toy(size_mb=100.0)) == 464 * 2**20
    assert download.cap_of(toy()) == download.MAX_BYTES


# --- cuts -------------------------------------------------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_stopped(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    known()
    site.cut = 100_000
    assert contents(fetch.get("toy")) == WANTED
    ranges = [asked for _, path, asked in site.asked if "tar.gz" in path]
    assert ranges == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_a_later_command_goes_on_with_the_same_commit(
    site: Site, root: Path, known: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    known(source={"revision": None})
    monkeypatch.setattr(download, "TRIES", 1)
    site.cut, site.ranges = 100, False
    assert "run `videosafety data get toy` again: it goes on" in refusal(lambda: fetch.get("toy"))
    site.cut, site.ranges = None, True
    part = root / ".toy.part" / f"{COMMIT}.tar.gz.part"
    part.write_bytes(site.balls[COMMIT][:1234])
    site.asked.clear()
    assert contents(fetch.get("toy")) == WANTED
    assert [(path.rpartition("/")[2], asked) for _, path, asked in site.asked] == [
        (COMMIT, "bytes=1234-")
    ]  # the head is not asked for again


@pytest.mark.parametrize("fault", ["ranges", "etag"])
def test_a_server_that_cannot_go_on_is_asked_from_the_start(site: Site, root: Path, known: Callable[..., DataSet], fault: str) -> None:
    known()
    setattr(site, fault, False)
    site.cut = 100_000
    assert "cut again and again" in refusal(lambda: fetch.get("toy"))
    site.cut = None
    assert contents(fetch.get("toy")) == WANTED


def test_parts_of_two_versions_are_never_joined(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    known()
    site.cut, site.ranges = 100_000, False
    refusal(lambda: fetch.get("toy"))
    assert (root / ".toy.part" / f"{COMMIT[:10]}.tar.gz.part").stat().st_size == 100_000
    site.balls[COMMIT] = tarball(FILES | {"data/images/1.png": NOISE[::-1]})
    site.cut, site.ranges = None, True
    assert contents(fetch.get("toy"))["images/1.png"] == NOISE[::-1]
    assert site.asked[-1][2] == "bytes=100000-"  # it asked for the rest, and the server said that it is of another file


def test_a_damaged_tarball_is_fetched_anew(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    known()
    whole = site.balls[COMMIT]
    site.balls[COMMIT] = whole[: len(whole) // 2]
    assert "run `videosafety data get toy` again" in refusal(lambda: fetch.get("toy"))
    site.balls[COMMIT] = whole
    assert contents(fetch.get("toy")) == WANTED


def test_a_cut_hub_download_goes_on(site: Site, root: Path, known: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub goes on by itself, in steps of its chunks; after five cuts it gives up, and the next command goes on."""
    known("hub")
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    site.cut = 200_000
    assert contents(fetch.get("toy")) == WANTED
    assert [asked for method, path, asked in site.asked if method == "GET" and path.endswith("1.png")][-1] == "bytes=200000-"


def test_a_fetch_that_was_killed_while_it_laid_out_is_taken_up(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    known()
    stale = root / ".toy.part" / "stage" / "images"
    stale.mkdir(parents=True)
    (stale / "half.png").write_bytes(b"half")
    assert contents(fetch.get("toy")) == WANTED


def test_two_processes_fetch_once(site: Site, root: Path, known: Callable[..., DataSet]) -> None:
    known()
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch.get("toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [root / "toy"] * 4
    assert sum("tar.gz" in path for _, path, _ in site.asked) == 1
