"""Mixtures of data sets, such as the paper's 10k rows for stages 1 and 2: seeded, without replacement, in an order that can be had again.

    python -m videosafety.training_recipes.mixture --vst vst_sft.jsonl --label-version 1 --vcg vcg_plus.json --llava llava_mix.json \\
        --root data_root --out data_root/at_sft_10k.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videosafety.training_recipes import readers
from videosafety.training_recipes.data import DataError, fail, require_media, save
from videosafety.training_recipes.schema import CURRENT, LEGACY, Row

AT_SFT = {"vst": 6000, "vcg-plus": 2000, "llava": 2000}  # VideoSafety-R1, scripts/data/build_at_sft_mix.py at 7589dea
SEED = 42  # its default; the rows that it draws are others than ours, as it draws with Python's generator


def mix(sources: Mapping[str, Sequence[Row]], counts: Mapping[str, int], seed: int = SEED) -> list[Row]:
    """Draw `counts[name]` rows of each source without replacement and shuffle them.

    Rows are drawn and ordered by SHA-256 of seed, source and id: the same on every machine and in every Python, whatever order the rows
    came in, and what is drawn of one source does not hang on the others. The rows themselves are not changed.

    Args:
        sources: name -> rows, whose ids are unique within the source.
        counts: name -> number of rows, for the same names.

    Raises:
        DataError: a source is too small, an id is there twice, or the names differ; every source that is at fault is named.
        ValueError: a negative count.
    """
    problems = [f"{name}: is in sources or in counts, but not in both" for name in sorted(sources.keys() ^ counts.keys())]
    for name in sorted(sources.keys() & counts.keys()):
        if counts[name] < 0:
            raise ValueError(f"counts[{name!r}] must not be negative, got {counts[name]}")
        ids = [row["id"] for row in sources[name]]
        if len(ids) < counts[name]:
            problems.append(f"{name}: has {len(ids)} rows, {counts[name]} are wanted, {counts[name] - len(ids)} too few")
        if len(set(ids)) < len(ids):
            problems.append(f"{name}: {len(ids) - len(set(ids))} ids are there twice; a row is drawn by its id")
    fail(problems)
    drawn = []
    for name, rows in sources.items():
        ranked = sorted(rows, key=lambda row: _digest("draw", seed, name, row["id"]))
        drawn += [(_digest("order", seed, name, row["id"]), row) for row in ranked[: counts[name]]]
    return [row for _, row in sorted(drawn, key=lambda pair: pair[0])]


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\n".join(map(repr, parts)).encode("utf-8", "surrogatepass")).digest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the mixture for stages 1 and 2 from the files of its three sources, check it and write it."""
    parser = argparse.ArgumentParser(prog="python -m videosafety.training_recipes.mixture", description=main.__doc__)
    for name, what in (("vst", "VST-SFT"), ("vcg", "VCG-plus"), ("llava", "LLaVA-SFT")):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"{what}, .json or .jsonl")
    parser.add_argument("--label-version", choices=(CURRENT, LEGACY), required=True, help="polarity of --vst: 1 if 0 is safe, else 0")
    general = "polarity of labels in --vcg and --llava; without it records with labels are refused"
    parser.add_argument("--general-label-version", choices=(CURRENT, LEGACY), help=general)
    parser.add_argument("--root", type=Path, required=True, help="folder that the paths of videos and images are relative to")
    parser.add_argument("--out", type=Path, required=True, help="the mixture, .jsonl")
    parser.add_argument("--counts", type=int, nargs=3, default=list(AT_SFT.values()), metavar=("VST", "VCG", "LLAVA"))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--general-safe", action="store_true", help="label general rows safe and safe, as the official mixture does")
    given = parser.parse_args(arguments)
    told: dict[str, Any] = {"labels": (0, 0) if given.general_safe else None, "label_version": given.general_label_version}
    try:
        sources = {
            "vst": readers.vst(given.vst, given.root, label_version=given.label_version),
            "vcg-plus": readers.llava(given.vcg, given.root, source="vcg-plus", **told),
            "llava": readers.llava(given.llava, given.root, **told),
        }
        rows = mix(sources, dict(zip(AT_SFT, given.counts, strict=True)), given.seed)
        require_media(rows, given.root)
        save(rows, given.out)
    except DataError as error:
        raise SystemExit(str(error)) from error
    print(f"{given.out}: {len(rows)} rows, seed {given.seed}")


if __name__ == "__main__":
    main()
