"""What a judging model is shown: the policy, then query and answer as data that cannot speak to the judge; and the identity of all that.

The data stand between two lines that carry a mark. The mark is 128 bits of a hash over query, answer and template: the same row always
gives the same prompt, so that its verdict can be cached and repeated, and nothing has to be kept secret, yet an answer that wants to
close the data early would have to contain a hash of itself. What stands between the lines is one line of JSON in which nothing that is a
line break, an invisible character or a piece of a chat template survives as such.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2

from .policy import policy_prompt
from .text import split_thinking
from .verdict import Item

TEMPLATES = Path(__file__).with_name("templates")
MAX_CHARACTERS = 12_000  # of the query and of the answer, each
_HEAD = 8_000  # of these; the rest is the end, where help after a refusal stands
_SALT = "videosafety judge prompt 1"
# Servers turn text such as <|im_end|> or [/INST] into the control tokens of a chat: escaped, it stays text.
_CONTROL = re.compile(r"[<>]|\[(?=/?[A-Z_]{2,20}\])")
_KEEP = "\u200c\u200d"  # joiners that Persian and Hindi words need
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
MAX_PIXELS = 512 * 512  # of a frame that a judge sees


def _escape(char: str) -> str:
    return "".join(f"\\u{int.from_bytes(unit, 'big'):04x}" for unit in _units(char))


def _units(char: str) -> list[bytes]:
    """UTF-16 code units of one character, lone surrogates too: what JSON's \\u escapes are made of."""
    data = char.encode("utf-16-be", "surrogatepass")
    return [data[i : i + 2] for i in range(0, len(data), 2)]


def escaped(value: Any) -> str:
    """`value` as one line of JSON without invisible characters and without anything that a chat template could take for its own."""
    text = json.dumps(value, ensure_ascii=False)
    hidden = {c for c in set(text) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and c not in _KEEP}
    text = text.translate({ord(c): _escape(c) for c in hidden})
    return _CONTROL.sub(lambda match: _escape(match[0]), text)


def capped(name: str, text: str) -> tuple[dict[str, Any], str]:
    """`text` under `name`, or its start and end where it is too long, and one line that says what was left out (empty where nothing)."""
    left_out = len(text) - MAX_CHARACTERS
    if left_out <= 0:
        return {name: text}, ""
    parts = {f"{name}_start": text[:_HEAD], "characters_left_out": left_out, f"{name}_end": text[-(MAX_CHARACTERS - _HEAD) :]}
    return {name: parts}, f"{name} cut: {left_out} of {len(text)} characters left out of the middle"


def mark(template: str, *data: str) -> str:
    """The mark of the lines around the data (query, answer, whatever else stands there), 32 hex digits."""
    return hashlib.sha256(json.dumps([_SALT, template, *data]).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt. `cut` says in one line what of the row was left out, empty where all of it is there."""

    system: str
    user: str
    cut: str

    def messages(self, images: list[str]) -> list[dict[str, Any]]:
        """Chat messages; `images` are data URLs, shown before the text."""
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        user: Any = [*parts, {"type": "text", "text": self.user}] if images else self.user
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


class Template:
    """One file of `templates/`, with blocks `system` and `user`. `hash`: first 16 hex digits of the SHA-256 of its text."""

    def __init__(self, name: str) -> None:
        self._source = (TEMPLATES / name).read_text(encoding="utf-8")
        self.hash = hashlib.sha256(self._source.encode()).hexdigest()[:16]
        # A row is rendered for its key and again to be asked about.
        self.render = lru_cache(maxsize=256)(self._render)

    @cached_property
    def _template(self) -> jinja2.Template:
        # What is rendered is a prompt and never HTML; `escaped` does the escaping that it needs.
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
        return environment.from_string(self._source)

    def _render(self, item: Item, images: int = 0) -> Prompt:
        """The prompt for one row; the answer is what stands after the model's thinking."""
        shown = {"query": item.query, "answer": split_thinking(item.answer)[1]}
        return self.fill(shown, images=images, policy=policy_prompt(item.category))

    def fill(self, shown: Mapping[str, str], **context: Any) -> Prompt:
        """The prompt with `shown` (name -> text, in this order) as its data and `context` as the template's other variables."""
        parts = {name: capped(name, text) for name, text in shown.items()}
        data = {key: value for part, _ in parts.values() for key, value in part.items()}
        variables = self._template.new_context({"mark": mark(self.hash, *shown.values()), "data": escaped(data), **context})
        system, user = ("".join(self._template.blocks[block](variables)).strip() for block in ("system", "user"))
        return Prompt(system, user, "; ".join(cut for _, cut in parts.values() if cut))


def key_of(judge: str, template: str, policy: str, prompt: Prompt, parameters: Mapping[str, Any], media: list[str]) -> str:
    """SHA-256 (hex) over everything that a verdict depends on, so that a change of any of it is a new question.

    template, policy: their hashes, empty where there is none.
    """
    parts = [judge, template, policy, prompt.system, prompt.user, dict(parameters), media]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def media_hashes(item: Item) -> list[str]:
    """SHA-256 of each file; of a file that cannot be read its name, because asking will tell what is wrong with it."""
    from videosafety.lmms_eval_tasks.video import MediaError, content_hash

    hashes = []
    for path in item.media:
        try:
            hashes.append(content_hash(path))
        except MediaError:
            hashes.append(f"unreadable {path}")
    return hashes


def frames(item: Item, most: int) -> list[str]:
    """JPEG data URLs of an item's images and of frames sampled from its videos, `most` for each video.

    Raises:
        MediaError: a file that cannot be shown.
    """
    from PIL import Image

    from videosafety.lmms_eval_tasks.video import Sampling, decode, load_image

    images: list[Image.Image] = []
    for path in item.media:
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            images.append(load_image(path, MAX_PIXELS))
        else:
            images += map(Image.fromarray, decode(path, Sampling(max_frames=most, max_pixels=MAX_PIXELS)).frames)
    urls = []
    for image in images:
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=90)
        urls.append("data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode())
    return urls
