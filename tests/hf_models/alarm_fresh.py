"""Run by test_alarm_publish.py in a process that cannot import videosafety: what a person with transformers alone gets, as JSON."""

from __future__ import annotations

import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor


class Block(importlib.abc.MetaPathFinder):
    """No module of ours, however it is installed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] == "videosafety":
            raise ModuleNotFoundError(f"no {fullname} here")


def refused(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def look(folder: Path, given: dict[str, Any], again: Path) -> dict[str, Any]:
    trust = {"trust_remote_code": True}
    model = AutoModelForImageTextToText.from_pretrained(folder, **trust).eval()
    processor = AutoProcessor.from_pretrained(folder, **trust)
    with torch.no_grad():
        out = model(**given["inputs"])
    made = model.generate(**given["inputs"], max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    model.save_pretrained(again)
    processor.save_pretrained(again)
    resaved = AutoModelForImageTextToText.from_pretrained(again, **trust).eval()
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What now?"}]}]
    others = [cls.from_pretrained(folder, **trust) for cls in (AutoModel, AutoModelForCausalLM)]
    return {
        "logits": torch.equal(out.logits, given["logits"]),
        "alarm_logits": torch.equal(out.alarm_logits, given["alarm_logits"]),
        "sequences": torch.equal(made.sequences, given["sequences"]),
        "alarm_probs": torch.equal(made.alarm_probs, given["alarm_probs"]),
        "same class": all(type(other) is type(model) for other in others),
        "prompt": processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == given["prompt"],
        "saved again": torch.equal(resaved.alarm_probs(**given["inputs"]), model.alarm_probs(**given["inputs"])),
        "saved code": sorted(path.name for path in again.glob("*.py")) == sorted(path.name for path in folder.glob("*.py")),
        "refused": [
            refused(lambda: AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False)),
            refused(lambda: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)),
            refused(lambda: AutoModel.from_pretrained(folder, trust_remote_code=False)),
            refused(lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False)),
            refused(lambda: AutoProcessor.from_pretrained(folder, trust_remote_code=False)),
        ],
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, Block())
    scratch = Path(sys.argv[1])
    cases = torch.load(scratch / "cases.pt")
    found = {name: look(Path(case.pop("folder")), case, scratch / name) for name, case in cases.items()}
    found["videosafety"] = "videosafety" in sys.modules
    (scratch / "found.json").write_text(json.dumps(found), encoding="utf-8")
