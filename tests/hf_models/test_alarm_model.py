"""The mixin on all six families: the base model where there are no alarm tokens, and the same probabilities however they are asked for."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from alarm_cases import NAMES, encode, folder, mixed, model, processor, spot, user, video

from videosafety.hf_models.alarm_core import UNLABELLED, alarm_loss, alarm_strings, token_ids
from videosafety.hf_models.families import FAMILIES

CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 sums in another order; logits of these models are tens


def logits(net: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return net(**inputs).logits


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def clip(name: str) -> dict[str, Any]:
    """Inputs of one prompt with a video."""
    return encode(name, [user(video(), "What happens in this video?")])


# --- the base model ---------------------------------------------------------------------------------------------------------------


def test_without_alarm_tokens_it_is_the_base_model(name: str) -> None:
    inputs = encode(name, *mixed(name), alarm=False)
    alarm, base = model(name), model(name, alarm=False)
    assert torch.equal(logits(alarm, inputs), logits(base, inputs))
    made, plain = (net.generate(**inputs, max_new_tokens=4, do_sample=False) for net in (alarm, base))
    assert torch.equal(made, plain)
    with torch.no_grad():
        out = alarm(**inputs)
    assert out.alarm_logits.isnan().all()
    assert out.loss is None
    assert out.alarm_loss is None


def test_every_parameter_of_the_base_stays_visible(name: str) -> None:
    """generate() and trainers decide by the signature what to pass."""
    mine, base = (inspect.signature(cls.forward).parameters for cls in (FAMILIES[name].model, FAMILIES[name].base_model))
    assert [key for key in mine if key not in ("alarm_labels", "num_alarm_items")] == list(base)


def test_the_vectors_are_the_embeddings_and_the_rows_are_not(name: str, clip: dict[str, Any]) -> None:
    net = model(name)
    before = logits(net, clip)
    visual, textual = token_ids(net.config)
    with torch.no_grad():
        net.get_input_embeddings().weight[visual + textual] += 7
    assert torch.equal(logits(net, clip), before)
    for row in range(2):
        changed = copy.deepcopy(net)
        with torch.no_grad():
            changed.alarm_tokens.weight[row] += 1
        places = spot(clip["input_ids"], name)[row][0]
        moved = (logits(changed, clip) != before).any(-1)[0].nonzero()
        assert moved.min() == places[0]  # and nothing before it


def test_vectors_start_as_the_mean_row_and_heads_are_small(name: str) -> None:
    net = model(name)
    base = model(name, alarm=False).get_input_embeddings().weight
    torch.testing.assert_close(net.alarm_tokens.weight, base.mean(0).expand(2, -1))
    assert net.alarm_heads.visual.bias.item() == net.alarm_heads.textual.bias.item() == 0
    assert 0 < net.alarm_heads.visual.weight.std() < 2 * net.config.get_text_config().initializer_range


def test_paper_init_is_zeros(name: str) -> None:
    config = copy.deepcopy(model(name).config)
    config.alarm_init = "paper_init"
    assert (FAMILIES[name].model(config).alarm_tokens.weight == 0).all()


# --- the same whichever way -------------------------------------------------------------------------------------------------------


def test_forward_generate_and_the_guard_say_the_same(name: str) -> None:
    net, inputs = model(name), encode(name, *mixed(name))
    with torch.no_grad():
        out = net(**inputs)
    probs = net.alarm_probs(**inputs)
    assert probs.shape == (len(mixed(name)), 2)
    assert probs.dtype == torch.float32
    assert ((probs > 0) & (probs < 1)).all()
    assert probs.std() > 0.05  # else any mix-up of rows would pass
    torch.testing.assert_close(out.alarm_probs, probs, **CLOSE)
    torch.testing.assert_close(out.alarm_logits.sigmoid(), probs, **CLOSE)
    made = net.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    torch.testing.assert_close(made.alarm_probs, probs, **CLOSE)
    net.generate(**inputs, max_new_tokens=1)
    torch.testing.assert_close(net.last_alarm_probs, probs, **CLOSE)


def test_a_batch_is_its_rows_one_by_one(name: str) -> None:
    net, chats = model(name), mixed(name)
    batch = encode(name, *chats)
    assert (batch["attention_mask"][:, 0] == 0).any()  # padded on the left
    made = net.generate(**batch, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    last = logits(net, batch)[:, -1]
    for row, chat in enumerate(chats):
        single = encode(name, chat)
        alone = net.generate(**single, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
        torch.testing.assert_close(made.alarm_probs[row : row + 1], alone.alarm_probs, **CLOSE)
        torch.testing.assert_close(last[row], logits(net, single)[0, -1], rtol=1e-3, atol=1e-3)
        mine, its = (out.sequences[i, ids["input_ids"].shape[1] :] for out, i, ids in ((made, row, batch), (alone, 0, single)))
        assert words(name, mine) == words(name, its)


def words(name: str, ids: torch.Tensor) -> str:
    return processor(name).tokenizer.decode(ids, skip_special_tokens=True)


def test_a_cache_changes_nothing(name: str, clip: dict[str, Any]) -> None:
    net = model(name)
    runs = [net.generate(**clip, max_new_tokens=5, do_sample=False, use_cache=use, return_dict_in_generate=True) for use in (True, False)]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    torch.testing.assert_close(runs[0].alarm_probs, runs[1].alarm_probs, **CLOSE)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3}]
)
def test_beams_and_samples_have_one_row_a_prompt(name: str, options: dict[str, Any]) -> None:
    net, chats = model(name), mixed(name)[:2]
    chats[0] = [user(video(1, still=True), "What happens?")]  # VideoLlama3 drops tokens of still frames
    inputs = encode(name, *chats)
    out = net.generate(**inputs, **options, max_new_tokens=4, return_dict_in_generate=True)
    assert out.sequences.shape[0] == 2 * options.get("num_return_sequences", 1)
    torch.testing.assert_close(out.alarm_probs, net.alarm_probs(**inputs), **CLOSE)


def test_beams_see_the_video_that_greedy_sees() -> None:
    """VideoLlama3 with dropped tokens: transformers 5.23 fails on it, our class does not."""
    net, inputs = model("videollama3"), encode("videollama3", [user(video(1, still=True), "What happens?")])
    assert not inputs["video_compression_mask"].all()
    greedy = net.generate(**inputs, max_new_tokens=5, do_sample=False)
    twins = net.generate(**inputs, max_new_tokens=5, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(twins, greedy.expand(2, -1))


def unless_the_base_fails(call: Any) -> None:
    """Skip where transformers' own class cannot do it: in 5.17 M-RoPE with chunks, and SmolVLM with autocast."""
    try:
        call()
    except RuntimeError as error:
        pytest.skip(f"the base class fails too: {error}")


def test_prefill_in_chunks_keeps_the_probabilities(name: str) -> None:
    net, inputs = model(name), encode(name, [user("Is it harmful or safe? What happens in this video?")])
    unless_the_base_fails(lambda: model(name, alarm=False).generate(**inputs, max_new_tokens=3, prefill_chunk_size=8))
    out = net.generate(**inputs, max_new_tokens=3, do_sample=False, prefill_chunk_size=8, return_dict_in_generate=True)
    torch.testing.assert_close(out.alarm_probs, net.alarm_probs(**inputs), **CLOSE)


def test_more_tokens_a_modality(name: str) -> None:
    net, inputs = model(name, per_modality=2), encode(name, *mixed(name), per_modality=2)
    visual, textual = spot(inputs["input_ids"], name, per_modality=2)
    assert all(b - a == 1 for rows in (visual, textual) for a, b in rows)
    assert net.alarm_tokens.weight.shape == (4, 32)
    probs = net.alarm_probs(**inputs)
    assert not probs.isnan().any()
    with torch.no_grad():
        hidden = net.base_model(**inputs)[0]
    for head, places, found in zip((net.alarm_heads.visual, net.alarm_heads.textual), (visual, textual), probs.T, strict=True):
        states = torch.stack([hidden[row, last] for row, (_, last) in enumerate(places)])  # a head reads the last of its tokens
        torch.testing.assert_close(head(states).sigmoid()[:, 0], found, **CLOSE)


def test_what_is_generated_never_holds_an_alarm_token_or_a_placeholder(name: str) -> None:
    suppressed = set(model(name).generation_config.suppress_tokens)
    tokenizer = processor(name).tokenizer
    strings = [text for kind in alarm_strings() for text in kind] + [
        "<|image_pad|>",
        "<|video_pad|>",
        "<image>",
        "<video>",
        "<IMG_CONTEXT>",
    ]
    ids = {tokenizer.convert_tokens_to_ids(text) for text in strings if text in tokenizer.get_vocab()}
    assert len(ids) >= 3
    assert ids <= suppressed


# --- copies, other dtypes and shapes ----------------------------------------------------------------------------------------------


def test_a_copy_has_its_own_vectors(name: str, clip: dict[str, Any]) -> None:
    net = model(name)
    before = logits(net, clip)
    twin = copy.deepcopy(net)
    assert torch.equal(logits(twin, clip), before)
    with torch.no_grad():
        twin.alarm_tokens.weight += 1
    assert not torch.equal(logits(twin, clip), before)
    assert torch.equal(logits(net, clip), before)
    torch.testing.assert_close(twin.alarm_probs(**clip), twin.generate(**clip, max_new_tokens=1, return_dict_in_generate=True).alarm_probs)


def test_resizing_keeps_the_hook(name: str, clip: dict[str, Any]) -> None:
    net = model(name)
    before, rows = net.alarm_probs(**clip), net.get_input_embeddings().num_embeddings
    net.resize_token_embeddings(rows + 8, mean_resizing=False)
    torch.testing.assert_close(net.alarm_probs(**clip), before)
    with torch.no_grad():
        net.alarm_tokens.weight += 1
    assert (net.alarm_probs(**clip) - before).abs().max() > 1e-3
    assert len(net.get_input_embeddings()._forward_hooks) == len(model(name).get_input_embeddings()._forward_hooks)


def test_bfloat16_keeps_the_alarm_modules_in_float32(name: str, clip: dict[str, Any]) -> None:
    net = FAMILIES[name].model.from_pretrained(folder(name), dtype=torch.bfloat16).eval()
    assert {p.dtype for part in (net.alarm_tokens, net.alarm_heads) for p in part.parameters()} == {torch.float32}
    assert net.get_input_embeddings().weight.dtype == torch.bfloat16
    out = net.generate(**clip, max_new_tokens=2, return_dict_in_generate=True)
    assert out.alarm_probs.dtype == torch.float32
    before = net.alarm_tokens.weight.detach().clone()
    labels = torch.tensor([[1, 0]])
    optimizer = torch.optim.SGD(net.alarm_tokens.parameters(), lr=1e-6)
    net(**clip, alarm_labels=labels).loss.backward()
    net.alarm_tokens.weight.grad.clamp_(-1, 1)
    optimizer.step()
    assert not torch.equal(net.alarm_tokens.weight, before)  # in bfloat16 such a step vanishes


def test_autocast_leaves_the_heads_their_precision(name: str, clip: dict[str, Any]) -> None:
    net, base = model(name), model(name, alarm=False)
    with torch.autocast("cpu", torch.bfloat16):
        unless_the_base_fails(lambda: base(**clip))
        out = net(**clip, alarm_labels=torch.tensor([[1, 1]]))
    assert out.alarm_logits.dtype == out.alarm_loss.dtype == torch.float32
    assert out.alarm_logits.isfinite().all()


def test_eager_attention_is_sdpa(name: str, clip: dict[str, Any]) -> None:
    net = model(name)
    probs = []
    for kind in ("sdpa", "eager"):
        net.set_attn_implementation(kind)
        probs.append(net.alarm_probs(**clip))
    torch.testing.assert_close(*probs, **CLOSE)


def test_tied_weights_stay_tied(name: str, clip: dict[str, Any]) -> None:
    config = copy.deepcopy(model(name).config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True
    net = FAMILIES[name].model(config).eval()
    assert net.get_output_embeddings().weight is net.get_input_embeddings().weight
    torch.nn.init.constant_(net.alarm_tokens.weight, 3.0)
    visual, _ = token_ids(config)
    assert (net.get_output_embeddings().weight[visual] != 3.0).all()
    assert net.alarm_probs(**clip).isfinite().all()


def test_compiled_it_says_the_same() -> None:
    net, inputs = model("videollama3"), encode("videollama3", [user("Is it safe?")])
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        mine, its = net(**inputs, use_cache=False), compiled(**inputs, use_cache=False)
    torch.testing.assert_close(its.logits, mine.logits, **CLOSE)
    torch.testing.assert_close(its.alarm_logits, mine.alarm_logits, **CLOSE)


# --- clear errors -----------------------------------------------------------------------------------------------------------------


def test_labels_without_ids_are_an_error(name: str) -> None:
    net, inputs = model(name), encode(name, [user("Is it safe?")])
    embeds = net.get_input_embeddings()(inputs.pop("input_ids"))
    inputs.pop("mm_token_type_ids", None)
    with pytest.raises(ValueError, match="alarm_labels need input_ids"):
        net(**inputs, inputs_embeds=embeds, alarm_labels=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="alarm_probs needs input_ids"):
        net.alarm_probs(**inputs, inputs_embeds=embeds)


def test_a_config_without_ids_is_an_error_that_names_the_mend() -> None:
    family = FAMILIES["videollama3"]
    with pytest.raises(ValueError, match="videosafety build-alarm"):
        family.model(family.config())


def test_overlapping_ids_are_an_error() -> None:
    config = copy.deepcopy(model("videollama3").config)
    config.alarm_tokens_per_modality = 2
    with pytest.raises(ValueError, match="overlap"):
        token_ids(config)


# --- the loss, letter by letter ---------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("found", "labels", "items", "value"),
    [
        pytest.param([[0.0, 0.0]], [[1, 0]], None, 0.2 * 0.6931472, id="chance"),
        pytest.param([[0.0, 0.0]], [[1, UNLABELLED]], None, 0.1 * 0.6931472, id="one label"),
        pytest.param([[0.0, 0.0]], [[UNLABELLED, UNLABELLED]], None, 0.0, id="no label"),
        pytest.param([[NAN, 0.0]], [[1, 1]], None, 0.1 * 0.6931472, id="a missing token is no label"),
        pytest.param([[0.0, 9.0], [0.0, -9.0]], [[1, 1], [0, 0]], None, 0.1 * (0.6931472 + 0.0001234), id="a mean over rows"),
        pytest.param([[0.0, 0.0]], [[1, 0]], [4, 2], 0.1 * 0.6931472 * (1 / 4 + 1 / 2), id="a window of more rows"),
    ],
)
def test_the_alarm_loss(found: list[list[float]], labels: list[list[int]], items: list[int] | None, value: float) -> None:
    given = torch.tensor(found, requires_grad=True)
    loss = alarm_loss(given, torch.tensor(labels), (0.1, 0.1), None if items is None else torch.tensor(items))
    assert loss.item() == pytest.approx(value, rel=1e-4, abs=1e-7)
    loss.backward()
    assert given.grad.isfinite().all()
