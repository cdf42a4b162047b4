"""A whole build: from the sources of a config to a set on disk. What an earlier run finished is taken from the journal."""

from __future__ import annotations

import dataclasses
import heapq
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from videosafety.dataset_builder import filter as filtering
from videosafety.dataset_builder import ingest
from videosafety.dataset_builder.config import LANGUAGES, SPLITS, Config
from videosafety.dataset_builder.engine import Engine, LocalEngine, Phase
from videosafety.dataset_builder.journal import Journal
from videosafety.dataset_builder.lists import Lists, dump_line
from videosafety.dataset_builder.prompts import template
from videosafety.dataset_builder.provenance import VERSION, complete, versions
from videosafety.dataset_builder.review import (
    Decision,
    Decisions,
    Key,
    apply,
    clip_decisions,
    clip_item,
    for_translations,
    row_item,
    seen,
    write_queue,
)
from videosafety.dataset_builder.rows import Bundle, Rejection, Row, digest, number
from videosafety.dataset_builder.servers import Asker
from videosafety.dataset_builder.split import BANDS, TIED, assign, components
from videosafety.dataset_builder.stats import write_pages
from videosafety.dataset_builder.write import folder_of, replacing, write_rows
from videosafety.lmms_eval_tasks.journal import checkpoint_identity
from videosafety.lmms_eval_tasks.judge.policy import category_groups, policy_hash

PROMPTS = ("label", "describe", "query", "check", "translate")
ASKING = 8  # bundles that each worker has in work where servers do the work


class BuildError(Exception):
    """The build cannot go on; one line says why and what to do."""


@dataclass(slots=True)
class Built:
    """What a build came to. rows, clips: by split. rejected: how many, by stage and reason. review: `Decisions.figures`."""

    folder: Path
    videos: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    clips: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    to_try_again: int = 0
    to_review: int = 0
    review: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def phases(config: Config) -> tuple[Phase, Phase, Phase]:
    """Media, words and training: each with a key that changes with whatever its outcome depends on."""
    made_by = [VERSION, dict(versions()), str(config.work)]
    prompts = {name: template(name).hash for name in PROMPTS}
    features, alarm = (
        checkpoint_identity(str(config.root / folder), None) if folder else None for folder in (config.filter.features, config.spans.model)
    )  # files of models, not only their folder: it may hold other weights next time
    media = digest(made_by, config.of("limits", "shots", "filter"), features)
    asked = config.of("name", "seed", "servers", "labels", "describe", "queries", "translate", "spans")
    words = digest(media, asked, alarm, prompts, policy_hash())
    training = digest(words, config.of("training"), template("reason").hash)

    def phase(name: str, key: str, stages: tuple[str, ...], unit: str, width: int, gpu: frozenset[str] = frozenset()) -> Phase:
        return Phase(name, f"{name} {key}", stages, unit, width, gpu)

    return (
        phase("media", media, ("inspect", "shots", "filter"), "video", 1, frozenset({"filter"} if config.filter.features else ())),
        phase(
            "words",
            words,
            ("label", "describe", "spans", "queries", "translate"),
            "clip",
            ASKING,
            frozenset({"spans"} if config.spans.model else ()),
        ),
        phase("training", training, ("training",), "row", ASKING),
    )


class Build:
    """One run. `engine` runs the phases; everything between them happens here, row by row from disk."""

    def __init__(self, config: Config, journal: Journal, lists: Lists, engine: Engine) -> None:
        self._config, self._journal, self._lists, self._engine = config, journal, lists, engine
        self._media, self._words, self._training = phases(config)
        self._decisions = Decisions(config.folder / "review")
        self._standing = self._decisions.standing()
        self._there: set[Key] = set()  # the reviewed items that are as they were when they were reviewed
        self._found = Built(config.folder)

    def run(self) -> Built:
        """Everything, up to the files of the set.

        Raises:
            ConfigError, ReviewError: a source, model or decision file that is not as it must be.
            BuildError: nothing is left that could be written, or the work folder lost a clip.
        """
        config, found = self._config, self._found
        with replacing(config.folder / "report.jsonl") as part, open(part, "w", encoding="utf-8") as self._report:
            found.videos = self._lists.keep("videos", self._videos())
            self._engine.run(self._media, self._bundles("videos", "key"), found.videos)
            clips = self._lists.keep("clips", self._clips())
            kept = self._lists.keep("kept", self._without_duplicates(clips))
            self._engine.run(self._words, self._bundles("kept", "bundle"), kept)
            self._lists.keep("decided", self._decided())
            self._recall()
            self._divide()
            self._write()
            if config.training:
                self._train()
            found.to_review = write_queue(self._queue(), config.folder / "review")
        if not found.rows["test"]:
            raise BuildError(f"no row is left for the split test; {config.folder / 'report.jsonl'} says why of every video and clip")
        return found

    # --- up to the clips ----------------------------------------------------------------------------------------------------------

    def _videos(self) -> Iterator[Row]:
        for outcome in ingest.ingest(self._config):
            if isinstance(outcome, Rejection):
                self._reject([outcome])
            else:
                yield outcome

    def _bundles(self, name: str, key: str) -> Iterator[Bundle]:
        return (Bundle(row[key], [row]) for row in self._lists.read(name))

    def _done(self, phase: Phase, name: str, key: str) -> Iterator[Bundle]:
        """The finished bundle of every row of a list, in order; what was left out goes into the report."""
        keys: list[str] = []

        def found() -> Iterator[Bundle]:
            for bundle in self._journal.get(phase.key, keys):
                assert bundle is not None  # the engine has run
                self._reject(bundle.rejected)
                yield bundle
            keys.clear()

        for row in self._lists.read(name):
            keys.append(row[key])
            if len(keys) == 500:
                yield from found()
        yield from found()

    def _clips(self) -> Iterator[Row]:
        for bundle in self._done(self._media, "videos", "key"):
            for row in bundle.rows:
                if not Path(row["file"]).is_file():
                    raise BuildError(
                        f"a clip of {row['provenance']['path']} is gone from {self._config.work}; remove that folder and build again"
                    )
                yield row

    def _without_duplicates(self, clips: int) -> Iterator[Row]:
        """Of every cluster of near-duplicates the first clip, with the cluster in which it must stay when the set is split."""
        prints = np.zeros((clips, filtering.BITS // 8), np.uint8)
        for i, row in enumerate(self._lists.read("clips")):
            prints[i] = np.frombuffer(bytes.fromhex(row["provenance"]["fingerprint"]), np.uint8)
        bits = self._config.filter.duplicate_bits
        leader, tied = (filtering.clusters(prints, most, BANDS) for most in (bits, TIED * bits))
        decided = clip_decisions(self._standing.values())
        followed = set(leader[leader != np.arange(clips)].tolist())
        names: dict[int, str] = {}
        for i, row in enumerate(self._lists.read("clips")):
            if leader[i] != i:
                first = names.get(int(leader[i]), "another clip")
                self._found.duplicates += 1
                self._reject([Rejection(row["id"], f"a near-duplicate: {first} came first", "duplicates", row["provenance"]["path"])])
                continue
            if i in followed:
                names[i] = row["id"]
            self._note(row["id"], "")
            decision = decided.get(row["id"])
            facts = (row["id"], row["text"], row["told"], row["provenance"])
            row = row | {
                "decision": decision, "bundle": digest(*facts, decision), "undecided": digest(*facts, None), "tied": int(tied[i]),
            }  # fmt: skip
            yield row | {"provenance": row["provenance"] | {"cluster": f"{int(tied[i])}"}}

    # --- from clips to rows -------------------------------------------------------------------------------------------------------

    def _decided(self) -> Iterator[Row]:
        """Rows of the set with the decisions on them taken up. A translation stands or falls with its English row, which comes first."""
        for bundle in self._done(self._words, "kept", "bundle"):
            taken: set[tuple[str, str]] = set()
            english: dict[str, Decision | str | None] = {}  # stem of an id -> what becomes of its translations
            for row in bundle.rows:
                stem, of = row["id"].rpartition("-")[0], seen(row)
                self._note(row["id"], of)
                decision, parent = self._standing.get((row["id"], of)), english.get(stem)
                kept = parent if isinstance(parent, str) else apply(row, parent, decision)
                if not isinstance(kept, str) and (kept["language"], kept["query"].casefold()) in taken:
                    kept = "the clip has this query already"
                if row["language"] == "en":
                    english[stem] = for_translations(kept, decision)
                if isinstance(kept, str):
                    self._reject([Rejection(row["id"], kept, "review")])
                else:
                    taken.add((kept["language"], kept["query"].casefold()))
                    yield kept | {"original": row}

    def _note(self, item: str, of: str) -> None:
        if (item, of) in self._standing:
            self._there.add((item, of))

    def _recall(self) -> None:
        """Count decisions on rows that others took out of the set again: a new label of their clip gave it other rows."""
        changed = [row["undecided"] for row in self._lists.read("kept") if row["decision"]]
        for bundle in self._journal.get(self._words.key, changed):
            for row in bundle.rows if bundle else ():
                self._note(row["id"], seen(row))
        self._found.review = self._decisions.figures(self._there)
        if stale := self._found.review["stale"]:
            self._found.warnings.append(
                f"{stale} reviewed items are gone or no longer what was reviewed: what was said of them does not count"
            )

    def _divide(self) -> None:
        """Give every clip its split, and put the rows in the order in which they are written."""
        facts = array("q")  # of each clip its video, origin, cluster, visual label, and a number drawn for it
        last = ""
        for row in self._lists.read("decided"):
            if row["video_id"] == last:
                continue
            last, made = row["video_id"], row["provenance"]
            origin = number("origin", made["origin"] or made["sha256"])
            drawn = number(self._config.seed, row["video_id"])
            facts.extend((number(made["sha256"]) >> 1, origin >> 1, row["tied"], row["visual_label"], drawn >> 1))
        if not facts:
            return
        table = np.frombuffer(facts, dtype=np.int64).reshape(-1, 5)
        component = components(table[:, 0], table[:, 1], table[:, 2])
        split = assign(component, table[:, 3], table[:, 4], self._config.splits)
        if len(set(component.tolist())) < len(self._config.splits):
            self._found.warnings.append("all clips hang together by video, origin or likeness: some splits are empty; add other origins")
        self._found.clips.update(split)
        order, languages = list(category_groups()), list(LANGUAGES)
        made_by = self._config.of(*(f.name for f in dataclasses.fields(Config) if f.name not in ("root", "out")))

        def finished() -> Iterator[tuple[Row, int, int]]:
            place, last = -1, ""
            for row in self._lists.read("decided"):
                if row["video_id"] != last:
                    place, last = place + 1, row["video_id"]
                extra = {"split": split[place], "group": category_groups()[row["category"]], "video": f"videos/{row['video_id']}.mp4"}
                row = row | extra | {"provenance": complete(row["provenance"], made_by)}
                yield row, order.index(row["category"]), languages.index(row["language"])

        self._lists.add_final(finished())

    def _write(self) -> None:
        for split in SPLITS:
            if split not in self._config.splits and not folder_of(self._config.folder, split).exists():
                continue
            self._found.rows[split] = write_rows(self._lists.final(split), self._config.folder, split)

    def _train(self) -> None:
        from videosafety.dataset_builder.training_rows import write as write_training  # here: it brings torch along

        # The whole row: a reviewer may change its labels and nothing else. Not where its clip lies.
        whole = ({key: value for key, value in row.items() if key not in ("file", "original")} for row in self._lists.final("train"))
        rows = self._lists.keep("to_train", (row | {"bundle": digest(row)} for row in whole))
        self._engine.run(self._training, self._bundles("to_train", "bundle"), rows)
        done = (row for bundle in self._done(self._training, "to_train", "bundle") for row in bundle.rows)
        self._found.rows.update(write_training(done, self._config.folder / "train"))

    # --- what people see ------------------------------------------------------------------------------------------------------------

    def _queue(self) -> Iterator[dict[str, Any]]:
        """Held and disputed clips, then the random sample: the rows to which chance gave the lowest numbers."""
        queued: set[str] = set()
        for row in self._lists.read("held"):
            queued.add(row["id"])
            yield clip_item(row, "disagreement")
        for row in self._lists.read("decided"):
            if row["provenance"]["disputed"] and row["video_id"] not in queued:
                queued.add(row["video_id"])
                yield clip_item(
                    row["original"] | {"id": row["video_id"], "cell": None, "query": None, "textual_label": None, "language": None},
                    "disagreement",
                )
        drawn = heapq.nsmallest(
            self._config.review.sample, ((number(self._config.seed, "sample", row["id"]), row["id"]) for row in self._lists.read("decided"))
        )
        chosen = {identity for _, identity in drawn}
        yield from (row_item(row["original"], "sample") for row in self._lists.read("decided") if row["id"] in chosen)

    def _reject(self, rejections: list[Rejection]) -> None:
        for rejection in rejections:
            self._found.rejected[f"{rejection.stage}: {_kind(rejection.reason)}"] += 1
            self._found.to_try_again += rejection.transient
            body = {key: value for key, value in dataclasses.asdict(rejection).items() if key != "row" and value not in ("", False)}
            self._report.write(dump_line(body))
            if rejection.row is not None:
                self._lists.append("held", rejection.row)


def _kind(reason: str) -> str:
    """A reason without what differs from row to row: there are few of them, however large the set."""
    return re.sub(r"\d+(?:[.,]\d+)*", "…", reason.split(":")[0].split("(")[0]).strip()[:60]


def build(config: Config, engine: str = "local", workers: int = 2, quiet: bool = False) -> Built:
    """Build the set of a config; what an earlier run finished is not done again.

    Args:
        engine: `local`, threads of this process, or `ray`, Ray Data on this machine or on the cluster that RAY_ADDRESS names.
        workers: how many bundles are worked on at once, on all machines together.

    Raises:
        ConfigError, ReviewError, BuildError: with one line that says what to mend.
    """
    work = config.work
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(work / "lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout as error:
        raise BuildError(f"another build is at work in {config.folder}; wait for it, or end it") from error
    with held, ExitStack() as opened:
        for left in config.folder.rglob(".*.part"):  # of a run that was killed: nobody else writes here
            left.unlink()
        for left in work.glob("clips/*/*.part"):
            left.unlink()
        journal = Journal(work / "journal.sqlite")
        opened.callback(journal.close)
        lists = Lists(work / "lists.sqlite")
        opened.callback(lists.close)
        asker = Asker(config.servers, journal)
        opened.callback(asker.close)
        runs: Engine = LocalEngine(config, journal, asker, workers, quiet)
        if engine == "ray":
            from videosafety.dataset_builder.ray_engine import RayEngine

            runs = opened.enter_context(RayEngine(config, journal, workers, quiet))
        found = Build(config, journal, lists, runs).run()
        write_pages(config, found, lists)
        return found
