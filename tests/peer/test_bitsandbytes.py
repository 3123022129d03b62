"""Quantised weights against bitsandbytes (NF4) and qwix (all kinds): python -m pytest -m peer tests/peer.

Both are optional. The oracle that the ordinary tests read is made again here, and must be what the file says.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.quant import DYNAMIC_MAP, NF4_BOOK, dequantise, quantise

sys.path.insert(0, str(Path(__file__).parents[1] / "nn"))
from nf4_cases import bell, cases, oracle, record

pytestmark = pytest.mark.peer

expanded = jax.jit(dequantise, static_argnums=0)


@pytest.fixture(scope="module")
def bitsandbytes():
    torch = pytest.importorskip("torch", reason="torch is not installed: bitsandbytes needs it")
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")

    def nf4(matrix):
        """The arrays of medjax's names as bitsandbytes makes them, and its own dequantised matrix."""
        packed, state = functional.quantize_4bit(
            torch.tensor(matrix), quant_type="nf4", blocksize=64, compress_statistics=True
        )
        arrays = {
            "codes": packed.numpy().reshape(matrix.shape[0], -1),
            "absmax_codes": state.absmax.numpy().reshape(matrix.shape[0], -1),
            "absmax_scale": state.state2.absmax.numpy(),
            "absmax_offset": state.offset.numpy(),
        }
        single, _ = functional.quantize_4bit(torch.tensor(matrix), quant_type="nf4", blocksize=64)
        np.testing.assert_array_equal(single.numpy(), packed.numpy())  # the codes do not depend on double quantisation
        return arrays, functional.dequantize_4bit(packed, state).numpy()

    nf4.functional = functional
    return nf4


def test_code_books(bitsandbytes):
    functional = bitsandbytes.functional
    np.testing.assert_array_equal(NF4_BOOK, functional.get_4bit_type("nf4", device="cpu").numpy())
    np.testing.assert_array_equal(DYNAMIC_MAP, functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("name", cases(NF4_BOOK))
def test_the_oracle_is_what_bitsandbytes_gives(bitsandbytes, name):
    arrays, values = bitsandbytes(cases(NF4_BOOK)[name])
    got, kept = record(**arrays, values=values), oracle()[name]
    for key in ("codes_hex", "codes_sha256", "absmax_codes"):
        assert got[key] == kept[key], key
    for key in ("absmax_scale", "absmax_offset", "values"):  # its mean depends on the number of threads
        np.testing.assert_allclose(got[key], kept[key], rtol=2e-6, atol=2e-7 * max(kept["absmax_scale"]))


@pytest.mark.parametrize(("out", "in_", "power"), [(576, 576, 1), (1536, 576, 1), (1024, 4096, 1), (1000, 2048, 3)])
def test_nf4_of_random_weights(bitsandbytes, out, in_, power):
    matrix = (np.random.default_rng(out).standard_normal((out, in_)) ** power * 0.02).astype(np.float32)
    theirs, values = bitsandbytes(matrix)
    np.testing.assert_array_equal(expanded("nf4", theirs), values)  # bit for bit
    ours = quantise("nf4", matrix)
    np.testing.assert_array_equal(ours["codes"], theirs["codes"])
    np.testing.assert_allclose(ours["absmax_offset"], theirs["absmax_offset"], rtol=3e-7)
    np.testing.assert_allclose(ours["absmax_scale"], theirs["absmax_scale"], rtol=2e-6)
    # another last digit of the offset moves an absmax over a bound of the 8-bit map now and then
    apart = ours["absmax_codes"].astype(int) - theirs["absmax_codes"]
    assert np.abs(apart).max() <= 1
    assert np.mean(apart != 0) <= 5e-4
    same = np.repeat(apart.reshape(-1) == 0, 64)
    got = np.asarray(expanded("nf4", ours)).reshape(-1)
    np.testing.assert_allclose(got[same], values.reshape(-1)[same], rtol=1e-4, atol=2e-7 * matrix.max())


@pytest.mark.parametrize(("kind", "tile", "same"), [("nf4", 64, 1e-3), ("int8", None, 1e-5), ("int4", 128, 1e-5)])
def test_round_trip_is_as_good_as_that_of_qwix(kind, tile, same):
    """Relative error of normal weights: qwix's for integers; for NF4 within what double quantisation costs."""
    qarray = pytest.importorskip("qwix._src.core.qarray", reason="qwix is not installed")
    matrix = (np.random.default_rng(0).standard_normal((1536, 512)) * 0.02).astype(np.float32)
    how = qarray.HowToQuantize(
        qtype=kind if kind == "nf4" else jnp.dtype(kind), channelwise_axes=(0,), tiled_axes={1: tile} if tile else {}
    )
    theirs = np.asarray(jax.jit(lambda w: qarray.dequantize(qarray.quantize(w, how)))(matrix))
    ours = np.asarray(expanded(kind, quantise(kind, matrix)))

    def lost(values):
        return np.linalg.norm(values - matrix) / np.linalg.norm(matrix)

    assert lost(ours) == pytest.approx(lost(theirs), rel=same)


def test_bfloat16_weights_have_the_codes_of_their_float32_values(bitsandbytes):
    matrix = np.asarray(jnp.asarray(bell(11, 64, 256), jnp.bfloat16))
    theirs, _ = bitsandbytes(matrix.astype(np.float32))
    np.testing.assert_array_equal(quantise("nf4", matrix)["codes"], theirs["codes"])
