import pytest

from medjax.plan.capacity import capacity


@pytest.mark.parametrize("start", [128, 256, 5000, 100_000])
def test_a_line_is_met_in_four_measurements(start):
    """700 + 3 a token in a room of 10,000: 3100 tokens, 3072 in parts of 128."""
    found = capacity("tokens", lambda size: 700 + 3 * size, room=10_000, start=start, step=128, most=2**17)
    assert found.size == 3072
    assert found.tried[3072] == 700 + 3 * 3072
    assert len(found.tried) <= 4
    assert found.slope == 3


def test_padding_does_not_mislead():
    """Sizes are padded to a multiple of 1000: 7000 fits, one more does not, and steps of 10 look alike."""
    needed = lambda size: 500 + 7 * -(-size // 1000) * 1000  # noqa: E731
    found = capacity("tokens", needed, room=50_000, start=10, step=10, most=100_000)
    assert 6900 < found.size <= 7000
    assert needed(7010) > 50_000


def test_a_bend_is_followed():
    """A program whose need grows faster beyond a size, as where another one becomes the largest."""
    needed = lambda size: max(1000 + size, 40 * size - 20_000)  # noqa: E731
    found = capacity("sequences", needed, room=12_000, start=100, step=1, most=10**6)
    assert found.size == 800
    assert len(found.tried) <= 8


def test_the_most_is_tried_and_kept():
    found = capacity("tokens", lambda size: size, room=10**9, start=2048, step=128, most=4096)
    assert (found.size, found.most, sorted(found.tried)) == (4096, 4096, [2048, 4096])


def test_nothing_fits():
    found = capacity("tokens", lambda size: 10**6 + size, room=1000, start=1024, step=128, most=4096)
    assert found.size == 0
    assert 128 in found.tried  # the smallest was tried


def test_no_size_at_all():
    with pytest.raises(ValueError, match="tokens: got 100 at most, expected 128 or more"):
        capacity("tokens", lambda size: size, room=1, start=1, step=128, most=100)
