"""Builds that meet trouble: servers that fail, hostile sources, configs that cannot be; each is said and nothing is lost."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_server import model_server
from toy_clips import CLI, project, report, rows, write_clip

from videosafety.dataset_builder import build as building
from videosafety.dataset_builder.config import ConfigError, load

LANGUAGES = {"server": "writer", "back": "judge", "targets": ["zh", "de"]}


def built(file: Path, **settings: Any) -> building.Built:
    return building.build(load(file), quiet=True, **settings)


# --- servers that fail ----------------------------------------------------------------------------------------------------------------


def faulty(kind: str, status: int, body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda asked, _: (status, data) if asked == kind else None


def replied(text: str | None, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]}


@pytest.mark.parametrize(
    ("fault", "reason", "transient"),
    [
        (faulty("query", 401, {"error": {"message": "no"}}), "HTTP 401", True),
        (faulty("query", 200, b"\x00\xffgarbage"), "not a completion", True),
        (faulty("query", 200, replied("I will not.")), "not the JSON object", False),
        (faulty("query", 200, replied(None, "content_filter")), "refused", False),
        (faulty("query", 200, replied('{"query": "Step 1. Buy it. Step 2. Mix it, ok?"}')), "it teaches", False),
        (faulty("check", 200, replied('{"kind": "teaches", "text": "harmful"}')), "says that it teaches", False),
        (faulty("label", 200, replied("[[[[")), "no judge gave a verdict", False),
        (faulty("label", 401, {"error": {"message": "no"}}), "a judge's server failed: judge-", True),
    ],
)
def test_a_server_that_fails_is_a_reason_in_the_report_and_owed_where_it_may_pass(
    tmp_path: Path, fault: Any, reason: str, transient: bool
) -> None:
    with model_server() as model:
        file = project(tmp_path, model.url, clips=2)
        model.fault = fault
        with pytest.raises(building.BuildError, match="no row is left"):
            built(file)
        found = report(tmp_path / "out")
        assert found
        assert all(reason in entry["reason"] and entry.get("transient", False) is transient for entry in found)
        model.fault = None
        if transient:
            assert built(file).rows["test"] == 4, "what was owed is asked for again"
        else:
            with pytest.raises(building.BuildError):
                built(file)


def test_judges_that_differ_hold_the_clip_for_review(tmp_path: Path) -> None:
    with model_server() as model, model_server(opposite=True) as other:
        file = project(tmp_path, model.url, clips=4)
        body = yaml.safe_load(file.read_text())
        body["servers"]["other"]["url"] = other.url
        body["queries"]["templates"] = True
        for rule, kept in (("hold", 0), ("first", 8)):
            body["labels"]["on_disagreement"] = rule
            file.write_text(yaml.safe_dump(body))
            if kept:
                assert built(file).rows["test"] == kept
            else:
                with pytest.raises(building.BuildError):
                    built(file)
                assert Counter(entry["reason"] for entry in report(tmp_path / "out")) == {"judges disagree: held for review": 4}
            queue = [json.loads(line) for line in (tmp_path / "out" / "review" / "queue.jsonl").read_text().splitlines()]
            assert Counter((item["kind"], item["why"]) for item in queue)["clip", "disagreement"] == 4
        figures = json.loads((tmp_path / "out" / "stats.json").read_text())
        assert figures["agreement"]["n"] == 4
        assert figures["agreement"]["alpha"] < 0


# --- hostile sources ------------------------------------------------------------------------------------------------------------------


def test_hostile_sources_are_reported_case_by_case(tmp_path: Path) -> None:
    outside = write_clip(tmp_path / "outside.mp4", seed=9)
    folder = tmp_path / "work" / "folder"
    good = write_clip(folder / "good.mp4", seed=0)
    (folder / "copy.mp4").write_bytes(good.read_bytes())
    (folder / "link.mp4").symlink_to(outside)
    (folder / "text.mp4").write_text("no video")
    (folder / "notes.txt").write_text("no video")
    (folder / "bomb.mp4").write_bytes(b"\0" * 3_000_000)
    os.mkfifo(folder / "pipe.mp4")
    told = [
        {"file": "../outside.mp4"}, {"file": "/etc/passwd"}, {"file": "folder/gone.mp4"}, {"file": "a\x00b.mp4"}, {"file": "http://x/y.mp4"},
        {"file": 7}, {}, [], {"file": "folder/good.mp4", "visual_label": 2}, {"file": "folder/good.mp4", "category": "nothing of ours"},
        {"file": "folder/good.mp4", "harm_spans": [[3, 1]]}, {"file": "folder/../folder/good.mp4"}, {"file": "folder/good.mp4"},
    ]  # fmt: skip
    (tmp_path / "work" / "manifest.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in told) + "not json\n\xff\n", encoding="latin-1"
    )
    with tarfile.open(tmp_path / "work" / "shard.tar", "w") as shard:
        for name, data in (
            ("../../up.mp4", good.read_bytes()),
            ("b.mp4", write_clip(tmp_path / "b.mp4", seed=1).read_bytes()),
            ("b.json", b"["),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("c.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
    whole = (tmp_path / "work" / "shard.tar").read_bytes()
    (tmp_path / "work" / "torn.tar").write_bytes(whole[:1500])
    file = tmp_path / "work" / "build.yaml"
    sources = [{"name": "f", "folder": "folder"}, {"name": "m", "manifest": "manifest.jsonl"}, {"name": "s", "shards": "*.tar"}]
    file.write_text(
        yaml.safe_dump(
            {
                "name": "toy", "licence": "mit", "sources": sources, "limits": {"max_bytes": 2_000_000},
                "labels": {"judges": [{"server": "j", "frames": 1}]}, "queries": {"templates": True},
            }
            | {"servers": {"j": {"url": "http://127.0.0.1:9/v1", "model": "j", "family": "j"}}}
        )
    )  # fmt: skip
    with model_server() as model:
        file.write_text(file.read_text().replace("http://127.0.0.1:9/v1", model.url))
        found = built(file)
    assert found.clips["test"] == 1, "the good clip, and no copy of it"
    reasons = {(entry["id"], entry["reason"].split(":")[0][:60]) for entry in report(tmp_path / "work" / "out")}
    expected = {
        "f/link.mp4": "leads out of the folder", "f/text.mp4": "not a readable video", "f/notes.txt": "no kind of video",
        "f/bomb.mp4": "over the limit", "f/pipe.mp4": "no regular file",
        "m/manifest.jsonl, line 1": "outside", "m/manifest.jsonl, line 2": "outside",
        "m/manifest.jsonl, line 3": "no file", "m/manifest.jsonl, line 4": "no file", "m/manifest.jsonl, line 5": "outside",
        "m/manifest.jsonl, line 6": "file must be str", "m/manifest.jsonl, line 7": "no file", "m/manifest.jsonl, line 8": "JSON object",
        "m/manifest.jsonl, line 9": "visual_label", "m/manifest.jsonl, line 10": "category", "m/manifest.jsonl, line 11": "harm_spans",
        "m/folder/good.mp4": "named twice", "m/manifest.jsonl, line 14": "not JSON", "m/manifest.jsonl, line 15": "not UTF-8",
        "s/shard.tar!b.mp4": "its .json", "s/shard.tar!c.mp4": "link", "s/torn.tar": "damaged",
    }  # fmt: skip
    full = {entry["id"]: entry["reason"] for entry in report(tmp_path / "work" / "out")}
    for where, words in expected.items():
        assert words in full.get(where, "not in the report"), (where, full.get(where))
    assert not (tmp_path / "up.mp4").exists()
    assert len(reasons) >= len(expected)


def test_shards_and_csv_give_the_same_rows_as_a_folder(tmp_path: Path) -> None:
    with model_server() as model:
        plain = project(tmp_path / "plain", model.url, clips=2)
        body = yaml.safe_load(plain.read_text())
        built(plain)
        folder = tmp_path / "packed"
        folder.mkdir()
        (folder / "clips.csv").write_text("file,title,category,origin\nfirst.mp4,Clip 0,cyber,channel 0\n", encoding="utf-8")
        (folder / "first.mp4").write_bytes((tmp_path / "plain" / "videos" / "0.mp4").read_bytes())
        with tarfile.open(folder / "shard.tar", "w") as shard:
            shard.add(tmp_path / "plain" / "videos" / "1.mp4", "x/1.mp4")
            told = json.dumps({"title": "Clip 1 of HARM", "category": "weapons", "origin": "channel 1"}).encode()
            info = tarfile.TarInfo("x/1.json")
            info.size = len(told)
            shard.addfile(info, io.BytesIO(told))
        body["sources"] = [{"name": "c", "manifest": "clips.csv"}, {"name": "s", "shards": "*.tar"}]
        (folder / "build.yaml").write_text(yaml.safe_dump(body))
        built(folder / "build.yaml")
        first, second = rows(tmp_path / "plain" / "out"), rows(folder / "out")
    same = ("id", "query", "cell", "category", "visual_label", "duration")
    assert [{key: row[key] for key in same} for row in first] == [{key: row[key] for key in same} for row in second]


# --- the config, and the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"langauges": ["de"]}, "has no option 'langauges'"),
        ({"shots": {"fps": "many"}}, "shots.fps must be float"),
        ({"shots": {"fps": 0}}, "shots.fps must be above 0"),
        ({"sources": []}, "sources is empty"),
        ({"sources": [{"name": "a"}]}, "exactly one of folder, manifest and shards"),
        ({"splits": {"train": 1}}, "splits must give test"),
        ({"splits": {"test": 1, "dev": 1}}, "dev is no split"),
        ({"labels": {"judges": [{"server": "nobody"}]}}, "'nobody' is not among servers"),
        ({"labels": {"judges": []}}, "labels names nobody"),
        ({"labels": {"judges": [{"server": "judge"}, {"server": "judge"}]}}, "all of one family"),
        ({"labels": {"judges": [{"server": "writer"}]}}, "labels and queries are both by north"),
        ({"queries": {"server": "writer", "check": "writer"}}, "query check and queries are both by north"),
        ({"labels": {"judges": [{"server": "judge"}], "on_disagreement": "toss"}}, "hold, majority or first"),
        ({"translate": {"server": "writer", "back": "judge", "targets": ["xx"]}}, "'xx' is not one of"),
        ({"training": {"reason": "writer"}}, "training needs a split named train"),
        ({"name": "a set"}, "ASCII letters"),
        ({"licence": None}, "needs licence"),
        ({"sources": [{"name": "a", "folder": "gone"}]}, "is no folder"),
        ({"sources": [{"name": "a", "shards": "*.tar"}]}, "no file matches"),
    ],
)
def test_a_config_that_cannot_be_says_so_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = project(tmp_path, "http://127.0.0.1:9/v1", clips=0, **change)
    with pytest.raises(ConfigError) as caught:
        built(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_says_what_came_of_it_and_what_to_do_next(tmp_path: Path) -> None:
    with model_server() as model:
        file = project(tmp_path, model.url, clips=2)
        done = subprocess.run([*CLI, "build", str(file), "--quiet"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for words in ("2 videos, 2 clips", "lmms-eval --tasks vsb_hh", "publish dataset", "data review"):
            assert words in done.stdout
        file.write_text(file.read_text() + "langauges: [de]\n")
        wrong = subprocess.run([*CLI, "build", str(file)], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("videosafety: ")
    assert "Traceback" not in wrong.stderr
