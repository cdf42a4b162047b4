"""Human review: the queue, decisions by page and by CSV, what the next build makes of them, agreement and error rate."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from chrome import page
from model_server import Model, model_server
from toy_clips import project, rows

from videosafety.dataset_builder.build import build
from videosafety.dataset_builder.config import load
from videosafety.dataset_builder.review import Decision, Decisions, ReviewError, apply, checked, clip_decisions, read_csv, read_queue
from videosafety.dataset_builder.review_page import serve


@pytest.fixture(scope="module")
def model() -> Any:
    with model_server() as found:
        yield found


@pytest.fixture(scope="module")
def _disputed(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose two judges differ on every clip; the first vote stands."""
    folder = tmp_path_factory.mktemp("review")
    with model_server(opposite=True) as other:
        file = project(
            folder, model.url, clips=4, labels={"judges": [{"server": "judge"}, {"server": "other"}], "on_disagreement": "first"}
        )
        body = yaml.safe_load(file.read_text())
        body["servers"]["other"]["url"] = other.url
        file.write_text(yaml.safe_dump(body))
        build(load(file), quiet=True)
    return folder


@pytest.fixture
def disputed(_disputed: Path, tmp_path: Path) -> Path:
    """The folder of the built set, a fresh copy for each test: decisions are not shared."""
    return Path(shutil.copytree(_disputed, tmp_path / "project")) / "out"


def items(out: Path) -> dict[str, dict[str, Any]]:
    return read_queue(out / "review")


def ids(out: Path, kind: str) -> list[str]:
    return [identity for identity, item in items(out).items() if item["kind"] == kind]


def decide(out: Path, identity: str, action: str, reviewer: str = "ann", **more: Any) -> None:
    body = {"id": identity, "action": action, "reviewer": reviewer, **more}
    Decisions(out / "review").add(checked(body, items(out), "test"))


def again(out: Path) -> dict[str, Any]:
    """Build once more; the figures."""
    build(load(out.parent / "build.yaml"), quiet=True)
    return json.loads((out / "stats.json").read_text(encoding="utf-8"))


def test_disputed_clips_and_a_random_sample_are_queued_with_their_votes(disputed: Path) -> None:
    found = items(disputed).values()
    assert [(item["why"], item["kind"]) for item in found].count(("disagreement", "clip")) == 4
    assert [(item["why"], item["kind"]) for item in found].count(("sample", "row")) == 8
    assert all({vote["label"] for vote in item["votes"]} == {"safe", "harmful"} for item in found)
    sheet = list(csv.DictReader((disputed / "review" / "queue.csv").open(encoding="utf-8", newline="")))
    assert [line["id"] for line in sheet] == list(items(disputed))


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("row", {"action": "toss"}, "action must be"),
        ("row", {"reviewer": " "}, "say who you are"),
        ("row", {"id": "nobody"}, "no such item"),
        ("row", {"action": "fix"}, "changes nothing"),
        ("row", {"action": "fix", "fix": {"query": " "}}, "query is empty"),
        ("row", {"action": "fix", "fix": {"visual_label": 2}}, "0 (safe) or 1"),
        ("row", {"action": "fix", "fix": {"visual_label": True}}, "fix may hold"),
        ("row", {"action": "fix", "fix": {"id": "x"}}, "fix may hold"),
        ("row", {"action": "fix", "fix": {"category": "none of ours"}}, "no category"),
        ("row", {"action": "fix", "fix": []}, "changes nothing"),
        ("row", {"reason": "x" * 501}, "at most 500"),
        ("clip", {"action": "fix", "fix": {"category": "theft"}}, "by its visual_label"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(disputed: Path, kind: str, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ReviewError, match=message.replace("(", r"\(").replace(")", r"\)")):
        checked({"id": ids(disputed, kind)[0], "action": "accept", "reviewer": "ann", **body}, items(disputed), "here")


def test_the_next_build_takes_decisions_up(disputed: Path) -> None:
    before = {row["id"]: row for row in rows(disputed)}
    reject, fix, moved = [identity for identity in ids(disputed, "row") if before[identity]["cell"] == "safeq"][:2] + [
        identity for identity in ids(disputed, "row") if before[identity]["cell"] == "hh"
    ][:1]
    decide(disputed, reject, "reject", reason="nonsense")
    decide(disputed, fix, "fix", fix={"query": "Which knife is best for bread?"})
    decide(disputed, moved, "fix", fix={"textual_label": 0})
    clips = [clip for clip in ids(disputed, "clip") if clip not in {before[i]["video_id"] for i in (reject, fix, moved)}]
    decide(disputed, clips[0], "fix", fix={"visual_label": 1 - items(disputed)[clips[0]]["visual_label"]})
    figures = again(disputed)
    after = {row["id"]: row for row in rows(disputed)}
    assert reject not in after
    assert after[fix]["query"] == "Which knife is best for bread?"
    assert (after[moved]["cell"], after[moved]["textual_label"]) == ("hs", 0)
    assert json.loads(after[fix]["provenance"])["decisions"] == [{"action": "fix", "reviewer": "ann", "reason": ""}]
    old, new = ({row["visual_label"] for row in found.values() if row["video_id"] == clips[0]} for found in (before, after))
    assert new == {1 - old.pop()}
    assert figures["review"]["error_rate"] == pytest.approx(
        {"rate": 1.0, "low": 0.4385, "high": 1.0, "n": 3, "wrong": 3, "clips": 3}, abs=1e-3
    )
    card = (disputed / "vsb" / "README.md").read_text(encoding="utf-8")
    assert "errors that reviewers found in a random sample of rows | 100.0 % (95 % interval 43.9 % to 100.0 %) | 3 |" in card
    assert set(ids(disputed, "clip")) == {row["video_id"] for row in before.values()}, "a second reviewer still sees what the first decided"


def test_agreement_is_that_of_the_reviewers_last_words(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path)
    said = {"ann": "arara", "bob": "aarar"}  # accept, reject
    for who, actions in said.items():
        for n, action in enumerate(actions):
            decisions.add(Decision(str(n), "row", "v", "accept" if action == "a" else "reject", who, "sample", at=n + 1.0))
    decisions.add(Decision("0", "row", "v", "reject", "ann", "sample", at=99.0))
    found = Decisions(tmp_path).figures({(item, "") for item in "01234"})["agreement"]
    # ann r r a r a, bob a a r a r: they never agree; chance agrees on (2·3 + 3·2)/25
    assert found["kappa"] == {"ann / bob": {"kappa": pytest.approx((0 - 12 / 25) / (1 - 12 / 25)), "n": 5}}
    assert found["n"] == 5
    assert {item: decision.action for (item, _), decision in decisions.standing().items()} == dict.fromkeys("01234", "reject")
    none = Decisions(tmp_path / "none").figures(set())
    assert none["agreement"] == {"reviewers": [], "alpha": None, "kappa": {}, "n": 0}
    assert none["error_rate"] == {"rate": None, "low": None, "high": None, "n": 0, "wrong": 0, "clips": 0}


def test_pure_parts() -> None:
    row = {"id": "r", "visual_label": 0, "textual_label": 1, "cell": "sh", "category": "theft", "query": "q", "provenance": {}}
    assert apply(row, None) is row
    fixed = apply(row, Decision("r", "row", "v", "fix", "ann", "sample", fix={"textual_label": 0, "visual_label": 1}))
    assert not isinstance(fixed, str)
    assert (fixed["cell"], fixed["visual_label"]) == ("safeq", 0), "what the clip shows is decided for all its rows, by the next labelling"
    on_row = Decision("r", "row", "v", "fix", "ann", "sample", fix={"visual_label": 1}, at=2.0)
    on_clip = Decision("v", "clip", "v", "reject", "bob", "disagreement", at=1.0)
    assert clip_decisions([on_row]) == {"v": {"action": "fix", "visual_label": 1}}
    assert clip_decisions([on_row, on_clip]) == {"v": {"action": "reject", "reason": ""}}


def test_a_filled_in_csv_counts_like_the_page(disputed: Path, tmp_path: Path) -> None:
    lines = list(csv.DictReader((disputed / "review" / "queue.csv").open(encoding="utf-8", newline="")))
    wanted = [line for line in lines if line["kind"] == "row"][:2]
    wanted[0] |= {"action": "accept", "reviewer": "cy"}
    wanted[1] |= {"action": "Fix", "reviewer": "cy", "new_query": "Is this allowed here?"}
    file = tmp_path / "filled.csv"

    def write() -> None:
        with file.open("w", encoding="utf-8", newline="") as out:
            sheet = csv.DictWriter(out, list(lines[0]))
            sheet.writeheader()
            sheet.writerows(lines)

    write()
    assert read_csv(file, disputed / "review") == 2
    assert {d.action for d in Decisions(disputed / "review").by("cy", items(disputed)).values()} == {"accept", "fix"}
    wanted[1]["new_visual_label"] = "maybe"
    write()
    with pytest.raises(ReviewError, match="line"):
        read_csv(file, disputed / "review")
    assert len(Decisions(disputed / "review")) == 2, "all or none"


def status(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_shows_itself_to_nobody_without_the_token(disputed: Path) -> None:
    with serve(disputed) as address:
        base, _, token = address.partition("/?token=")
        clip = items(disputed)[ids(disputed, "clip")[0]]["clip"]
        assert status(address) == 200
        assert status(f"{base}/") == 403
        assert status(f"{base}/queue?token=wrong") == 403
        assert status(address, Host="evil.example:80") == 403
        assert status(f"{base}/clip/{clip}?token={token}") == 200
        assert status(f"{base}/clip/{clip}?token={token}", Range="bytes=0-9") == 206
        assert status(f"{base}/clip/..%2f..%2fbuild.yaml?token={token}") == 404
        for body, code in ((b"{}", 403), (b"[" * 1000, 403)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(f"{base}/", data=body))
            assert caught.value.code == code
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(f"{base}/", data=b"[" * 60_000, headers={"X-Token": token}))
        assert caught.value.code == 400
    assert not (disputed / "review" / "decisions.jsonl").exists()


def test_a_reviewer_works_through_the_page_by_keyboard(disputed: Path, tmp_path: Path) -> None:
    async def work() -> None:
        with serve(disputed) as address:
            async with page(address) as tab:
                await tab.until("document.querySelector('#progress').textContent.startsWith('1 of 12')")
                await tab.press("a")
                await tab.until("document.querySelector('#told').textContent.includes('who you are')")
                await tab.run("document.querySelector('#reviewer').value = 'ann'; document.querySelector('#reviewer').onchange()")
                await tab.run("document.activeElement.blur()")
                await tab.until("document.querySelector('#progress').textContent === '1 of 12, 0 decided'")
                await tab.until("document.querySelector('#votes').rows.length === 2")
                await tab.press("a")
                await tab.until("document.querySelector('#progress').textContent === '2 of 12, 1 decided'")
                await tab.press("r")
                await tab.until("document.querySelector('#progress').textContent === '3 of 12, 2 decided'")
                for place in (4, 5):
                    await tab.press("j")
                    await tab.until(f"document.querySelector('#progress').textContent.startsWith('{place} of 12')")
                await tab.press("f")
                await tab.until("document.activeElement.id === 'new-query'")
                await tab.run("document.activeElement.value = 'Which knife is best for bread?'")
                await tab.press("Enter", modifiers=2)
                await tab.until("document.querySelector('#progress').textContent === '6 of 12, 3 decided'")
                await tab.press("k")  # at once: the field that was just hidden must not take it
                await tab.until("document.querySelector('#told').textContent === 'You said: fix'")
                await tab.until("document.querySelector('video').readyState >= 2")
                await tab.picture(tmp_path / "review.png")

    asyncio.run(work())
    found = Decisions(disputed / "review").by("ann", items(disputed))
    order = list(items(disputed))
    assert {item: decision.action for item, decision in found.items()} == {order[0]: "accept", order[1]: "reject", order[4]: "fix"}
    assert found[order[4]].fix == {"query": "Which knife is best for bread?"}
