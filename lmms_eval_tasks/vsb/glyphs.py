"""Text as grey masks, cut from an atlas of glyphs made once, so that clips have the same pixels on every machine.

The glyphs are those of Aileron Regular (Sora Sagano, dotcolon.net; CC0 1.0, public domain), the font that Pillow embeds as
`ImageFont.load_default(size)`. `python -m videosafety.lmms_eval_tasks.vsb.glyphs` remakes `assets/glyphs.png` and `assets/glyphs.json`;
a new atlas changes the pixels of every clip with text, so it needs a new version of the set.
"""

import json
import string
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

ALPHABET = " " + string.ascii_letters + string.digits + ".,:;!?'\"()-+/%&$#@"
CAPTION_SIZE = 24
CARD_SIZES = (44, 36, 30, 26)  # a card takes the largest that fits
BOLD = {24: 0.5, 44: 1, 36: 1, 30: 1, 26: 0.5}  # stroke in pixels that thickens the letters
PAD = 2  # empty columns on both sides of a glyph in the atlas: side bearings may be negative
ASSETS = Path(__file__).parent / "assets"


@lru_cache(maxsize=1)
def _atlas() -> tuple[np.ndarray, dict]:
    with Image.open(ASSETS / "glyphs.png") as image:
        pixels = np.asarray(image)
    return pixels, json.loads((ASSETS / "glyphs.json").read_text(encoding="utf-8"))


def check_text(text: str) -> None:
    """Raises ValueError, naming the character, where `text` has one that the atlas lacks."""
    for char in text:
        if char not in ALPHABET:
            raise ValueError(f"character {char!r} in {text!r} is not in the glyph atlas; allowed: {ALPHABET!r}")


def text_width(text: str, size: int) -> int:
    """Width in pixels of one line at one of the atlas's sizes."""
    check_text(text)
    glyphs = _atlas()[1][str(size)]["glyphs"]
    return sum(glyphs[char]["advance"] for char in text)


def line_height(size: int) -> int:
    """Height in pixels of every mask at this size, and the distance between lines."""
    return _atlas()[1][str(size)]["height"]


def text_mask(text: str, size: int) -> np.ndarray:
    """Coverage of one line of text: uint8 (line_height(size), text_width(text, size) + 2 * PAD), 255 where the ink is."""
    pixels, sizes = _atlas()
    row = sizes[str(size)]
    mask = np.zeros((row["height"], text_width(text, size) + 2 * PAD), np.uint8)
    x = 0
    for char in text:
        glyph = row["glyphs"][char]
        cell = pixels[row["y"] : row["y"] + row["height"], glyph["x"] : glyph["x"] + glyph["advance"] + 2 * PAD]
        place = mask[:, x : x + cell.shape[1]]
        np.maximum(place, cell, out=place)  # neighbours overlap by their padding
        x += glyph["advance"]
    return mask


def make_atlas(folder: Path = ASSETS) -> None:
    """Writes glyphs.png (8-bit grey, one row of glyphs per size) and glyphs.json (where each is, in pixels) into `folder`."""
    from PIL import ImageDraw, ImageFont

    rows, table, y = [], {}, 0
    for size in (CAPTION_SIZE, *CARD_SIZES):
        font, bold = cast(ImageFont.FreeTypeFont, ImageFont.load_default(size)), BOLD[size]
        ascent, descent = font.getmetrics()
        height = ascent + descent + 2 * PAD
        glyphs, cells, x = {}, [], 0
        for char in ALPHABET:
            advance = round(font.getlength(char) + 2 * bold)
            cell = Image.new("L", (advance + 2 * PAD, height))
            ImageDraw.Draw(cell).text((PAD + bold, PAD), char, font=font, fill=255, stroke_width=bold)
            glyphs[char] = {"x": x, "advance": advance}
            cells.append(np.asarray(cell))
            x += advance + 2 * PAD
        rows.append(np.hstack(cells))
        table[str(size)] = {"y": y, "height": height, "glyphs": glyphs}
        y += height
    width = max(row.shape[1] for row in rows)
    sheet = np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows])
    Image.fromarray(sheet).save(folder / "glyphs.png", optimize=True)
    (folder / "glyphs.json").write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_atlas()
