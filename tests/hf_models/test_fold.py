"""fold: the plain checkpoint computes what the alarm model does, needs no code of ours, and its heads read the same probabilities."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, VideoLlama3ForConditionalGeneration
from transformers.video_utils import VideoMetadata
from typer.testing import CliRunner

from videosafety.hf_models.alarm_core import token_ids
from videosafety.hf_models.build import build_alarm
from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.fold import HEADS_FILE, READER, fold
from videosafety.hf_models.tiny import build_tiny
from videosafety.main import app


def tuned(folder: Path, scale: float = 3.0) -> Path:
    """As after training: vectors and heads that are neither the mean nor near zero."""
    weights = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(1)
    for key in sorted(key for key in weights if key.startswith("alarm_")):
        weights[key] = (scale * torch.randn(weights[key].shape, generator=draw)).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(build_tiny(tmp_path_factory.mktemp("fold") / "alarm"))


@pytest.fixture(scope="session")
def folded(alarm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fold(alarm, tmp_path_factory.mktemp("fold") / "plain")


def reader(folder: Path) -> Any:
    """alarm_probs() of the script as it lies beside the checkpoint."""
    spec = importlib.util.spec_from_file_location("reader", folder / READER.name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.alarm_probs


def prompts(folder: Path, family: str, kinds: tuple[str, ...] = ("text", "image")) -> list[dict[str, torch.Tensor]]:
    """Inputs of a text prompt, and of one with an image and one with a video, rendered with the folder's own template."""
    processor = AutoProcessor.from_pretrained(folder)
    frames = np.random.default_rng(0).integers(0, 255, (4, 56, 56, 3), dtype=np.uint8)
    made = []
    for kind in kinds:
        content = [{"type": kind}, {"type": "text", "text": "Is it safe?"}] if kind != "text" else [{"type": "text", "text": "Is it safe?"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=processor.chat_template, add_generation_prompt=True
        )
        media: dict[str, Any] = {"images": [frames[0]]} if kind == "image" else {}
        if kind == "video":
            metadata = VideoMetadata(total_num_frames=4, fps=1.0, duration=4.0, frames_indices=[0, 1, 2, 3])
            media = {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
        made.append(dict(processor(text=[text], **media, return_tensors="pt")))
    return made


def agree(alarm: Path, plain: Path, family: str, kinds: tuple[str, ...] = ("text", "image"), but: list[int] | None = None) -> None:
    """Logits, generated ids and probabilities of the two are equal bit for bit; logits but for the tokens in `but`, which must differ."""
    first = FAMILIES[family].model.from_pretrained(alarm).eval()
    second = AutoModelForImageTextToText.from_pretrained(plain).eval()
    assert type(second) is FAMILIES[family].base_model
    visual, textual = token_ids(first.config)
    for inputs in prompts(plain, family, kinds):
        assert [int((inputs["input_ids"] == token).sum()) for token in (*visual, *textual)] == [1] * len(visual + textual)
        with torch.no_grad():
            one, two = first(**inputs).logits, second(**inputs).logits
            states = second.base_model(**inputs)[0]
        others = [i for i in range(one.shape[-1]) if i not in (but or [])]
        assert torch.equal(one[..., others], two[..., others])
        assert but is None or (one[..., but] != two[..., but]).all()
        assert torch.equal(reader(plain)(plain / HEADS_FILE, inputs["input_ids"], states), first.alarm_probs(**inputs))
        ids = [model.generate(**inputs, max_new_tokens=5, do_sample=False) for model in (first, second)]
        assert torch.equal(*ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_is_the_alarm_model(family: str, tmp_path: Path) -> None:
    alarm = tuned(build_tiny(tmp_path / "alarm", family))
    agree(alarm, fold(alarm, tmp_path / "plain"), family)


def test_with_a_video(alarm: Path, folded: Path) -> None:
    agree(alarm, folded, "videollama3", ("video",))


@pytest.mark.parametrize(
    ("tied", "dtype", "count"),
    [(True, torch.float32, 1), (True, torch.float32, 2), (False, torch.float32, 3), (False, torch.bfloat16, 1), (True, torch.bfloat16, 1)],
    ids=["tied", "tied, two a modality", "three a modality", "bfloat16", "tied, bfloat16"],
)
def test_every_kind_of_embedding(tmp_path: Path, tied: bool, dtype: torch.dtype, count: int) -> None:
    base = build_tiny(tmp_path / "base", alarm=False)
    model = VideoLlama3ForConditionalGeneration.from_pretrained(base).to(dtype)
    if tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    model.save_pretrained(base)
    alarm = tuned(build_alarm(base, tmp_path / "alarm", per_modality=count))
    plain = fold(alarm, tmp_path / "plain")
    visual, textual = token_ids(FAMILIES["videollama3"].config.from_pretrained(alarm))
    agree(alarm, plain, "videollama3", ("text", "video"), but=visual + textual if tied else None)
    loaded = AutoModelForImageTextToText.from_pretrained(plain)
    assert (loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()) == tied
    assert loaded.dtype == dtype
    assert load_file(plain / HEADS_FILE)["visual.weight"].dtype == torch.float32
    assert ("the embeddings are tied" in (plain / "README.md").read_text()) == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_ours_is_left_in_it(family: str, tmp_path: Path) -> None:
    alarm = build_tiny(tmp_path / "alarm", family)
    plain = fold(alarm, tmp_path / "plain")
    assert {path.name for path in plain.iterdir() if path.suffix not in (".json", ".jinja")} == {
        "README.md",
        "model.safetensors",
        HEADS_FILE,
        READER.name,
    }
    for file in plain.glob("*.json"):
        if file.name != "tokenizer.json":
            assert not [word for word in ("auto_map", "alarm_", "Alarm", str(tmp_path)) if word in file.read_text()], file.name
    config = json.loads((plain / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (FAMILIES[family].base_type, [FAMILIES[family].base_model.__name__])
    assert not [key for key in load_file(plain / "model.safetensors") if "alarm" in key]
    processors = AutoProcessor.from_pretrained(alarm, trust_remote_code=True), AutoProcessor.from_pretrained(plain)
    assert processors[0].chat_template == processors[1].chat_template
    assert type(processors[1]).__name__ == f"{FAMILIES[family].prefix}Processor"
    suppressed = json.loads((plain / "generation_config.json").read_text())["suppress_tokens"]
    assert set(processors[1].tokenizer.convert_tokens_to_ids(["<|visual_alarm|>", "<|textual_alarm|>"])) <= set(suppressed)


def test_the_code_of_the_alarm_checkpoint_is_not_run(alarm: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(alarm, tmp_path / "copy"))
    for file in copy.glob("*.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    fold(copy, tmp_path / "plain")
    assert not (tmp_path / "ran").exists()


def test_the_reader_needs_only_torch_and_safetensors(folded: Path) -> None:
    tree = ast.parse((folded / READER.name).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"torch", "safetensors"}
    assert len((folded / READER.name).read_text().splitlines()) <= 25
    lines = ["import sys, torch, alarm_heads_reader as r", "ids = torch.tensor([[1, 2, 3]])"]
    lines += ["print(r.alarm_probs('alarm_heads.safetensors', ids, torch.zeros(1, 3, 32)).tolist(), 'transformers' in sys.modules)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=folded, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[nan, nan]] False"  # no token, no probability


def test_the_reader_takes_each_row_for_itself(alarm: Path, folded: Path) -> None:
    with safe_open(folded / HEADS_FILE, "pt") as heads:
        visual, textual = (int(heads.metadata()[f"{kind}_alarm_token_id"]) for kind in ("visual", "textual"))
    ids = torch.tensor([[5, visual, 6, textual], [0, 0, visual, 7], [textual, 5, 5, 5], [1, 2, 3, 4]])
    states = torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(0))
    probs = reader(folded)(folded / HEADS_FILE, ids, states)
    model = FAMILIES["videollama3"].model.from_pretrained(alarm)
    with torch.no_grad():
        assert torch.allclose(probs, model.alarm_heads(ids, states).sigmoid(), equal_nan=True, atol=1e-6)
    assert probs.isnan().tolist() == [[False, False], [False, True], [True, False], [True, True]]


def without(folder: Path, *keys: str) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if key not in keys}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(shutil.rmtree, "neither a folder nor a repository", id="no such folder"),
        pytest.param(lambda f: (f / "config.json").unlink(), "config.json cannot be read", id="no config"),
        pytest.param(lambda f: (f / "adapter_config.json").write_text("{}"), "PEFT adapter: merge it", id="an adapter"),
        pytest.param(
            lambda f: change(f, model_type="video_llama_3"), "takes an alarm checkpoint, as build-alarm makes", id="a plain model"
        ),
        pytest.param(lambda f: change(f, model_type="alarm_llama"), "takes an alarm checkpoint, as build-alarm makes", id="no family"),
        pytest.param(lambda f: change(f, visual_alarm_token_id=None), "has no visual_alarm_token_id", id="no ids"),
        pytest.param(lambda f: change(f, alarm_tokens_per_modality=2), "alarm token ids overlap", id="ids that overlap"),
        pytest.param(lambda f: without(f, "alarm_tokens.weight"), "lacks the vectors of its 2 alarm tokens", id="no vectors"),
        pytest.param(lambda f: without(f, "alarm_heads.textual.bias"), "or a head: the folder is broken", id="half a head"),
        pytest.param(lambda f: without(f, "model.language_model.norm.weight"), "1 weights are missing", id="a tensor missing"),
        pytest.param(lambda f: (f / "model.safetensors").write_bytes(b"x"), "cannot be read as tensors", id="weights cut off"),
        pytest.param(lambda f: (f / "model.safetensors").unlink(), "no model.safetensors", id="no weights"),
    ],
)
def test_what_cannot_be_folded_is_one_clear_line(alarm: Path, tmp_path: Path, harm: Callable[[Path], Any], message: str) -> None:
    copy = Path(shutil.copytree(alarm, tmp_path / "copy"))
    harm(copy)
    with pytest.raises(ValueError, match=message) as error:
        fold(copy, tmp_path / "plain")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "plain").exists()


def test_the_command(alarm: Path, tmp_path: Path) -> None:
    args = ["fold", "--model", str(alarm), "--out", str(tmp_path / "plain")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert HEADS_FILE in done.output.replace("\n", "")
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 2
    assert "is not empty" in again.output
