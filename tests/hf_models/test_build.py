"""build-alarm: the base's weights bit for bit, new vectors and heads beside them, and one clear line for every base that cannot be used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, VideoLlama3ForConditionalGeneration
from transformers.utils import logging
from typer.testing import CliRunner

from videosafety.hf_models.alarm_core import token_ids
from videosafety.hf_models.build import build_alarm
from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.tiny import build_tiny
from videosafety.main import app

EMBED = "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("plain") / "base", alarm=False)


@pytest.fixture(scope="session")
def built(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_alarm(plain, tmp_path_factory.mktemp("built") / "alarm")


def settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    (folder / name).write_text(json.dumps(settings(folder, name) | values))


def remade(plain: Path, out: Path, make: Callable[[Any], Any]) -> Path:
    """A copy of the plain checkpoint whose model was changed."""
    shutil.copytree(plain, out)
    model = VideoLlama3ForConditionalGeneration.from_pretrained(plain)
    (make(model) or model).save_pretrained(out)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_the_bases_bit_for_bit(family: str, tmp_path: Path) -> None:
    base = build_tiny(tmp_path / "base", family, alarm=False)
    build_alarm(base, tmp_path / "alarm")
    # Names in the file may be those of older releases: what counts is what is loaded.
    before = FAMILIES[family].base_model.from_pretrained(base).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "alarm", trust_remote_code=True).state_dict()
    new = {key for key in after if key.startswith("alarm_")}
    assert new == {"alarm_tokens.weight"} | {f"alarm_heads.{kind}.{part}" for kind in ("visual", "textual") for part in ("weight", "bias")}
    assert after.keys() - new == before.keys()
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before)
    written = settings(tmp_path / "alarm")
    assert written["model_type"] == FAMILIES[family].config.model_type
    assert {key.rpartition(".")[2] for key in written["auto_map"].values()} == {
        FAMILIES[family].config.__name__,
        FAMILIES[family].model.__name__,
    }
    template = (tmp_path / "alarm" / "chat_template.jinja").read_text()
    assert template.count("{%- set visual = '<|visual_alarm|>' -%}") == 1
    assert (FAMILIES[family].own_template or template.endswith((base / "chat_template.jinja").read_text())) is True


@pytest.mark.parametrize(("init", "count"), [("mean", 1), ("mean", 3), ("paper_init", 1), ("paper_init", 2)])
def test_vectors_start_as_asked(plain: Path, tmp_path: Path, init: str, count: int) -> None:
    weights = load_file(build_alarm(plain, tmp_path / "alarm", init=init, per_modality=count) / "model.safetensors")
    mean = weights[EMBED].float().mean(0)
    start = mean if init == "mean" else torch.zeros_like(mean)
    assert mean.abs().max() > 0
    assert torch.equal(weights["alarm_tokens.weight"], start.expand(2 * count, -1))
    assert weights["alarm_heads.visual.weight"].std() > 0
    assert weights["alarm_heads.visual.bias"].item() == 0
    config = settings(tmp_path / "alarm")
    assert (config["alarm_init"], config["alarm_tokens_per_modality"]) == (init, count)
    processor = AutoProcessor.from_pretrained(tmp_path / "alarm", trust_remote_code=True)
    ids = processor.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=True, return_dict=False)
    flat = torch.tensor(ids).flatten().tolist()
    wanted = [range(config[f"{kind}_alarm_token_id"], config[f"{kind}_alarm_token_id"] + count) for kind in ("visual", "textual")]
    assert [i for i in flat if i in wanted[0] or i in wanted[1]] == [*wanted[0], *wanted[1]]


def tie(model: Any) -> None:
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("rows", [371, 384], ids=["no rows to spare", "rows to spare"])
def test_the_matrix_grows_only_where_rows_are_missing(plain: Path, tmp_path: Path, rows: int, tied: bool) -> None:
    def make(model: Any) -> None:
        if tied:
            tie(model)
        model.resize_token_embeddings(rows)

    base = remade(plain, tmp_path / "base", make)
    before = VideoLlama3ForConditionalGeneration.from_pretrained(base).eval()
    out = build_alarm(base, tmp_path / "alarm")
    after = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True).eval()
    assert settings(out)["visual_alarm_token_id"] == 371
    assert (
        after.get_input_embeddings().num_embeddings == max(rows, 373) == after.config.text_config.vocab_size == after.lm_head.out_features
    )
    assert (after.lm_head.weight.data_ptr() == after.get_input_embeddings().weight.data_ptr()) == tied
    ids = torch.tensor([[3, 5, 370, 9]])
    with torch.no_grad():
        assert torch.equal(after(input_ids=ids).logits[..., :rows], before(input_ids=ids).logits)


def test_dtype_is_kept_and_alarm_modules_stay_float32(plain: Path, tmp_path: Path) -> None:
    base = remade(plain, tmp_path / "base", lambda model: model.to(torch.bfloat16))
    weights = load_file(build_alarm(base, tmp_path / "alarm") / "model.safetensors")
    assert {str(tensor.dtype) for key, tensor in weights.items() if key.startswith("alarm_")} == {"torch.float32"}
    assert {str(tensor.dtype) for key, tensor in weights.items() if not key.startswith("alarm_")} == {"torch.bfloat16"}
    assert torch.equal(weights["alarm_tokens.weight"][0], weights[EMBED].float().mean(0))  # not rounded to bfloat16
    assert (weights["alarm_heads.textual.weight"].bfloat16() != weights["alarm_heads.textual.weight"]).any()
    assert settings(tmp_path / "alarm")["dtype"] == "bfloat16"


def test_two_builds_are_the_same_file_and_leave_the_generator_alone(plain: Path, built: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    again, other = build_alarm(plain, tmp_path / "again"), build_alarm(plain, tmp_path / "other", seed=1)
    assert torch.equal(torch.rand(3), wanted)
    sums = [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in (built, again, other)]
    assert sums[0] == sums[1] != sums[2]


def test_generation_says_neither_alarm_tokens_nor_placeholders(built: Path) -> None:
    config = settings(built)
    never = {config[f"{kind}_token_id"] for kind in ("visual_alarm", "textual_alarm", "image", "video")}
    assert never <= set(settings(built, "generation_config.json")["suppress_tokens"])
    assert config["text_config"]["eos_token_id"] not in settings(built, "generation_config.json")["suppress_tokens"]


def test_sampling_settings_without_sampling_do_not_stop_it(plain: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(plain, tmp_path / "base"))
    change(base, "generation_config.json", do_sample=False, temperature=0.1, top_k=1, max_new_tokens=33)
    written = settings(build_alarm(base, tmp_path / "alarm"), "generation_config.json")
    assert written["max_new_tokens"] == 33
    assert written.get("temperature") is written.get("top_k") is None


def test_files_are_flat_safe_and_name_no_place_on_this_machine(built: Path, plain: Path) -> None:
    files = [path for path in built.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {built}
    assert {path.name for path in files if path.suffix == ".py"} == {
        "alarm_core.py",
        "configuration_alarm_videollama3.py",
        "modeling_alarm_videollama3.py",
    }
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not [path.name for path in files if path.suffix != ".safetensors" and str(plain.parent) in path.read_text()]


def test_what_transformers_says_is_as_before(plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        capfd.readouterr()
        build_alarm(plain, tmp_path / "alarm")
        assert capfd.readouterr().err == ""
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()


@pytest.mark.parametrize(
    ("front", "asked", "fields", "sentence"),
    [
        ("license: apache-2.0", None, ["license: apache-2.0"], "weights: apache-2.0."),
        ("license: other\nlicense_name: qwen\nlicense_link: LICENSE", None, ["license: other", "license_name: qwen"], "weights: qwen."),
        ("license: other\nlicense_name: qwen", "mit", ["license: mit"], "weights: mit."),
        ("", None, [], "look it up"),
        ("license: [oops", None, [], "look it up"),
    ],
    ids=["named", "other", "asked for", "none", "a card that is broken"],
)
def test_the_card_names_the_licence(plain: Path, tmp_path: Path, front: str, asked: str | None, fields: list[str], sentence: str) -> None:
    base = Path(shutil.copytree(plain, tmp_path / "base"))
    (base / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    text = (build_alarm(base, tmp_path / "alarm", licence=asked) / "README.md").read_text()
    meta = text.split("---")[1].splitlines()
    assert [line for line in meta if line.startswith("license") and "link" not in line] == fields
    assert sentence in text
    assert "heads are untrained" in text
    assert "trust_remote_code" in text
    assert str(tmp_path) not in text


# --- bases that cannot be used ---------------------------------------------------------------------------------------------------


def drop(folder: Path, key: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[key]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def narrow(folder: Path, key: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[key] = weights[key][:-1].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def apart(folder: Path) -> None:
    """A tokenizer that has the first of two visual tokens already."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens(["<|visual_alarm|>", "something else"], special_tokens=True)
    processor.save_pretrained(folder)


LAYER = "model.vision_model.encoder.layers.1.mlp.fc1.weight"
HOSTILE = [
    pytest.param(shutil.rmtree, {}, "no config.json", id="no such folder"),
    pytest.param(lambda base: (base / "config.json").unlink(), {}, "no config.json", id="no config"),
    pytest.param(lambda base: (base / "config.json").write_text("{"), {}, "no config.json that can be read", id="a broken config"),
    pytest.param(lambda base: change(base, model_type="alarm_video_llama_3"), {}, "an alarm checkpoint already", id="an alarm model"),
    pytest.param(lambda base: change(base, model_type="videollama3_qwen2"), {}, "run videosafety convert first", id="the authors' format"),
    pytest.param(lambda base: change(base, model_type="llama"), {}, "belongs to no family.*--family", id="no family of ours"),
    pytest.param(
        lambda base: change(base, quantization_config={"bits": 4}), {}, "quantised: build from the full-precision", id="quantised"
    ),
    pytest.param(
        lambda base: (base / "config.json").rename(base / "adapter_config.json"), {}, "PEFT adapter: merge it", id="a LoRA adapter"
    ),
    pytest.param(lambda base: None, {"family": "videollama4"}, "unknown family 'videollama4': there are videollama3", id="family unknown"),
    pytest.param(
        lambda base: None, {"family": "qwen3_vl"}, "family videollama3, not qwen3_vl: leave --family out", id="family contradicts"
    ),
    pytest.param(lambda base: change(base, model_type="fork"), {"family": "smolvlm"}, "weights are missing", id="the wrong family"),
    pytest.param(lambda base: change(base, text_config="none"), {}, "does not fit VideoLlama3Config", id="a config of another kind"),
    pytest.param(lambda base: None, {"init": "zeros"}, "unknown init 'zeros': there are mean, paper_init", id="init"),
    pytest.param(lambda base: None, {"per_modality": 0}, "must be 1 or more, got 0", id="no tokens"),
    pytest.param(lambda base: (base / "processor_config.json").unlink(), {}, "no VideoLlama3Processor there", id="no processor"),
    pytest.param(lambda base: (base / "tokenizer.json").unlink(), {}, "no tokenizer there", id="no tokenizer"),
    pytest.param(lambda base: (base / "model.safetensors").unlink(), {}, "the model cannot be loaded", id="no weights"),
    pytest.param(lambda base: (base / "model.safetensors").write_bytes(b"x"), {}, "the model cannot be loaded", id="weights cut off"),
    pytest.param(
        lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), {}, "the model cannot be loaded", id="a pickle"
    ),
    pytest.param(lambda base: drop(base, LAYER), {}, f"1 weights are missing.*{LAYER}", id="a tensor missing"),
    pytest.param(
        lambda base: narrow(base, LAYER), {}, f"1 weights are missing or not of the shape.*{LAYER}", id="a tensor of another shape"
    ),
    pytest.param(
        lambda base: change(base, "generation_config.json", num_beams=1, num_return_sequences=3),
        {},
        "the model cannot be loaded: Greedy methods",
        id="generation settings",
    ),
    pytest.param(apart, {"per_modality": 2}, "do not follow one another", id="tokens in part"),
]


@pytest.mark.parametrize(("harm", "options", "message"), HOSTILE)
def test_a_base_that_cannot_be_used_is_one_clear_line(
    plain: Path, tmp_path: Path, harm: Callable[[Path], Any], options: dict[str, Any], message: str
) -> None:
    base = Path(shutil.copytree(plain, tmp_path / "base"))
    harm(base)
    with pytest.raises(ValueError, match=message) as error:
        build_alarm(base, tmp_path / "alarm", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "alarm").exists()


def test_a_base_without_chat_template_is_refused(tmp_path: Path) -> None:
    base = build_tiny(tmp_path / "base", "qwen2_5_vl", alarm=False)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template: alarm tokens need an instruct checkpoint"):
        build_alarm(base, tmp_path / "alarm")


def test_a_template_with_alarm_tokens_is_refused(plain: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(plain, tmp_path / "base"))
    (base / "chat_template.jinja").write_text("<|visual_alarm|>")
    with pytest.raises(ValueError, match="has alarm tokens already"):
        build_alarm(base, tmp_path / "alarm")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_in_the_way_stays(plain: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "alarm"
    mine = out if kind == "file" else out / "mine"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match="not empty: name a new folder with --out"):
        build_alarm(plain, out)
    assert mine.read_text() == "mine"


def test_an_empty_folder_is_used(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "alarm").mkdir()
    assert (build_alarm(plain, tmp_path / "alarm") / "config.json").exists()


def test_a_fork_of_a_family_needs_its_name_and_its_code_is_never_run(plain: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(plain, tmp_path / "base"))
    (base / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(base, model_type="fork", auto_map={"AutoConfig": "evil.Config", "AutoProcessor": "evil.P", "AutoTokenizer": ["evil.T", None]})
    with pytest.raises(ValueError, match="--family"):
        build_alarm(base, tmp_path / "no")
    out = build_alarm(base, tmp_path / "alarm", family="videollama3")
    assert not (tmp_path / "ran").exists()
    assert "evil" not in (out / "config.json").read_text()
    assert not (out / "evil.py").exists()


def test_the_command(plain: Path, tmp_path: Path) -> None:
    args = ["build-alarm", "--base", str(plain), "--out", str(tmp_path / "alarm"), "--tokens-per-modality", "2", "--init", "paper_init"]
    done = CliRunner().invoke(app, [*args, "--licence", "mit"])
    assert done.exit_code == 0, done.output
    assert "untrained" in done.output
    config = settings(tmp_path / "alarm")
    assert (config["alarm_tokens_per_modality"], config["alarm_init"]) == (2, "paper_init")
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 2
    assert "is not empty: name a new folder with --out" in again.output


def test_the_ids_are_the_tokenizers(built: Path) -> None:
    processor = AutoProcessor.from_pretrained(built, trust_remote_code=True)
    config = FAMILIES["videollama3"].config.from_pretrained(built)
    assert processor.tokenizer.convert_ids_to_tokens([i for kind in token_ids(config) for i in kind]) == [
        "<|visual_alarm|>",
        "<|textual_alarm|>",
    ]
