"""Training alarm models: gradients where they were asked for, the same loss however rows are spread, PEFT, checkpointing, processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from alarm_cases import NAMES, encode, folder, mixed, model, user, video

from videosafety.hf_models.alarm_core import UNLABELLED
from videosafety.hf_models.families import FAMILIES

FIVE = {"alarm_tokens.weight", *(f"alarm_heads.{kind}.{part}" for kind in ("visual", "textual") for part in ("weight", "bias"))}
LABELS = torch.tensor([[1, 0], [UNLABELLED, 1], [0, UNLABELLED], [1, 1]])  # of unequal number a kind


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def gradients(net: Any) -> dict[str, torch.Tensor]:
    return {key: value.grad for key, value in net.named_parameters() if value.grad is not None}


def only_alarm(net: Any) -> Any:
    net.requires_grad_(False)
    net.alarm_tokens.requires_grad_(True)
    net.alarm_heads.requires_grad_(True)
    return net


def test_gradients_only_where_asked(name: str) -> None:
    net = only_alarm(model(name))
    net(**encode(name, *mixed(name)), alarm_labels=LABELS[: len(mixed(name))]).loss.backward()
    found = gradients(net)
    assert set(found) == FIVE
    assert all(value.isfinite().all() and value.abs().sum() > 0 for value in found.values())


def test_the_answer_trains_the_vectors_and_not_the_heads(name: str) -> None:
    net, inputs = only_alarm(model(name)), encode(name, [user(video(), "What happens?")])
    out = net(**inputs, labels=inputs["input_ids"])
    assert out.alarm_loss is None
    out.loss.backward()
    assert set(gradients(net)) == {"alarm_tokens.weight"}
    assert (net.alarm_tokens.weight.grad.abs().sum(-1) > 0).all()


def test_both_losses_add_up(name: str) -> None:
    net, inputs = model(name), encode(name, [user(video(), "What happens?")])
    answer = net(**inputs, labels=inputs["input_ids"]).loss
    both = net(**inputs, labels=inputs["input_ids"], alarm_labels=torch.tensor([[1, 0]]))
    torch.testing.assert_close(both.loss, answer + both.alarm_loss)
    assert both.alarm_loss > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(name: str, reentrant: bool) -> None:
    inputs, found = encode(name, [user(video(), "What happens?")]), []
    for checkpointing in (False, True):
        net = only_alarm(model(name)).train()
        if checkpointing:
            net.gradient_checkpointing_enable({"use_reentrant": reentrant})
            net.enable_input_require_grads()
        net(**inputs, alarm_labels=torch.tensor([[1, 0]]), use_cache=False).loss.backward()
        found.append(gradients(net))
    for key in FIVE:
        torch.testing.assert_close(found[1][key], found[0][key])


def test_four_rows_at_once_are_four_one_after_another(name: str) -> None:
    chats = [[user("Is it safe?")], [user("What happens?")], [user("What now?")], [user("And then? Is it harmful?")]]
    items, found = (LABELS != UNLABELLED).sum(0), []
    for size in (4, 1):
        net = model(name)
        for start in range(0, 4, size):
            inputs = encode(name, *chats[start : start + size])
            net(**inputs, alarm_labels=LABELS[start : start + size], num_alarm_items=items).loss.backward()
        found.append(gradients(net))
    for key, value in found[0].items():
        if value.abs().max() > 0:
            torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4 * value.abs().max().item())


def test_rows_without_labels_or_tokens_give_zero_gradients(name: str) -> None:
    """Zeros, not nothing and not NaN: a parameter without a gradient stops DDP."""
    chat = [user("Is it safe?")]
    for alarm, labels in ((True, [[UNLABELLED, UNLABELLED]]), (False, [[1, 1]])):
        net = only_alarm(model(name))
        net(**encode(name, chat, alarm=alarm), alarm_labels=torch.tensor(labels)).loss.backward()
        found = gradients(net)
        assert set(found) == FIVE
        assert all((value == 0).all() for value in found.values())


def test_a_few_steps_tell_harm_from_safety() -> None:
    net = only_alarm(model("videollama3"))
    chats = [[user(video(seed), "What happens?")] for seed in range(4)]
    inputs, labels = encode("videollama3", *chats), torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]])
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        net(**inputs, alarm_labels=labels).loss.backward()
        optimizer.step()
    assert ((net.alarm_probs(**inputs)[:, 0] > 0.5) == labels[:, 0].bool()).all()


# --- PEFT -------------------------------------------------------------------------------------------------------------------------


def test_lora_with_alarm_modules_trains_saves_reloads_and_merges(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    inputs = encode(name, [user(video(), "What happens?")])
    # A regex of the language model's projections: a bare "q_proj" is in the vision tower too.
    settings = peft.LoraConfig(
        target_modules=r".*(language_model|text_model)\..*\.(q_proj|v_proj)", modules_to_save=["alarm_tokens", "alarm_heads"], r=2
    )
    before = model(name).alarm_probs(**inputs)
    net = peft.get_peft_model(model(name), settings)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):  # LoRA's second factor starts at zero
        optimizer.zero_grad()
        net(**inputs, alarm_labels=torch.tensor([[1, 0]])).loss.backward()
        optimizer.step()
    trained = {key.split(".modules_to_save")[0].rpartition(".")[2] for key in gradients(net) if "modules_to_save" in key}
    assert trained == {"alarm_tokens", "alarm_heads"}
    net.eval()
    after = net.alarm_probs(**inputs)
    assert (after - before).abs().max() > 1e-4
    net.save_pretrained(tmp_path / "adapter")
    reloaded = peft.PeftModel.from_pretrained(model(name), tmp_path / "adapter").eval()
    torch.testing.assert_close(reloaded.alarm_probs(**inputs), after)
    torch.testing.assert_close(reloaded.merge_and_unload().alarm_probs(**inputs), after, rtol=1e-3, atol=1e-4)
    with torch.no_grad():  # the vectors of the copy that was trained, not of the base
        net.base_model.model.alarm_tokens.original_module.weight += 5
        torch.testing.assert_close(net.alarm_probs(**inputs), after)


# --- saving -----------------------------------------------------------------------------------------------------------------------


def test_what_was_trained_is_what_is_loaded(name: str, tmp_path: Path) -> None:
    net, inputs = model(name), encode(name, [user(video(), "What happens?")])
    with torch.no_grad():
        for part in (net.alarm_tokens, net.alarm_heads):
            for value in part.parameters():
                value += torch.randn_like(value)
    net.save_pretrained(tmp_path)
    again, report = FAMILIES[name].model.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(again.alarm_probs(**inputs), net.alarm_probs(**inputs))


# --- processes --------------------------------------------------------------------------------------------------------------------


def test_two_processes_are_one(tmp_path: Path) -> None:
    """DDP and FSDP2 on two processes (gloo): gradients and probabilities as on one."""
    texts = ("What happens in this video?", "Is it harmful or safe?")
    torch.save([encode("videollama3", [user(video(n), text)]) for n, text in enumerate(texts)], tmp_path / "prompts.pt")
    script, env = Path(__file__).with_name("alarm_distributed.py"), os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = [str(folder("videollama3")), str(tmp_path)]
    both = [subprocess.Popen([sys.executable, str(script), str(rank), *arguments], env=env, stderr=subprocess.PIPE) for rank in (0, 1)]
    try:
        for process in both:
            _, said = process.communicate(timeout=240)
            assert process.returncode == 0, said.decode()[-3000:]
    finally:
        for process in both:
            process.kill()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == {"ddp", "ddp_unlabelled", "fsdp2", "fsdp2_probs"}
    assert max(found.values()) < 1e-5, found
