import numpy as np
import pytest

from medjax.infer.packing import Request, common_length, plan, stack


def _requests(rng, prefix, questions, choices):
    """Sequences with a shared prefix, questions of uneven length, choices that share their question."""
    sequences = []
    for _ in range(questions):
        question = tuple(rng.integers(1, 50, rng.integers(40, 300)).tolist())
        for _ in range(choices):
            sequences.append(prefix + question + tuple(rng.integers(1, 50, rng.integers(0, 30)).tolist()))
    return sequences


def _ancestors(row, place):
    """Row indices that a token may see, by the rule s <= t < ends[s]."""
    return [s for s in range(place + 1) if place < row.ends[s]]


@pytest.mark.parametrize("prefix_length", [0, 5, 200])
def test_every_sequence_can_be_read_back_along_the_tokens_it_sees(prefix_length):
    rng = np.random.default_rng(prefix_length)
    prefix = tuple(rng.integers(1, 50, prefix_length).tolist())
    sequences = _requests(rng, prefix, questions=9, choices=4)
    packed = plan(sequences, row_tokens=512)
    assert packed.prefix == (prefix if prefix_length >= 128 else ())
    shared, seen = len(packed.prefix), set()
    for length, rows in packed.rows.items():
        for row in rows:
            assert len(row.tokens) <= length
            for i, places in zip(row.sequences, row.places, strict=True):
                seen.add(i)
                own = sequences[i][shared:]
                assert tuple(row.tokens[p] for p in places) == own
                assert [row.positions[p] for p in places] == list(range(shared, shared + len(own)))
                if places:  # the last token sees exactly its own sequence, nothing of its neighbours
                    assert _ancestors(row, places[-1]) == places
    assert seen == set(range(len(sequences)))


def test_shared_tokens_are_run_once():
    question = tuple(range(1, 101))
    sequences = [(*question, 7), (*question, 7, 8), (*question, 9), question, question]
    packed = plan(sequences, row_tokens=512)
    assert packed.tokens == 100 + 2 + 1
    (row,) = next(iter(packed.rows.values()))
    assert row.ends[:100] == [103] * 100
    assert sorted(row.tokens[100:]) == [7, 8, 9]


def test_a_few_common_first_tokens_do_not_tie_questions_together():
    first, second = tuple([5] * 8 + [1] * 100), tuple([5] * 8 + [2] * 100)
    (row,) = next(iter(plan([first, second], row_tokens=512).rows.values()))
    assert len(row.tokens) == 216
    assert max(row.ends[:108]) == 108


def test_rows_are_filled_and_a_long_sequence_gets_a_longer_row():
    rng = np.random.default_rng(0)
    sequences = [tuple(rng.integers(1, 10**6, n).tolist()) for n in rng.integers(50, 400, 60)]
    sequences.append(tuple(rng.integers(1, 10**6, 1500).tolist()))
    packed = plan(sequences, row_tokens=512)
    assert set(packed.rows) == {2048, 512}
    filled = [len(row.tokens) / 512 for row in packed.rows[512]]
    assert np.mean(filled[:-1]) > 0.93  # best fit, longest first


def test_tokens_that_are_read_stay_out_of_the_prefix():
    base = tuple(range(300))
    packed = plan([(*base, 1), (*base, 2)], row_tokens=512, keep=[10, 2])
    assert len(packed.prefix) in (0, 291)
    many = [(*base, i, *range(400, 500)) for i in range(4)]
    packed = plan(many, row_tokens=512, keep=[101, 130, 101, 101])
    assert len(packed.prefix) == 301 + 100 - 130


def test_plan_does_not_depend_on_the_order_of_requests_in_what_it_runs():
    rng = np.random.default_rng(3)
    sequences = _requests(rng, tuple(range(150)), questions=6, choices=3)
    order = rng.permutation(len(sequences))
    one, other = plan(sequences, row_tokens=512), plan([sequences[i] for i in order], row_tokens=512)
    assert one.prefix == other.prefix
    tokens = lambda packed: [row.tokens for rows in packed.rows.values() for row in rows]  # noqa: E731
    assert tokens(one) == tokens(other)


def test_stack_pads_with_tokens_that_see_only_themselves():
    (row,) = next(iter(plan([(1, 2, 3)], row_tokens=128).rows.values()))
    arrays = stack([row], 128, 2)
    assert arrays["tokens"].shape == (2, 128)
    np.testing.assert_array_equal(arrays["ends"][0], [3, 3, 3, *range(4, 129)])
    np.testing.assert_array_equal(arrays["ends"][1], np.arange(1, 129))


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match="0 context and 1 continuation"):
        Request((), (1,))
    with pytest.raises(ValueError, match="row_tokens: got 100"):
        plan([(1,)], row_tokens=100)
    assert plan([], row_tokens=128).rows == {}
    assert common_length((1, 2, 3), (1, 2)) == 2
