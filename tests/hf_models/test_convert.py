"""convert: a tiny model laid out as the authors lay theirs out comes back with the same logits; what does not match is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, VideoLlama3ForConditionalGeneration
from transformers.video_utils import VideoMetadata
from typer.testing import CliRunner

from videosafety.hf_models.build import build_alarm
from videosafety.hf_models.convert import convert
from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.tiny import tiny_parts
from videosafety.main import app

Weights = dict[str, torch.Tensor]
HIDDEN = 32


def tiny_model(tied: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model whose numbers are none of a config's defaults: one that is dropped on the way changes the logits."""
    config, _ = tiny_parts("videollama3")
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 50.0}
    config.text_config.rms_norm_eps = 0.3
    config.vision_config.layer_norm_eps = 0.2
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    torch.manual_seed(3)
    model = VideoLlama3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: two that are swapped must show
            parameter += 0.1 * torch.randn_like(parameter)
            parameter.data = parameter.data.to(dtype)  # not model.to(dtype): rotary frequencies stay float32, as in a model that was loaded
    return model.eval()


def their_config(model: Any) -> dict[str, Any]:
    """config.json as transformers 4.46 writes a Videollama3Qwen2Config."""
    text, vision = model.config.text_config, model.config.vision_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "attention_dropout", "hidden_act")
    shared = (
        *names,
        "num_key_value_heads",
        "max_position_embeddings",
        "max_window_layers",
        "rms_norm_eps",
        "initializer_range",
        "vocab_size",
    )
    tower = {name: getattr(vision, name) for name in (*names, "layer_norm_eps", "num_channels", "patch_size")}
    return {name: getattr(text, name) for name in shared} | {
        "architectures": ["Videollama3Qwen2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_videollama3.Videollama3Qwen2Config"},
        "model_type": "videollama3_qwen2",
        "bos_token_id": None,
        "eos_token_id": text.eos_token_id,
        "image_token_index": 7,
        "mm_projector_type": "mlp2x_gelu",
        "rope_scaling": None,
        "rope_theta": text.rope_parameters["rope_theta"],
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": bool(model.config.tie_word_embeddings),
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "transformers_version": "4.46.3",
        "use_token_compression": True,
        "vision_encoder": None,
        "vision_encoder_config": tower | {"model_type": "videollama3_vision_encoder"},
    }


def their_weights(model: Any, nested: bool) -> Weights:
    """The weights under the authors' names: published (model.vision_encoder.*) or as the training code saves them (nested)."""
    tower = "model.vision_encoder.vision_encoder." if nested else "model.vision_encoder."
    parts = {
        "model.vision_model.": tower,
        "model.projector.": "model.mm_projector.",
        "model.language_model.": "model.",
        "lm_head.": "lm_head.",
    }
    out: Weights = {}
    for key, tensor in model.state_dict().items():
        old = next(prefix for prefix in parts if key.startswith(prefix))
        out[parts[old] + key.removeprefix(old)] = tensor.clone()
    return out


def alarm_weights(heads: bool) -> Weights:
    draw = torch.Generator().manual_seed(2)
    shapes = {"visual_alarm_tokens": (1, HIDDEN), "textual_alarm_tokens": (1, HIDDEN)}
    if heads:
        shapes |= {
            f"{kind}_tokens_cls.{part}": (1, HIDDEN) if part == "weight" else (1,)
            for kind in ("visual", "textual")
            for part in ("weight", "bias")
        }
    return {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}


def lay_out(folder: Path, model: Any, nested: bool = False, alarm: Weights | None = None, save: str = "safetensors") -> Path:
    """A checkpoint folder as the authors' code leaves it."""
    folder.mkdir()
    _, processor = tiny_parts("videollama3")
    tokenizer, config = processor.tokenizer, their_config(model)
    weights = their_weights(model, nested)
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]  # a safetensors file of tied weights has one of the two
    if alarm:
        tokenizer.add_tokens(["<|visual_alarm|>", "<|textual_alarm|>"], special_tokens=True)
        ids = tokenizer.convert_tokens_to_ids(["<|visual_alarm|>", "<|textual_alarm|>"])
        config |= {"learnable_tokens": True, "multi_task": len(alarm) > 2, "lambda_1": 0.2, "lambda_2": 0.3}
        config |= {"visual_alarm_token_id": ids[0], "textual_alarm_token_id": ids[1]}
        del config["vision_encoder_config"]  # the training code names the tower only
        config |= {"vision_encoder": str(folder / "tower"), "mm_vision_encoder": str(folder / "tower")}
        (folder / "tower").mkdir()
        (folder / "tower" / "config.json").write_text(json.dumps(their_config(model)["vision_encoder_config"]))
        weights |= {key: tensor.to(model.dtype) for key, tensor in alarm.items()}
    tokenizer.chat_template = "{{ '<image>' }}"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.eos_token_id, "temperature": 0.5, "do_sample": True})
    )
    write(folder, weights, save)
    return folder


def write(folder: Path, weights: Weights, save: str = "safetensors") -> None:
    for file in (*folder.glob("model*"), *folder.glob("pytorch_model*")):
        file.unlink()
    if save == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif save == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names, halves = sorted(weights), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        shards = dict(zip(halves, (names[::2], names[1::2]), strict=True))
        for file, keys in shards.items():
            save_file({key: weights[key] for key in keys}, folder / file, metadata={"format": "pt"})
        index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def inputs(folder: Path, kind: str, trust: bool = False) -> dict[str, torch.Tensor]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust)
    frames = np.random.default_rng(0).integers(0, 255, (4, 56, 84, 3), dtype=np.uint8)
    content: list[dict[str, str]] = [{"type": "text", "text": "Is it safe?"}]
    media: dict[str, Any] = {}
    if kind != "text":
        content.insert(0, {"type": kind})
        metadata = VideoMetadata(total_num_frames=4, fps=1.0, duration=4.0, frames_indices=[0, 1, 2, 3])
        media = (
            {"images": [frames[0]]} if kind == "image" else {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
        )
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(text=[text], **media, return_tensors="pt"))


@pytest.mark.parametrize("save", ["safetensors", "bin", "shards"])
@pytest.mark.parametrize("nested", [False, True], ids=["published", "training"])
def test_logits_are_the_same(tmp_path: Path, nested: bool, save: str) -> None:
    model = tiny_model()
    out = convert(lay_out(tmp_path / "theirs", model, nested, save=save), tmp_path / "ours")
    ours = AutoModelForImageTextToText.from_pretrained(out).eval()
    assert type(ours) is VideoLlama3ForConditionalGeneration
    for kind in ("text", "image", "video"):
        given = inputs(out, kind)
        with torch.no_grad():
            assert torch.equal(ours(**given).logits, model(**given).logits)


def test_a_converted_model_is_a_plain_checkpoint_to_build_from(tmp_path: Path) -> None:
    out = convert(lay_out(tmp_path / "theirs", tiny_model()), tmp_path / "ours")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "video_llama_3"
    assert "auto_map" not in config
    assert not list(out.glob("*.py"))
    assert not list(out.glob("*.bin"))
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.5
    assert "<image>" not in (out / "chat_template.jinja").read_text()
    assert (build_alarm(out, tmp_path / "alarm") / "alarm_core.py").exists()
    assert not [path.name for path in out.iterdir() if path.suffix != ".safetensors" and str(tmp_path) in path.read_text()]


@pytest.mark.parametrize(
    ("tied", "dtype"), [(True, torch.float32), (True, torch.bfloat16), (False, torch.bfloat16)], ids=["tied", "tied bfloat16", "bfloat16"]
)
def test_ties_and_dtype_are_kept(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = tiny_model(tied, dtype)
    out = convert(lay_out(tmp_path / "theirs", model, nested=True), tmp_path / "ours")
    ours = AutoModelForImageTextToText.from_pretrained(out).eval()
    assert ours.dtype == dtype
    assert (ours.lm_head.weight.data_ptr() == ours.get_input_embeddings().weight.data_ptr()) == tied
    given = inputs(out, "video")
    with torch.no_grad():
        assert torch.equal(ours(**given).logits, model(**given).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [True, False], ids=["with heads", "without heads"])
@pytest.mark.parametrize("nested", [True, False], ids=["training", "published"])
def test_a_training_checkpoint_becomes_an_alarm_checkpoint(tmp_path: Path, nested: bool, heads: bool, dtype: torch.dtype) -> None:
    model, alarm = tiny_model(dtype=dtype), alarm_weights(heads)
    out = convert(lay_out(tmp_path / "theirs", model, nested, alarm), tmp_path / "ours")
    ours = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True).eval()
    assert type(ours).__name__ == FAMILIES["videollama3"].model.__name__
    assert (ours.dtype, ours.alarm_tokens.weight.dtype) == (dtype, torch.float32)
    assert list(ours.config.alarm_loss_weights) == [0.2, 0.3]

    # What their forward does: embed, put the vectors where the tokens stand, run; heads on the final states at those places.
    given = inputs(out, "video", trust=True)
    ids = given["input_ids"][0].tolist()
    places = [ids.index(ours.config.visual_alarm_token_id), ids.index(ours.config.textual_alarm_token_id)]
    assert ids.count(ids[places[0]]) == ids.count(ids[places[1]]) == 1
    vectors = torch.cat([alarm["visual_alarm_tokens"], alarm["textual_alarm_tokens"]]).to(dtype)

    def put(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, places] = vectors
        return output

    with torch.no_grad():
        handle = model.get_input_embeddings().register_forward_hook(put)
        states = model.model(**given).last_hidden_state
        wanted = model.lm_head(states)
        handle.remove()
        found = ours(**given)
    assert torch.equal(found.logits, wanted)
    card = (out / "README.md").read_text()
    assert ("no heads" in card) == (not heads)
    if heads:
        parts = [alarm[f"{kind}_tokens_cls.{part}"].to(dtype).float() for kind in ("visual", "textual") for part in ("weight", "bias")]
        logits = [states[0, place].float() @ parts[2 * n][0] + parts[2 * n + 1][0] for n, place in enumerate(places)]
        assert torch.allclose(found.alarm_logits[0], torch.stack(logits), atol=1e-5)
    else:
        assert ours.alarm_heads.visual.weight.std() > 0
        assert ours.alarm_heads.visual.bias.item() == 0


def test_the_processor_has_the_authors_pixels_and_frames(tmp_path: Path) -> None:
    theirs = lay_out(tmp_path / "theirs", tiny_model())
    pixels = {"min_tokens": 4, "max_tokens": 100, "patch_size": 14, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (theirs / "preprocessor_config.json").write_text(json.dumps(pixels))
    frames = {"image_merge_size": 1, "video_merge_size": 2, "fps": 2, "max_frames": 90}
    (theirs / "processor_config.json").write_text(json.dumps(frames))
    processor = AutoProcessor.from_pretrained(convert(theirs, tmp_path / "ours"))
    image, video = processor.image_processor, processor.video_processor
    assert [dict(part.size) for part in (image, video)] == [
        {"shortest_edge": 4 * 14**2, "longest_edge": 100 * 14**2},
        {"shortest_edge": 4 * 28**2, "longest_edge": 100 * 28**2},
    ]
    assert (image.merge_size, video.merge_size, video.fps, video.max_frames) == (1, 2, 2, 90)
    assert list(image.image_std) == list(video.image_std) == [0.25] * 3
    assert processor.image_token_id != processor.video_token_id


# --- what is refused -------------------------------------------------------------------------------------------------------------


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def rewrite(change_weights: Callable[[Weights], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        weights = their_weights(tiny_model(), nested=True) | alarm_weights(heads=True)
        changed = change_weights(weights)
        write(folder, changed if isinstance(changed, dict) else weights)

    return harm


def evil(folder: Path) -> None:
    """A pickle that runs code when it is loaded as pickles are."""

    class Call:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder.parent / "ran",))

    write(folder, {})
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"lm_head.weight": Call()}, file)


def cut_shard(folder: Path) -> None:
    write(folder, their_weights(tiny_model(), nested=True), "shards")
    (folder / "model-00002-of-00002.safetensors").unlink()


def zero(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "global_step78").mkdir()


NESTED = "model.vision_encoder.vision_encoder."
FC1, NORM = f"{NESTED}encoder.layers.0.mlp.fc1.weight", f"{NESTED}post_layernorm.weight"
HOSTILE = [
    pytest.param(shutil.rmtree, "neither a folder nor a repository", id="no such folder"),
    pytest.param(lambda f: (f / "config.json").unlink(), "config.json cannot be read", id="no config"),
    pytest.param(lambda f: change(f, model_type="video_llama_3"), "a native one needs no converting", id="native already"),
    pytest.param(
        lambda f: change(f, model_type="videollama3_mistral"), "'videollama3_mistral': convert takes", id="another language model"
    ),
    pytest.param(lambda f: [file.unlink() for file in f.glob("tokenizer*")], "no tokenizer.json or vocab.json: copy", id="no tokenizer"),
    pytest.param(
        rewrite(lambda w: w.pop(FC1)), "1 missing: model.vision_model.encoder.layers.0.mlp.fc1.weight", id="a vision tensor missing"
    ),
    pytest.param(
        rewrite(lambda w: {key: value for key, value in w.items() if NESTED not in key}),
        "missing: model.vision_model",
        id="no vision tower",
    ),
    pytest.param(rewrite(lambda w: w.update({FC1: w[FC1][:-1].clone()})), "1 of another shape.*fc1.weight .*not ", id="another shape"),
    pytest.param(
        rewrite(lambda w: w.update({NORM.replace(NESTED, "model.vision_encoder."): w[NORM].clone()})), "in both layouts", id="both layouts"
    ),
    pytest.param(
        rewrite(lambda w: w.update({f"{NESTED}encoder.layers.2.mlp.fc1.bias": torch.zeros(3)})), "1 unknown: .*layers.2", id="a layer more"
    ),
    pytest.param(rewrite(lambda w: w.update({"model.mm_projector.weight": torch.zeros(3)})), "1 unknown: model.projector", id="projector"),
    pytest.param(
        rewrite(lambda w: w.update({"sampler.weight": torch.zeros(3)})), "belong to no part of VideoLLaMA3: sampler", id="a part more"
    ),
    pytest.param(
        rewrite(lambda w: {f"model.{key}": value for key, value in w.items()}), "match|no part of VideoLLaMA3", id="a wrapper's prefix"
    ),
    pytest.param(rewrite(lambda w: w.pop("lm_head.weight")), "1 missing: lm_head.weight", id="no head of an untied model"),
    pytest.param(lambda f: change(f, tie_word_embeddings=True), "ties lm_head .* two different matrices", id="tied, yet two matrices"),
    pytest.param(rewrite(lambda w: w.pop("visual_alarm_tokens")), "only in part", id="one vector"),
    pytest.param(rewrite(lambda w: w.pop("textual_tokens_cls.bias")), "of the heads all or none", id="half a head"),
    pytest.param(
        rewrite(lambda w: {key: value for key, value in w.items() if "alarm_tokens" not in key}), "only in part", id="heads without vectors"
    ),
    pytest.param(rewrite(lambda w: w.update(visual_alarm_tokens=torch.zeros(0))), "gather a ZeRO-3", id="a ZeRO-3 shard"),
    pytest.param(
        rewrite(lambda w: w.update({key: torch.zeros(1, 16) for key in ("visual_alarm_tokens", "textual_alarm_tokens")})),
        "1 of another shape: alarm_tokens.weight",
        id="vectors of another width",
    ),
    pytest.param(lambda f: change(f, visual_alarm_token_id=5), "take the tokenizer saved with the checkpoint", id="ids that differ"),
    pytest.param(lambda f: change(f, mm_vision_encoder=..., vision_encoder=...), "names no vision encoder", id="no vision config"),
    pytest.param(lambda f: shutil.rmtree(f / "tower"), "--vision .*neither a folder nor a repository", id="the tower is not there"),
    pytest.param(lambda f: change(f, hidden_size=48), "of another shape", id="a config of another model"),
    pytest.param(lambda f: (f / "model.safetensors").write_bytes(b"x"), "cannot be read as tensors only", id="cut off"),
    pytest.param(lambda f: (f / "model.safetensors").unlink(), "no model.safetensors and no pytorch_model.bin", id="no weights"),
    pytest.param(
        lambda f: (f / "generation_config.json").write_text('{"num_return_sequences": 3}'),
        "generation_config.json cannot be",
        id="settings",
    ),
    pytest.param(zero, "only DeepSpeed shards: run its zero_to_fp32.py", id="DeepSpeed shards"),
    pytest.param(cut_shard, "lacks model-00002-of-00002.safetensors", id="a shard missing"),
    pytest.param(evil, "cannot be read as tensors only", id="a pickle with code"),
]


@pytest.mark.parametrize(("harm", "message"), HOSTILE)
def test_what_does_not_match_is_refused_in_one_line(tmp_path: Path, harm: Callable[[Path], Any], message: str) -> None:
    theirs = lay_out(tmp_path / "theirs", tiny_model(), nested=True, alarm=alarm_weights(heads=True))
    harm(theirs)
    with pytest.raises(ValueError, match=message) as error:
        convert(theirs, tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()
    assert not (tmp_path / "ran").exists()


def test_the_tower_can_be_named(tmp_path: Path) -> None:
    theirs = lay_out(tmp_path / "theirs", tiny_model(), nested=True, alarm=alarm_weights(heads=False))
    (theirs / "tower").rename(tmp_path / "elsewhere")
    assert (convert(theirs, tmp_path / "ours", vision=tmp_path / "elsewhere") / "config.json").exists()


def test_the_command(tmp_path: Path) -> None:
    args = ["convert", "--source", str(lay_out(tmp_path / "theirs", tiny_model())), "--out", str(tmp_path / "ours")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "native VideoLlama3 checkpoint" in done.output.replace("\n", " ")
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 2
    assert "is not empty" in again.output
