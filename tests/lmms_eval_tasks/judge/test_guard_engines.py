"""How guard models are asked on this machine: in batches as singly, failing in parts and with a type."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM

from conftest import write_video
from videosafety.hf_models.tiny import tiny_tokenizer
from videosafety.lmms_eval_tasks.judge.guard import GuardJudge, Reading, family_of
from videosafety.lmms_eval_tasks.judge.guard.local import LocalEngine
from videosafety.lmms_eval_tasks.judge.pending import submit
from videosafety.lmms_eval_tasks.judge.verdict import Item, Label, Reason, Verdict

LLAMA, WILD, SHIELD = "meta-llama/Llama-Guard-3-8B", "allenai/wildguard", "google/shieldgemma-2b"
HARM, STRONG = "cais/HarmBench-Llama-2-13b-cls", "qylu4156/strongreject-15k-v1"
ITEM = Item("How is a lock picked?", "I can't help with that.")
SAFE, UNSAFE, NONE = Label.SAFE, Label.UNSAFE, Label.UNSCORED

# --- on this machine ---------------------------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def guards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folders with one tiny random Qwen2 under the names of guard models."""
    root = tmp_path_factory.mktemp("guards")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)

    def folder(name: str) -> str:
        if not (root / name).exists():
            model.save_pretrained(root / name)
            tokenizer.save_pretrained(root / name)
        return str(root / name)

    return folder


ITEMS = [Item("q" * (1 + 7 * i), "an answer " * (1 + i * i)) for i in range(9)]


@pytest.mark.parametrize("name", ["Llama-Guard-3-8B", "Qwen3Guard-Gen-tiny", "wildguard", "strongreject-15k-v1"])
def test_a_batch_says_what_single_prompts_say(guards, name):
    family = family_of(name)
    prompts = [prompt for item in ITEMS for prompt in family.prompts(item)]

    async def read(batch: int) -> list[Reading]:
        engine = LocalEngine(guards(name), None, family, batch)
        sizes: list[int] = []
        run = engine._batch
        engine._batch = lambda some: (sizes.append(len(some)), run(some))[1]
        readings = await asyncio.gather(*(engine.read([prompt]) for prompt in prompts))
        await engine.close()
        assert max(sizes) == batch
        assert len(sizes) == math.ceil(len(prompts) / batch)
        return [reading for (reading,) in readings]

    single, batched = asyncio.run(read(1)), asyncio.run(read(4))
    assert [reading.text for reading in single] == [reading.text for reading in batched]
    assert len({reading.text for reading in single}) > 1
    for one, other in zip(single, batched, strict=True):
        assert other.first == pytest.approx(one.first, abs=1e-5)
        assert bool(family.words) or not one.first
    if name.startswith("strongreject"):
        assert all(set(reading.first) == set("12345") for reading in single)
        assert any(sum(reading.first.values()) > 0 for reading in single)


def test_random_weights_are_unparsable_not_a_verdict(guards):
    judge = GuardJudge(guards("Llama-Guard-3-8B"))

    async def run() -> list[Verdict]:
        verdicts = await asyncio.gather(*map(judge.judge, ITEMS))
        await judge.close()
        return verdicts

    verdicts = asyncio.run(run())
    assert {verdict.reason for verdict in verdicts} == {Reason.JUDGE_UNPARSABLE}
    assert all(verdict.judge == judge.id and verdict.template == judge.template and verdict.raw for verdict in verdicts)


def test_the_probability_is_the_models(guards):
    """First-token probabilities against a plain forward pass without padding."""
    family = family_of("strongreject-15k-v1")
    (prompt,) = family.prompts(ITEM)
    engine = LocalEngine(guards("strongreject-15k-v1"), None, family)
    ((reading, _),) = [asyncio.run(engine.read([prompt, family.prompts(ITEMS[3])[0]]))]
    model, tokenizer = engine._model, engine._tokenizer
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()).strip()
    chances = logits.softmax(-1)
    for digit in "12345":
        spelled = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() == digit]
        assert reading.first[digit] == pytest.approx(float(chances[spelled].sum()), abs=1e-6)


def test_a_model_that_sees_is_shown_pictures_and_frames(tmp_path, tiny):
    """A tiny VideoLlama3 in the place of Llama Guard 4: rows with and without pictures in one go, singly and together."""
    folder = tmp_path / "Llama-Guard-4-tiny"
    folder.symlink_to(tiny)
    Image.new("RGB", (56, 56), "red").save(tmp_path / "x.png")
    family = family_of(str(folder))
    media = [(), (str(tmp_path / "x.png"),), (str(write_video(tmp_path / "x.mp4")),), (), ()]
    answers = ["", "a", "aa", "aaa", "a"]
    prompts = [family.prompts(Item("q", answer, media=paths))[0] for answer, paths in zip(answers, media, strict=True)]

    async def read(batch: int) -> list[Reading]:
        engine = LocalEngine(str(folder), None, family, batch)
        return [reading for (reading,) in await asyncio.gather(*(engine.read([prompt]) for prompt in prompts))]

    single, batched = asyncio.run(read(1)), asyncio.run(read(4))
    assert [reading.text for reading in single] == [reading.text for reading in batched]
    assert single[1].text != single[4].text, "the picture changes nothing"
    gone = asyncio.run(GuardJudge(str(folder)).judge(Item("q", "a", media=(str(tmp_path / "gone.mp4"),))))
    assert gone.reason is Reason.MEDIA_ERROR


def test_one_prompt_too_long_fails_alone(guards):
    family = family_of("Qwen3Guard-Gen-tiny")
    engine = LocalEngine(guards("Qwen3Guard-Gen-tiny"), None, family)
    prompts = [family.prompts(Item("q " * (5000 if i == 2 else 3), "a"))[0] for i in range(5)]

    async def run() -> list[Any]:
        return await asyncio.gather(*(engine.read([prompt]) for prompt in prompts), return_exceptions=True)

    results = asyncio.run(run())
    assert [isinstance(result, list) for result in results] == [True, True, False, True, True]
    assert "too long" in str(results[2])
    assert results[2].reason is Reason.JUDGE_FAILED


def test_memory_that_runs_out_halves_the_batch(guards):
    family = family_of("Qwen3Guard-Gen-tiny")
    engine = LocalEngine(guards("Qwen3Guard-Gen-tiny"), None, family)
    prompts = [family.prompts(item)[0] for item in ITEMS[:5]]
    sizes: list[int] = []
    generate = engine._generate

    def small(encoded: Any, length: int) -> list[Reading]:
        sizes.append(len(encoded["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("too big")
        return generate(encoded, length)

    engine._generate = small
    assert len(asyncio.run(engine.read(prompts))) == 5
    assert sizes == [5, 2, 3, 1, 2]


def test_a_defect_is_raised_and_nobody_waits_for_ever(guards):
    engine = LocalEngine(guards("Qwen3Guard-Gen-tiny"), None, family_of("Qwen3Guard-Gen-tiny"))

    def broken(prompts: Any) -> list[Reading]:
        raise RuntimeError("defect")

    engine._batch = broken
    with pytest.raises(RuntimeError, match="defect"):
        asyncio.run(asyncio.wait_for(engine.read(["a", "b"]), 5))


def test_a_long_answer_is_cut_and_said_so(guards):
    judge = GuardJudge(guards("HarmBench-Llama-2-13b-cls"))
    verdict = asyncio.run(judge.judge(Item("q", "word " * 2000)))
    assert "to 512 tokens" in verdict.detail


def test_a_model_that_cannot_be_loaded_is_judge_failed_for_every_row(tmp_path, guards):
    judge = GuardJudge(str(tmp_path / "wildguard"))

    async def run() -> list[Verdict]:
        return await asyncio.gather(*map(judge.judge, ITEMS))

    verdicts = asyncio.run(run())
    assert {verdict.reason for verdict in verdicts} == {Reason.JUDGE_FAILED}
    assert "cannot load" in verdicts[0].detail


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("", Reason.EMPTY_ANSWER), ("[LMMS_EVAL_REQUEST_FAILED after 5 retries] 429", Reason.GENERATION_FAILED)],
)
def test_nothing_is_loaded_for_a_failed_generation(answer, reason):
    verdict = asyncio.run(GuardJudge(LLAMA).judge(Item("q", answer)))
    assert (verdict.reason, verdict.judge) == (reason, f"guard:{LLAMA}")


def test_a_guard_retrained_in_place_is_asked_again(guards, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    folder = Path(guards("Qwen3Guard-Gen-retrained"))
    said = iter(["safe", "unsafe"])

    async def read(self: LocalEngine, prompts: Any) -> list[Reading]:
        return [Reading(f"Safety: {next(said).title()}\nCategories: None\nRefusal: No")]

    monkeypatch.setattr(LocalEngine, "read", read)
    verdicts = []
    for _ in range(2):
        verdicts += [submit(GuardJudge(str(folder)), ITEM).result() for _ in range(2)]
        os.utime(folder / "model.safetensors", (1, 1))  # as if written anew
    assert [verdict.label for verdict in verdicts] == [SAFE, SAFE, UNSAFE, UNSAFE]
