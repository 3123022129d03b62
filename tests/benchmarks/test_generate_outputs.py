"""Comparing the outputs of two sides: places, near-ties, log-probabilities that are told for some tokens only."""

import pytest
from generate_outputs import (
    NEAR_TIE,
    Place,
    agreement,
    differences,
    extrapolated,
    first_difference,
    largest_difference,
    values_by_place,
)


def test_first_difference_is_the_first_token_that_differs():
    assert first_difference((5, 6, 7, 8), [5, 6, 9, 8]) == 2
    assert first_difference((5, 6), (5, 6)) is None
    assert first_difference((1,), (2,)) == 0


def test_answers_of_different_lengths_do_not_compare():
    with pytest.raises(ValueError, match="got 3 and 2 new tokens, expected the same number"):
        first_difference((1, 2, 3), (1, 2))


def test_logits_are_asked_for_after_the_common_part():
    asked = []

    def ask(context, token):
        asked.append((context, token))
        return Place(0.001, 0.002)

    found = differences(
        [(1, 2), (3,), (4,)], [(10, 11, 12), (20, 21, 22), (5, 5, 5)], [(10, 13, 12)] * 2 + [(5,) * 3], ask
    )
    assert asked == [((1, 2, 10), 13), ((3,), 10)]
    assert [(one.prompt, one.at, one.ours, one.theirs) for one in found] == [(0, 1, 11, 13), (1, 0, 20, 10)]


def test_agreement_counts_answers_and_judges_the_token_of_the_other_side():
    tie, far = Place(0.0005, NEAR_TIE), Place(0.0005, 2 * NEAR_TIE)  # a near-tie, but not with this token
    places = iter([tie, far])
    found = differences([(1,)] * 4, [(7, 8)] * 4, [(7, 8), (7, 9), (7, 8), (6, 8)], lambda *_: next(places))
    both = agreement(4, found)
    assert both["identical"] == 0.5
    assert both["near_ties_only"] is False
    assert both["largest_behind"] == 2 * NEAR_TIE
    assert both["median_first_difference"] == 0.5
    assert both["differences"][0] == {
        "prompt": 1,
        "at": 1,
        "ours": 8,
        "theirs": 9,
        "place": {"gap": 0.0005, "behind": NEAR_TIE},
    }
    assert agreement(4, found[:1])["near_ties_only"] is True


def test_agreement_without_a_difference():
    same = agreement(3, [])
    assert (same["identical"], same["near_ties_only"], same["largest_behind"]) == (1.0, True, 0.0)
    assert same["median_first_difference"] is None


def test_largest_difference_skips_what_is_not_told():
    assert largest_difference([(-1.0, -2.0), (-3.0,)], [(-1.5, None), (-3.25,)]) == 0.5
    assert largest_difference([(-1.0,)], [(None,)]) == 0.0


def test_values_go_to_tokens_that_can_be_told_apart():
    # 180 leaves a character unfinished: nothing is told of it
    assert values_by_place([81, 180, 246, 30], [(81, -1.0), (246, -2.0), (30, -3.0)]) == [-1.0, None, -2.0, -3.0]
    assert values_by_place([4, 4, 9], [(4, -1.0), (4, -2.0), (9, -3.0)]) == [-1.0, -2.0, -3.0]


def test_a_value_that_fits_two_places_goes_to_none():
    assert values_by_place([4, 4, 9], [(4, -1.0), (9, -3.0)]) == [None, None, -3.0]


def test_values_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match="got a value for token 5"):
        values_by_place([4, 9], [(4, -1.0), (5, -1.0)])


def test_trials_scale_decoding_but_not_the_prefill():
    # 31 steps in 6.2 s are 127 in 25.4 s, after 10 s of prompts
    assert extrapolated(10.0, 6.2, tried=32, new_tokens=128) == pytest.approx(35.4)
    assert extrapolated(10.0, 0.0, tried=1, new_tokens=1) == 10.0
