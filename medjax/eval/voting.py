"""The most frequent of several answers.

Answers are equal when they say the same: the same letters, the same set of entities, the same number. The most frequent
wins; of several that are as frequent the one that had reached that number first, in the order of asking. What could not
be read has no vote, and wins only where nothing could be read.
"""

from collections import Counter
from collections.abc import Hashable, Sequence


def vote(ballots: Sequence[Hashable | None]) -> tuple[int, float]:
    """The number of the first ballot of the winner, and its share of all ballots; None is a ballot without a vote.

    Without any vote: the first ballot, and a share of 0.
    Raises ValueError without ballots.
    """
    if not ballots:
        raise ValueError("vote: got no ballots, expected at least one; ask an item at least once.")
    counts = Counter[Hashable]()
    leader: Hashable | None = None
    for ballot in ballots:
        if ballot is not None:
            counts[ballot] += 1
            if counts[ballot] > counts[leader]:
                leader = ballot
    return (ballots.index(leader) if leader is not None else 0), counts[leader] / len(ballots)
