"""Masks: counts, who may be shown, independence of rows, and the way back with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.masking import Mask, draw_mask, restore, take

SEEDS = jnp.asarray([3, 4, 2**32 - 1, 5], jnp.uint32)


def draw(valid, seeds=SEEDS, **options):
    return Mask(*(np.asarray(part) for part in draw_mask(seeds, jnp.asarray(valid), **options)))


def check_shape(mask, valid):
    """What holds for every mask: see the module's docstring."""
    b, t = valid.shape
    np.testing.assert_array_equal(mask.shown | mask.masked, valid)
    assert not np.any(mask.shown & mask.masked)
    for row in range(b):
        assert len(set(mask.keep[row].tolist())) == mask.keep.shape[1]
        assert set(np.flatnonzero(mask.shown[row])) <= set(mask.keep[row].tolist())
        for slot, token in enumerate(mask.keep[row]):
            assert mask.slot[row, token] == slot
        assert np.sum(mask.slot[row] == mask.keep.shape[1]) == t - mask.keep.shape[1]


def test_the_paper_s_counts():
    """240 tokens, 75 %: 60 shown, 180 masked."""
    valid = np.ones((4, 240), bool)
    mask = draw(valid, masked=0.75)
    check_shape(mask, valid)
    assert mask.keep.shape == (4, 60)
    assert mask.shown.sum(1).tolist() == [60] * 4
    assert mask.masked.sum(1).tolist() == [180] * 4
    assert draw(valid, masked=0.9).shown.sum(1).tolist() == [24] * 4  # (1 - 0.9) * 240 is 23.999… in floating point
    assert draw(valid, masked=0.9).keep.shape == (4, 24)


def test_each_lead_is_masked_by_itself():
    valid = np.ones((4, 240), bool)
    mask = draw(valid, masked=0.75, groups=12)
    check_shape(mask, valid)
    assert mask.keep.shape == (4, 60)
    assert (mask.shown.reshape(4, 12, 20).sum(-1) == 5).all()
    over_all = draw(valid, masked=0.75).shown.reshape(4, 12, 20).sum(-1)
    assert len(set(over_all.ravel().tolist())) > 1


@pytest.mark.parametrize(("groups", "counts"), [(1, [10, 3, 1, 0]), (4, [8, 4, 1, 0])])
def test_only_valid_tokens_are_shown_or_masked(groups, counts):
    """Rows of 40, 13, 1 and no valid tokens: 25 % of them, at least one (by group: of 10 2, of 4, 3, 3, 3 one each)."""
    valid = np.zeros((4, 40), bool)
    valid[0] = True
    valid[1, ::3] = True
    valid[1, 39] = False
    valid[2, 17] = True
    mask = draw(valid, masked=0.75, groups=groups)
    check_shape(mask, valid)
    assert valid.sum(1).tolist() == [40, 13, 1, 0]
    assert mask.shown.sum(1).tolist() == counts
    assert mask.masked.sum(1).tolist() == [int(v) - c for v, c in zip(valid.sum(1), counts, strict=True)]


def test_places_left_over_hold_valid_tokens_first():
    valid = np.zeros((4, 40), bool)
    valid[:, 5:17] = True
    keep = draw(valid, masked=0.75).keep
    assert all(5 <= token < 17 for row in keep for token in row)  # 10 places, 12 valid tokens


def test_a_row_s_mask_depends_on_its_seed_only():
    valid = np.ones((4, 48), bool)
    valid[1, 7:] = False
    whole = draw(valid, masked=0.75, groups=4)
    for row in range(4):
        alone = draw(valid[row : row + 1], SEEDS[row : row + 1], masked=0.75, groups=4)
        for one, many in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(one[0], many[row])
    same = draw(np.ones((2, 48), bool), jnp.asarray([9, 9], jnp.uint32), masked=0.75)
    np.testing.assert_array_equal(same.shown[0], same.shown[1])
    assert (draw(np.ones((4, 48), bool), masked=0.75).shown[0] != same.shown[0]).any()


def test_every_token_is_shown_as_often_as_another():
    """4,000 masks of 16 tokens, 4 shown: each about 1,000 times (standard deviation 27)."""
    seeds = jnp.arange(4000, dtype=jnp.uint32)
    shown = draw_mask(seeds, jnp.ones((4000, 16), bool), masked=0.75).shown
    counts = np.asarray(shown).sum(0)
    assert counts.sum() == 16000
    assert abs(counts - 1000).max() < 5 * 27


def test_restore_and_its_gradient():
    """Against a look-up written with one-hot products, on rows that have fewer shown tokens than places."""
    valid = np.ones((4, 24), bool)
    valid[1, 6:] = valid[2, 1:] = valid[3] = False
    mask = draw_mask(SEEDS, jnp.asarray(valid), masked=0.5)
    rng = np.random.default_rng(0)
    kept = jnp.asarray(rng.normal(size=(4, 12, 5)), jnp.float32)
    fill, by = jnp.asarray(rng.normal(size=5), jnp.float32), jnp.asarray(rng.normal(size=(4, 24, 5)), jnp.float32)

    def slow(kept, fill):
        place = jax.nn.one_hot(mask.slot, 12) * mask.shown[..., None]
        return jnp.einsum("btk,bkd->btd", place, kept) + jnp.where(mask.shown[..., None], 0, fill)

    np.testing.assert_allclose(restore(kept, fill, mask), slow(kept, fill), atol=1e-6)
    got = jax.grad(lambda *a: jnp.sum(restore(*a, mask) * by), argnums=(0, 1))(kept, fill)
    want = jax.grad(lambda *a: jnp.sum(slow(*a) * by), argnums=(0, 1))(kept, fill)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_array_equal(take(kept, jnp.asarray([[3, 1]] * 4)), np.asarray(kept)[:, [3, 1]])
