"""The most frequent of several answers, and who wins a tie."""

import itertools

import pytest

from medjax.eval.voting import vote


@pytest.mark.parametrize(
    ("ballots", "winner", "share"),
    [
        ("a", 0, 1.0),
        ("abb", 1, 2 / 3),
        # a reaches two before b does
        ("abab", 0, 1 / 2),
        # b reaches two first, though a was named first
        ("abba", 1, 1 / 2),
        ("abc", 0, 1 / 3),
        # what could not be read never wins over a reading
        ("---b", 3, 1 / 4),
        ("----", 0, 0.0),
    ],
)
def test_the_most_frequent_wins_and_of_several_the_first_to_get_there(ballots, winner, share):
    assert vote([None if ballot == "-" else ballot for ballot in ballots]) == (winner, pytest.approx(share))


def test_every_short_election_against_a_count_by_hand():
    for ballots in itertools.product(["a", "b", "c", None], repeat=5):
        number, share = vote(ballots)
        named = [ballot for ballot in ballots if ballot is not None]
        if not named:
            assert (number, share) == (0, 0)
            continue
        most = max(named.count(ballot) for ballot in named)
        reached = {b: [i for i, x in enumerate(ballots) if x == b][most - 1] for b in named if named.count(b) == most}
        assert ballots[number] == min(reached, key=reached.get)
        assert number == ballots.index(ballots[number])
        assert share == most / 5


def test_no_ballots():
    with pytest.raises(ValueError, match="vote: got no ballots"):
        vote([])
