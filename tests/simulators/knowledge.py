"""What a coordinator holds after a round, counted from the shares that hospitals opened to it."""

from __future__ import annotations

from collections import Counter

from rounds import Story

from privfm.secagg import Stage
from privfm.secagg.framing import Signed
from privfm.secagg.messages import Reveal, Seed


def opened(story: Story) -> Counter[tuple[str, Seed]]:
    """How many hospitals opened their share of each dealer's seeds."""
    counts: Counter[tuple[str, Seed]] = Counter()
    for message in story.sent.get(Stage.UNMASK, {}).values():
        for opening in Signed.decode(Reveal, message).body.openings:
            counts[opening.dealer, opening.seed] += 1
    return counts


def lying_open(story: Story, names: tuple[str, ...], threshold: int, colluding: int) -> list[str]:
    """Those of whom both seeds can be recovered, if so many more shares come from colluding hospitals."""
    counts = opened(story)
    return [name for name in names if all(counts[name, seed] + colluding >= threshold for seed in Seed)]
