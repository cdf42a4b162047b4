"""The client under the LLM judges: secrets go nowhere, specs are read strictly, concurrency grows, shrinks and gives every place back."""

from __future__ import annotations

import asyncio
import time

import pytest

from fault_server import Faults, fault_server
from test_llm import HARM, KEY, ask, judge_of, server  # noqa: F401
from videosafety.lmms_eval_tasks.judge import get_judge
from videosafety.lmms_eval_tasks.judge.client import JudgeFailed, Limiter, concurrency
from videosafety.lmms_eval_tasks.judge.llm import LlmJudge
from videosafety.lmms_eval_tasks.judge.redact import one_line, redact
from videosafety.lmms_eval_tasks.judge.verdict import Item, Reason, Verdict

# --- secrets ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["leak", "echo", "500", "cut"])
def test_the_key_is_nowhere(server: Faults, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    server.always = fault

    async def run() -> Verdict:
        judge = LlmJudge.openai("gpt")
        judge._client.backoff = 0.0
        return await judge.judge(HARM)

    verdict = asyncio.run(run())
    assert server.keys == {KEY}
    assert not verdict.scored
    assert KEY not in repr(verdict)
    assert "sk-proj" not in repr(verdict)


def test_openais_key_does_not_go_to_other_servers(server: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(server.url, HARM)
    assert server.keys == {"none"}


def test_without_a_key_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    verdict = asyncio.run(LlmJudge.openai("gpt-4o").judge(HARM))
    assert (verdict.reason, verdict.detail) == (Reason.JUDGE_FAILED, "OPENAI_API_KEY is not set")


def test_redact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "plain-looking-value")
    for secret in (KEY, "hf_abcdefghijkl", "plain-looking-value", "Bearer abc.def"):
        assert secret.split()[-1] not in redact(f"it was {secret} there")
    assert redact("http://user:pass@host/v1") == "http://[redacted]@host/v1"
    for secret in ("glpat-" + "Ab1_-" * 4, "AKIA" + "ABCDEFGH" * 2, "ghp_" + "a" * 36):  # what `publish` refuses is never logged either
        assert redact(f"it was {secret}.") == "it was [redacted]."
    assert one_line(f"a\n b {KEY}" + "x" * 500).startswith("a b [redacted]")
    assert LlmJudge.local("http://user:pass@host/v1#m").id == "local:http://[redacted]@host/v1#m@2"


@pytest.mark.parametrize("part", ["eyJ-", "sk-", "://a:", "api_key ", "a_", "bearer ", "-----BEGIN A "])
def test_hostile_text_is_redacted_in_no_time(part: str) -> None:
    start = time.monotonic()
    redact(part * 50_000)
    assert time.monotonic() - start < 3


# --- concurrency ------------------------------------------------------------------------------------------------------------------


def test_concurrency_grows_to_its_bound_and_no_further() -> None:
    with fault_server(delay=0.3) as server:
        ask(server.url, *(Item("q", str(n)) for n in range(300)))
        assert 33 <= server.most_at_once <= 64


def test_the_bound_is_shared_by_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert concurrency() == (16, 64)
    monkeypatch.setenv("VIDEOSAFETY_JUDGE_CONCURRENCY", "8")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert concurrency() == (4, 2)
    with fault_server(delay=0.01) as server:
        ask(server.url, *(Item("q", str(n)) for n in range(30)))
        assert server.most_at_once <= 2
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("VIDEOSAFETY_JUDGE_CONCURRENCY", wrong)
        with pytest.raises(JudgeFailed, match="VIDEOSAFETY_JUDGE_CONCURRENCY"):
            concurrency()


def test_a_crowd_halves_the_limit_once() -> None:
    async def run() -> None:
        limiter = Limiter(16, 64)
        for _ in range(16):
            limiter.went_well()
        assert limiter.limit == 32
        since = time.monotonic()
        for _ in range(5):
            limiter.crowded(since, 0.0)
        assert limiter.limit == 16
        limiter.went_well()
        assert limiter.limit == 16 + 1 / 16
        for _ in range(10):
            limiter.crowded(time.monotonic() + 1, 0.0)
            limiter._crowded_at = 0.0
        assert limiter.limit == 1

    asyncio.run(run())


def test_every_place_is_given_back() -> None:
    async def run() -> None:
        limiter, inside = Limiter(2, 2), 0

        async def work(n: int) -> None:
            nonlocal inside
            async with limiter.slot():
                inside += 1
                assert inside <= 2
                await asyncio.sleep(0.001)
                inside -= 1
                if n % 3 == 0:
                    raise RuntimeError

        tasks = [asyncio.create_task(work(n)) for n in range(50)]
        for task in tasks[::7]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert limiter._running == 0
        await asyncio.wait_for(work(1), 1)

    asyncio.run(run())


# --- specs ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openai:gpt-4o", "local:http://127.0.0.1:1/v1#m"])
def test_images_are_part_of_the_spec_and_of_the_id(name: str) -> None:
    ids = {spec: get_judge(f"{name}{spec}").id for spec in ("", "?images=0", "?images=8")}
    assert ids == {"": f"{name}@2", "?images=0": f"{name}@2", "?images=8": f"{name}@2+8frames"}
    (member, _) = get_judge(f"panel:{name}?images=2+refusal").judges
    assert member.images == 2


def test_an_address_keeps_its_own_question_mark() -> None:
    judge = get_judge("local:http://127.0.0.1:1/v1?a=b#m?images=3")
    assert (judge._client.base_url, judge._client.model, judge.images) == ("http://127.0.0.1:1/v1?a=b", "m", 3)


@pytest.mark.parametrize("option", ["?", "?images", "?images=", "?images=-1", "?images=two", "?images=²", "?frames=8", "?images=8&x=1"])
def test_other_options_are_refused(option: str) -> None:
    for name in ("openai:gpt-4o", "local:http://127.0.0.1:1/v1#m"):
        with pytest.raises(ValueError, match=r"\?images=N"):
            get_judge(name + option)
