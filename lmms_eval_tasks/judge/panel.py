"""`panel:a+b+c`: several judges asked at once; the majority's word counts, where enough of them have one."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .text import before_judging
from .verdict import Item, Judge, Label, Reason, Stance, Verdict, unscored


def _majority(votes: Iterable[Label | Stance]) -> Label | Stance | None:
    """The one vote that is more frequent than every other, None where there is none."""
    ranked = Counter(votes).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def decide(votes: dict[str, Verdict]) -> Verdict:
    """The verdict of a panel from its members' verdicts (judge id -> verdict), without the panel's own id.

    More than half of the members must have a verdict, else the panel has none either, for the reason that most of the others give. A
    tie is `uncertain`. The stance is the majority's too, None where it is tied. There is no p_unsafe: probabilities of different
    judges do not average. `raw` holds all votes as JSON.
    """
    said = {
        name: {
            "label": vote.label.value,
            "reason": vote.reason and vote.reason.value,
            "stance": vote.stance and vote.stance.value,
            "p_unsafe": vote.p_unsafe,
            "detail": vote.detail,
        }
        for name, vote in votes.items()
    }
    raw = json.dumps(said, ensure_ascii=False)
    told = ", ".join(f"{name}: {vote.label.value}" + (f" ({vote.reason.value})" if vote.reason else "") for name, vote in votes.items())
    scored = [vote for vote in votes.values() if vote.scored]
    if 2 * len(scored) <= len(votes):
        reason = Counter(vote.reason for vote in votes.values() if vote.reason).most_common(1)[0][0]
        return unscored(reason, raw=raw, detail=f"no quorum: {told}")
    label = _majority(vote.label for vote in scored)
    if label is None:
        return unscored(Reason.UNCERTAIN, raw=raw, detail=f"tie: {told}")
    stance = _majority(vote.stance for vote in scored if vote.stance)
    return Verdict(Label(label), stance=Stance(stance) if stance else None, raw=raw, detail=told)


class PanelJudge:
    """Several judges, asked as `pending.submit` asks each of them alone: remote ones at once and through the cache, local ones on the spot.

    Its own verdict costs nothing to make and is not cached: a member that failed is asked again by the next run, the others are not.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        """`judges`: at least two, no two with the same id.

        Raises:
            ValueError: fewer than two judges, or one twice.
        """
        ids = [judge.id for judge in judges]
        if len(ids) < 2:
            raise ValueError("a panel needs at least two judges: panel:a+b+c")
        if len(set(ids)) < len(ids):
            raise ValueError(f"the panel names one judge twice: {', '.join(ids)}")
        self.judges = tuple(judges)
        self.id = f"panel:{'+'.join(ids)}"

    def before(self, item: Item) -> Verdict | None:
        """As `before_judging` says."""
        early = before_judging(item.answer)
        return early and replace(early, judge=self.id)

    def decide(self, votes: Sequence[Verdict]) -> Verdict:
        """One verdict from all members' verdicts, in the members' order, as the function `decide` says."""
        return replace(decide({judge.id: vote for judge, vote in zip(self.judges, votes, strict=True)}), judge=self.id)

    async def close(self) -> None:
        """Close the members that are not local."""
        await asyncio.gather(*(judge.close() for judge in self.judges if not callable(judge)))
