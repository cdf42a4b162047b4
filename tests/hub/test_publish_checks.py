"""What `videosafety publish model` refuses before anything is sent: one hostile folder a row. No network, no server."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from model_cases import REPO, folder, made  # noqa: F401

from videosafety.hf_models.families import FAMILIES
from videosafety.hub_cards import check
from videosafety.hub_cards.publish import CODE, plan
from videosafety.hub_cards.upload import PublishError


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(PublishError) as error:
        plan(folder, REPO, **({"licence": "mit"} | options))  # type: ignore[arg-type]
    return str(error.value)


def test_a_clean_checkpoint_passes(folder: Path) -> None:
    found = plan(folder, REPO, licence="mit")
    assert set(found.files) == {path.name for path in folder.iterdir()}
    assert (found.foreign, found.left_out, found.warnings) == ((), (), ())
    assert found.code == ("alarm_core.py", "configuration_alarm_videollama3.py", "modeling_alarm_videollama3.py")


# --- pickles, archives, links -----------------------------------------------------------------------------------------------------------


def _torch_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "x")


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "pytorch_model.bin": ("pytorch_model.bin", _torch_zip, "is a pickle"),
    "optimizer state": ("checkpoint-5/optimizer.pt", lambda p: p.write_bytes(b"x"), "is a pickle"),
    "training_args.bin": ("training_args.bin", lambda p: p.write_bytes(b"x"), "is a pickle"),
    "random state": ("rng_state.pth", lambda p: p.write_bytes(b"x"), "is a pickle"),
    "upper case": ("MODEL.PKL", lambda p: p.write_bytes(b"x"), "is a pickle"),
    "a pickle in disguise": ("notes.txt", lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is a pickle"),
    "torch.save in disguise": ("weights.dat", _torch_zip, "is a pickle"),
    "an archive": ("logs.zip", _zip, "is an archive"),
    "compressed": ("log.txt.gz", lambda p: p.write_bytes(b"\x1f\x8b"), "is an archive"),
    "answers of an evaluation": ("2026_samples_vsb_hh.jsonl", lambda p: p.write_text("{}"), "holds queries and answers"),
}


@pytest.mark.parametrize(("name", "write", "says"), FILES.values(), ids=FILES.keys())
def test_files_that_have_no_place_beside_weights(name: str, write: Callable[[Path], object], says: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    write(folder / name)
    told = refusal(folder)
    assert f"{name}: {says}" in told
    assert f"--exclude {Path(name).name}" in told
    assert name in plan(folder, REPO, licence="mit", exclude=[Path(name).name]).left_out


UNASKED = {
    "logged completions": ("completions/completions_00010.parquet", "holds rows"),
    "rows of a set": ("rows.jsonl", "holds rows"),
    "a table": ("logs/Answers.CSV", "holds rows"),
    "a clip": ("samples/clip.mp4", "holds pictures or sound"),
    "a frame": ("frame.PNG", "holds pictures or sound"),
    "a recording": ("speech.wav", "holds pictures or sound"),
}


@pytest.mark.parametrize(("name", "says"), UNASKED.values(), ids=UNASKED.keys())
def test_rows_and_media_go_up_only_where_they_are_named(name: str, says: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    told = refusal(folder)
    assert f"{name}: {says}" in told
    assert f"--include {Path(name).name}" in told
    assert name in plan(folder, REPO, licence="mit", exclude=[Path(name).name]).left_out
    assert name in plan(folder, REPO, licence="mit", include=[Path(name).name]).files


def test_answers_of_an_evaluation_cannot_be_named(folder: Path) -> None:
    (folder / "2026_samples_vsb_hh.jsonl").write_text("{}")
    assert len(refusal(folder, include=["*.jsonl"]).splitlines()) == 2


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    (folder / "a.pt").write_bytes(b"x")
    (folder / "b.txt").write_text("hf_" + "a1B2" * 9)
    assert len(refusal(folder).splitlines()) == 3


@pytest.mark.parametrize("inside", [False, True])
def test_links(inside: bool, folder: Path, tmp_path: Path) -> None:
    target = folder / "config.json" if inside else tmp_path / "secret.txt"
    target.write_text(target.read_text() if inside else "s")
    (folder / "linked.json").symlink_to(target)
    if inside:
        assert "linked.json" in plan(folder, REPO, licence="mit").files
    else:
        assert "linked.json is a link that leads out of the folder" in refusal(folder)


def test_links_to_folders_are_not_entered(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (folder / "sub").symlink_to(tmp_path / "out")
    assert "leads out of the folder" in refusal(folder)


def test_what_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert "pipe is neither a file nor a folder" in refusal(folder)


def test_hidden_files_stay_here(folder: Path) -> None:
    for name in (".env", ".git/config", ".gitignore", "sub/.cache/x", "__pycache__/a.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("HF_TOKEN=hf_" + "a1B2" * 9)
    found = plan(folder, REPO, licence="mit")
    assert set(found.left_out) == {
        ".env",
        ".git",
        ".git/config",
        ".gitignore",
        "sub/.cache",
        "sub/.cache/x",
        "__pycache__",
        "__pycache__/a.pyc",
    }


# --- secrets ----------------------------------------------------------------------------------------------------------------------------

TOKEN = "hf_" + "a1B2" * 9
LEAKS = {
    "Hugging Face": (f"logged in with {TOKEN}", "a Hugging Face token"),
    "OpenAI": ("client = OpenAI('sk-" + "proj-Ab1_" * 4 + "')", "an API key"),
    "AWS": ("aws_access_key_id = AKIA" + "ABCDEFGH" * 2, "an AWS key"),
    "GitHub": ("git clone https://ghp_" + "a" * 36 + "/x", "a GitHub token"),
    "Google": ("key=AIza" + "b" * 35, "a Google API key"),
    "Slack": ("xoxb-" + "1234567890-abc", "a Slack token"),
    "private key": ("-----BEGIN " + "RSA PRIVATE KEY-----", "a private key"),
    "Groq": ("gsk_" + "Ab1" * 17, "a Groq key"),
    "xAI": ("xai-" + "Ab1" * 27, "an xAI key"),
    "GitLab": ("glpat-" + "Ab1_-" * 4, "a GitLab token"),
    "bearer": ("Authorization: Bearer " + "Ab1." * 6, "a bearer token"),
    "JWT": ("eyJ" + "hbGciOiJIUzI1" + ".eyJ" + "zdWIiOiIxMjM0" + ".sig", "a signed token"),
    "address": ("pip install https://me:hunter2" + "@example.org/x", "a password in an address"),
    "W&B in the environment": ("WANDB_API_KEY=" + "0123456789abcdef" * 2, "an assigned secret"),
    "JSON": ('{"api_key": "' + "Zx81" * 6 + '"}', "an assigned secret"),
}


@pytest.mark.parametrize(("text", "what"), LEAKS.values(), ids=LEAKS.keys())
def test_secrets_are_found_and_not_repeated(text: str, what: str, folder: Path) -> None:
    (folder / "logs").mkdir()
    (folder / "logs" / "train.log").write_text(f"step 1\nstep 2\n{text}\n")
    told = refusal(folder)
    assert f"logs/train.log, line 3: holds {what}" in told
    secret = max(text.replace("'", " ").replace('"', " ").split(), key=len)
    assert secret not in told


PLACES: dict[str, Callable[[Path], object]] = {
    "binary log": lambda f: (f / "events.out.tfevents.1").write_bytes(b"\0\1\2" + TOKEN.encode() + b"\0"),
    "safetensors metadata": lambda f: _with_metadata(f / "model.safetensors", {"note": TOKEN}),
    "UTF-16": lambda f: (f / "notes.txt").write_text(f"token\n{TOKEN}\n", encoding="utf-16"),
    "UTF-16, big end first": lambda f: (f / "notes.txt").write_text(f"token {TOKEN}", encoding="utf-16-be"),
    "beyond the first block": lambda f: (f / "long.log").write_text("x" * (check.BLOCK - 10) + "\n" + TOKEN),
    "across two blocks": lambda f: (f / "long.log").write_text("x" * (check.BLOCK - 10) + " " + TOKEN + "\n" * 9),
    "the name of a file": lambda f: (f / f"{TOKEN}.txt").write_text("x"),
    "the card": lambda f: (f / "README.md").write_text(f"# Model\nToken {TOKEN}\n"),
}


@pytest.mark.parametrize("hide", PLACES.values(), ids=PLACES.keys())
def test_secrets_are_found_wherever_they_are(hide: Callable[[Path], object], folder: Path) -> None:
    hide(folder)
    told = refusal(folder)
    assert "holds a" in told
    assert told.count("a Hugging Face token") + told.count("holds a secret") == 1
    assert TOKEN not in told


def _with_metadata(path: Path, metadata: dict[str, str]) -> None:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(json.loads(data[8 : 8 + size]) | {"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def test_secrets_of_this_environment_are_found_whatever_their_form(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery-staple")
    (folder / "notes.txt").write_text("it is correct-horse-battery-staple")
    assert "holds a secret of this environment" in refusal(folder)


HARMLESS = {
    "masked by transformers": '{"hub_token": "<HUB_TOKEN>", "push_to_hub_token": "<PUSH_TO_HUB_TOKEN>"}',
    "special tokens": '{"eos_token": "<|endoftext_of_the_prompt|>", "pad_token": "end_of_sentence_token"}',
    "numbers": '{"image_token_id": 12345678901234567, "api_version": "2026-11-21"}',
    "names": "from videosafety.hf_models import build  # hf_models_and_other_long_names, risk-assessment-of-everything-here",
    "a placeholder": "export HF_TOKEN=$YOUR_TOKEN_HERE; https://user:$PASSWORD@host; https://huggingface.co/a/b",
    "words": "the bearer responsibilities-of-everyone, xai-explanations, gsk_kernels",
    "a hash": "sha256: " + "0123456789abcdef" * 4,
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_is_no_secret(text: str, folder: Path) -> None:
    (folder / "notes.txt").write_text(text)
    plan(folder, REPO, licence="mit")


@pytest.mark.parametrize("path", ["/home/jane/models", "/Users/jane/x", "C:\\\\Users\\\\jane", "/root/run"])
def test_home_folders_are_a_warning(path: str, folder: Path) -> None:
    (folder / "train.log").write_text(f"start\nloading {path}\nand {path}\n")
    (warning,) = plan(folder, REPO, licence="mit").warnings
    assert warning.startswith("train.log, line 2: holds a path of a home folder, 2 times")
    assert "jane" not in warning


# --- licence ----------------------------------------------------------------------------------------------------------------------------

OWN = "---\nlicense: {}\n---\n# Mine\n"
LICENCES = {
    "none anywhere": (None, None, "does not say under which licence"),
    "TRL's placeholder": (None, "license", "does not say under which licence"),
    "not as the Hub writes it": ("Apache 2.0", None, "such as apache-2.0"),
    "other without a name": (None, "other", "license_name"),
    "other with a name alone": (None, "other\nlicense_name: mine", "LICENSE"),
}


@pytest.mark.parametrize(("option", "front", "says"), LICENCES.values(), ids=LICENCES.keys())
def test_no_licence(option: str | None, front: str | None, says: str, folder: Path) -> None:
    (folder / "README.md").write_text(OWN.format(front) if front else "# Mine\n")
    assert says in refusal(folder, licence=option)


def test_a_licence_of_ones_own(folder: Path) -> None:
    (folder / "README.md").write_text(OWN.format("other\nlicense_name: mine\nlicense_link: https://example.org"))
    data = ModelCard(plan(folder, REPO).card).data
    assert (data.license, data.license_name, data.license_link) == ("other", "mine", "https://example.org")


# --- weights ----------------------------------------------------------------------------------------------------------------------------


def _index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-7])


def _adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "a missing shard": (_index, "no model-00002-of-00002.safetensors, which its index names"),
    "cut short": (_cut, "bytes where its header says"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "is no safetensors file"),
    "a text": (lambda f: (f / "model.safetensors").write_text("<html>not found</html>"), "is no safetensors file"),
    "an LFS pointer": (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"), "is no safetensors"),
    "an adapter alone": (_adapter, "merge it into its base first"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer_config.json").unlink(), "no tokenizer_config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
}


@pytest.mark.parametrize(("harm", "says"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_a_checkpoint_that_is_not_whole(harm: Callable[[Path], object], says: str, folder: Path) -> None:
    harm(folder)
    assert says in refusal(folder)


def test_no_folder(tmp_path: Path) -> None:
    assert "is no folder" in refusal(tmp_path / "gone")


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "a b/c", ""])
def test_no_repository(repo: str, folder: Path) -> None:
    with pytest.raises(PublishError, match="give ORG/NAME"):
        plan(folder, repo, licence="mit")


# --- code -------------------------------------------------------------------------------------------------------------------------------


def _config(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return write


def _more(text: str, name: str = "alarm_core.py") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + f"\n\n{text}\n")


def _map(place: str) -> Callable[[Path], object]:
    return _config(lambda config: config["auto_map"].update({"AutoModel": place}))  # type: ignore[attr-defined]


MODELING = "modeling_alarm_videollama3"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no auto_map": (_config(lambda config: config.pop("auto_map")), "model_type alarm_video_llama_3 needs code"),
    "a missing file": (lambda f: (f / f"{MODELING}.py").unlink(), f"there is no {MODELING}.py"),
    "a missing import": (lambda f: (f / "alarm_core.py").unlink(), "imports .alarm_core, and there is no alarm_core.py"),
    "an unknown class": (_map(f"{MODELING}.Nobody"), f"which {MODELING}.py does not define"),
    "no module": (_map("Nobody"), "there is no Nobody.py"),
    "another repository": (_map(f"a/b--{MODELING}.Model"), "names code of another repository"),
    "a processor's code": (
        lambda f: (f / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "processing_x.X"}}'),
        "there is no processing_x.py",
    ),
    "syntax": (_more("def f(:"), "is no Python"),
    "os": (_more("import os"), "imports os"),
    "subprocess inside a function": (_more("def f():\n    from subprocess import run"), "imports subprocess"),
    "requests, late": (_more("import torch, requests"), "imports requests"),
    "the hub": (_more("from huggingface_hub import hf_hub_download"), "imports huggingface_hub"),
    "this package": (_more("import videosafety.hf_models"), "imports videosafety"),
    "open": (_more("def f():\n    return open('x')"), "uses open"),
    "eval": (_more("def f():\n    return eval('x')"), "uses eval"),
    "torch.load": (_more("def f():\n    return torch.load('x')"), "uses torch.load"),
    "torch.hub": (_more("def f():\n    return torch.hub.load('x', 'y')"), "uses torch.hub"),
    "work at import": (_more("print('hello')"), "does something when it is imported"),
    "work in a class": (_more("class A:\n    x = dict()"), "does something when it is imported"),
    "a loop": (_more("for n in []:\n    pass"), "does something when it is imported"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_code_that_is_broken_or_not_clean(harm: Callable[[Path], object], says: str, folder: Path) -> None:
    harm(folder)
    assert says in refusal(folder)


def test_code_in_a_file_of_its_own_that_is_imported_is_looked_at_too(folder: Path) -> None:
    (folder / "helper.py").write_text("import socket\n")
    plan(folder, REPO, licence="mit")  # nobody imports it
    _more("from .helper import x", f"{MODELING}.py")(folder)
    assert "helper.py, line 1: imports socket" in refusal(folder)


def test_our_own_code_passes() -> None:
    """What build-alarm puts beside weights, of every family."""
    for name in FAMILIES:
        files = {path.name: path for path in [CODE / "alarm_core.py", *CODE.glob(f"*_alarm_{name}.py")]}
        for file in files:
            assert check._hygiene(file, files)[0] == []
