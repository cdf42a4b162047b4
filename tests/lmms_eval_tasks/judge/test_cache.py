"""The cache of verdicts: exact round trips, no failures kept, two processes at once, listing and pruning."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from videosafety.judge_cache import app
from videosafety.lmms_eval_tasks.judge.cache import JudgeCache, cache_path, dumps, judge_cache, loads
from videosafety.lmms_eval_tasks.judge.verdict import Label, Reason, Stance, Verdict, unscored

UNSAFE = Verdict(Label.UNSAFE, stance=Stance.PARTIAL, p_unsafe=0.1 + 0.2, judge="j@1", policy="p", template="t", raw='{"a": "\ud800\n"}')


@pytest.fixture
def store(tmp_path: Path) -> JudgeCache:
    return JudgeCache(tmp_path / "judge.sqlite")


texts = st.text(st.characters(exclude_categories=()), max_size=20)
verdicts = st.builds(
    Verdict,
    st.sampled_from([Label.SAFE, Label.UNSAFE]),
    st.none(),
    st.none() | st.sampled_from(Stance),
    st.none() | st.floats(0, 1),
    texts,
    texts,
    texts,
    texts,
    texts,
)


@given(verdicts)
def test_a_verdict_comes_back_as_it_was(verdict: Verdict) -> None:
    again = loads(dumps(verdict), Verdict)
    assert again == verdict
    assert repr(again) == repr(verdict)


@pytest.mark.parametrize("reason", Reason)
def test_a_failure_is_never_stored(store: JudgeCache, reason: Reason) -> None:
    store.put("k", unscored(reason, judge="j@1"))
    assert store.get("k", Verdict) is None
    assert store.list() == []


def test_stored_means_on_disk_and_readable_by_others(store: JudgeCache) -> None:
    store.put("k", UNSAFE)
    assert JudgeCache(store.path).get("k", Verdict) == UNSAFE
    assert store.get("other", Verdict) is None


@pytest.mark.parametrize(
    "broken", ["", "{", "[]", '{"label": "unscored"}', '{"label": "maybe"}', '{"label": "safe", "colour": "red"}', "null"]
)
def test_a_row_that_cannot_be_read_is_a_miss(store: JudgeCache, broken: str) -> None:
    store.put("k", UNSAFE)
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE verdicts SET verdict = ?", (broken,))
    assert store.get("k", Verdict) is None
    store.put("k", UNSAFE)
    assert store.get("k", Verdict) == UNSAFE


WRITER = """
import sys
from pathlib import Path
from videosafety.lmms_eval_tasks.judge.cache import JudgeCache
from videosafety.lmms_eval_tasks.judge.verdict import Label, Verdict
store = JudgeCache(Path(sys.argv[1]))
for n in range(300):
    store.put(f"same {n}", Verdict(Label.SAFE, judge="both@1"))
    store.put(f"{sys.argv[2]} {n}", Verdict(Label.UNSAFE, judge=sys.argv[2]))
    assert store.get(f"same {n}", Verdict) is not None
"""


def test_two_processes_write_the_same_and_different_keys(tmp_path: Path) -> None:
    path = tmp_path / "new" / "judge.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stderr=subprocess.PIPE) for name in ("a@1", "b@1")]
    for writer in writers:
        assert writer.wait(120) == 0, writer.stderr and writer.stderr.read()
    assert [(entry.judge, entry.n) for entry in JudgeCache(path).list()] == [("a@1", 300), ("b@1", 300), ("both@1", 300)]


def age(store: JudgeCache, key: str, days: float) -> None:
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE verdicts SET made = made - ? WHERE key = ?", (days * 86_400, key))


def test_list_and_prune(store: JudgeCache) -> None:
    for key, judge in (("old a", "a@1"), ("new a", "a@1"), ("old b", "b@1")):
        store.put(key, Verdict(Label.SAFE, judge=judge))
    age(store, "old a", 10)
    age(store, "old b", 10)
    first, second = store.list()
    assert (first.judge, first.n, second.judge, second.n) == ("a@1", 2, "b@1", 1)
    assert 9 * 86_400 < first.last - first.first < 11 * 86_400
    assert first.bytes > second.bytes > 0
    assert store.prune(older_than_days=30) == 0
    assert store.prune(older_than_days=5, judge="a@1") == 1
    assert store.get("new a", Verdict) is not None
    assert store.get("old b", Verdict) is not None
    assert store.prune(judge="b@1") == 1
    assert store.prune(older_than_days=0) == 1
    assert store.list() == []


def test_prune_gives_space_back_and_removes_more_than_a_chunk(store: JudgeCache) -> None:
    for n in range(5_000):
        store.put(f"{n:064}", Verdict(Label.SAFE, judge="a@1", raw="x" * 200))
    assert store.prune(judge="a@1") == 5_000
    assert store.path.stat().st_size < 100_000


@pytest.mark.parametrize("wrong", [{}, {"older_than_days": -1.0}, {"older_than_days": float("nan")}])
def test_prune_wants_to_know_what(store: JudgeCache, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="older_than_days"):
        store.prune(**wrong)  # type: ignore[arg-type]


FORKS = """
import os
from videosafety.lmms_eval_tasks.judge.cache import judge_cache

ours = judge_cache()
assert judge_cache() is ours
child = os.fork()
if child == 0:
    os._exit(0 if judge_cache() is not ours else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_fork_opens_its_own_connection(tmp_path: Path) -> None:
    """In a process of its own: this one has threads by now, whose locks a forked child would keep for ever."""
    command, env = [sys.executable, "-c", FORKS], os.environ | {"VIDEOSAFETY_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    run = CliRunner().invoke
    assert "no verdicts" in run(app, ["list"]).output
    judge_cache().put("k", UNSAFE)
    assert "j@1" in run(app, ["list"]).output
    assert json.loads(run(app, ["list", "--json"]).output)[0]["n"] == 1
    assert run(app, ["prune"]).exit_code == 2
    assert run(app, ["prune", "--judge", "j@1"]).output == "1 verdicts removed\n"
    assert cache_path() == tmp_path / "judge.sqlite"
    assert judge_cache().list() == []
