"""`guard:<hf id>`: safety classifiers, through transformers in batches or an OpenAI-compatible server; one file a family.

The PyPI package judgezoo (read at 0.1.9) covers Llama Guard 3 8B, Llama Guard 4, HarmBench and StrongREJECT and batches with
transformers. It is not adapted here because: it has neither Qwen3Guard, WildGuard nor ShieldGemma; it takes no images, for the vision
models either; its guard models cannot be asked on a server; ids have no revision; invalid input comes back as None and an unlikely output
only as a logged warning beside a probability, not as a typed failure.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial

from ..client import host_of
from ..redact import one_line, redact
from ..text import before_judging, split_thinking
from ..verdict import Item, Verdict, unscored
from . import harmbench, llama_guard, qwen3guard, shieldgemma, strongreject, wildguard
from .base import Engine, Family, GuardError, Reading, plain
from .media import media_hash
from .server import ServerEngine

__all__ = ["Family", "GuardJudge", "Reading", "families", "family_of"]


def families() -> dict[str, Family]:
    """Every family by the id prefix that names it."""
    modules = (llama_guard, qwen3guard, wildguard, shieldgemma, harmbench, strongreject)
    return {prefix: family for module in modules for family in module.FAMILIES for prefix in family.ids}


def family_of(model_id: str) -> Family:
    """The family of a model, by the last part of its id or folder, whoever publishes it.

    Raises:
        ValueError: no family has such a model; the message lists those there are.
    """
    name = model_id.rstrip("/").rsplit("/", 1)[-1].lower()
    for prefix, family in families().items():
        if name.startswith(prefix):
            return family
    raise ValueError(f"no guard family for {model_id!r}: this version knows models named {', '.join(f'{p}*' for p in families())}")


class GuardJudge:
    """A safety classifier as a judge. It judges by its own makers' taxonomy, not by this project's policy."""

    def __init__(self, spec: str) -> None:
        """`spec`: `<hf id>`, `<hf id>@<revision>` or a folder, to run here; `http://…/v1#<hf id>` to ask a server.

        The model is loaded with the first item. Without a revision the id means whatever its main branch holds today; verdicts are
        cached by the commit, or by the folder's files. A server gets VIDEOSAFETY_JUDGE_KEY where that is set, and no other key.

        Raises:
            ValueError: no such family, or a server without a model.
        """
        url, _, named = spec.rpartition("#") if spec.startswith(("http://", "https://")) else ("", "", spec)
        model_id, _, revision = named.partition("@")
        if not model_id or (spec.startswith("http") and not url):
            raise ValueError(f"no model in {spec!r}: write guard:<hf id> or guard:http://host:port/v1#<hf id>")
        self.family = family_of(model_id)
        self.id = f"guard:{host_of(url)}#{named}" if url else f"guard:{named}"
        self.template = _sha256([self.family.prompts(Item("{query}", "{answer}"))])[:16]
        self._parameters = [self.family.max_tokens, self.family.answer_tokens, bool(url)]
        self._engine: Engine = ServerEngine(url, model_id, self.family) if url else _local_engine(model_id, revision or None, self.family)
        self._fail = partial(unscored, judge=self.id, template=self.template)

    def key(self, item: Item) -> str:
        """SHA-256 over the server or the checkpoint, its parameters, the rendered prompts and the content of what it is shown."""
        media = [media_hash(path) for path in item.media] if self.family.sees else []
        prompts = self.family.prompts(replace(item, answer=split_thinking(item.answer)[1], media=()))
        return _sha256([self.id, self._engine.identity(), self.template, self._parameters, prompts, media])

    async def judge(self, item: Item) -> Verdict:
        """One verdict: the query and the answer without its thinking, through the model.

        Returns:
            unscored judge_unparsable when the model says anything but exactly one verdict, judge_failed, judge_refused or media_error
            when it could not be asked, and as `before_judging` says.
        """
        if (early := before_judging(item.answer)) is not None:
            return replace(early, judge=self.id, template=self.template)
        try:
            answer, cut = await self._engine.cut(plain(split_thinking(item.answer)[1]))
            readings = await self._engine.read(self.family.prompts(replace(item, answer=answer)))
        except GuardError as error:
            return self._fail(error.reason, detail=one_line(str(error)))
        said = self.family.parse(readings)
        raw = redact(json.dumps([reading.text for reading in readings], ensure_ascii=False))
        detail = one_line("; ".join(filter(None, (said.detail, cut))))
        return replace(said, judge=self.id, template=self.template, raw=raw, detail=detail)

    async def close(self) -> None:
        """Close connections, or give the model back."""
        await self._engine.close()


def _local_engine(model_id: str, revision: str | None, family: Family) -> Engine:
    from .local import LocalEngine  # torch and transformers take seconds to import: not for a server's clients

    return LocalEngine(model_id, revision, family)


def _sha256(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
