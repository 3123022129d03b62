"""Quantised arrays against bitsandbytes' numbers and closed forms; the matmul against plain autodiff and its memory."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from nf4_cases import ORACLE, bell, cases, oracle, outliers, record

from medjax.nn import quant
from medjax.nn.quant import KINDS, NF4_BOOK, dequantise, leaves, quantise, quantised_matmul

LAYERS, WIDTH, ROWS = 16, 512, 8

expanded = jax.jit(dequantise, static_argnums=(0, 2))  # op by op it is compiled op by op


def numpy_nf4(matrix):
    """Codes and absmaxes by the definition: the nearest of the 16 numbers, the lower one of two equally near."""
    blocks = matrix.reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    scaled = blocks * (1 / np.maximum(absmax, np.finfo(np.float32).tiny))[:, None]
    return np.abs(scaled[..., None].astype(np.float64) - NF4_BOOK).argmin(-1).reshape(matrix.shape), absmax


def unpacked(codes):
    return np.stack([codes >> 4, codes & 15], axis=-1).reshape(codes.shape[0], -1)


# --- NF4 against bitsandbytes


@pytest.fixture(scope="module")
def quantised_cases():
    return {name: quantise("nf4", matrix) for name, matrix in cases(NF4_BOOK).items()}


@pytest.mark.parametrize("name", cases(NF4_BOOK))
def test_nf4_codes_equal_those_of_bitsandbytes(quantised_cases, name):
    expected, arrays = oracle()[name], quantised_cases[name]
    got = record(**arrays, values=expanded("nf4", arrays))
    assert got["codes_hex"] == expected["codes_hex"]
    assert got["codes_sha256"] == expected["codes_sha256"]
    assert got["absmax_codes"] == expected["absmax_codes"]
    # bitsandbytes adds the mean up in another order; small absmaxes are differences of numbers as large as the scale
    rounding = 2e-7 * max(expected["absmax_scale"])
    for key in ("absmax_scale", "absmax_offset", "values"):
        np.testing.assert_allclose(got[key], expected[key], rtol=2e-6, atol=rounding, err_msg=key)


@pytest.mark.parametrize("name", cases(NF4_BOOK))
def test_arrays_of_bitsandbytes_dequantise_to_its_very_bits(quantised_cases, name):
    expected, codes = oracle()[name], quantised_cases[name]["codes"]
    arrays = {
        "codes": codes,
        "absmax_codes": np.array(expected["absmax_codes"], np.uint8).reshape(codes.shape[0], -1),
        "absmax_scale": np.array(expected["absmax_scale"], np.float32),
        "absmax_offset": np.float32(expected["absmax_offset"]),
    }
    values = expanded("nf4", arrays)
    assert record(**arrays, values=values)["values_sha256"] == expected["values_sha256"]


def test_code_books_equal_those_of_bitsandbytes():
    kept = json.loads(ORACLE.read_text(encoding="utf-8"))
    np.testing.assert_array_equal(NF4_BOOK, np.array(kept["code_book"], np.float32))
    np.testing.assert_array_equal(quant.DYNAMIC_MAP, np.array(kept["dynamic_map"], np.float32))


def test_nf4_codes_are_the_nearest_and_the_first_is_in_the_high_nibble():
    matrix = outliers()[:, :1024]
    codes, _ = numpy_nf4(matrix)
    np.testing.assert_array_equal(unpacked(quantise("nf4", matrix)["codes"]), codes)
    first = np.zeros((1, 64), np.float32)
    first[0, :2] = 1, -1
    assert quantise("nf4", first)["codes"][0, :2].tolist() == [0xF0, 0x77]


def test_nf4_error_is_within_half_the_widest_step_and_the_absmax_codes_own():
    matrix = bell(7, 96, 1024)
    arrays = quantise("nf4", matrix)
    _, absmax = numpy_nf4(matrix)
    kept = np.asarray(quant._absmax(arrays)).reshape(-1)
    # the widest step of the 8-bit map is 0.0140625 of a block's scale; its grid of 65,536 points adds 1.6e-5
    scale = np.repeat(arrays["absmax_scale"], 256)[: absmax.size]
    assert (np.abs(kept - absmax) <= scale * (0.0140625 / 2 + 1.6e-5)).all()
    error = np.abs(np.asarray(expanded("nf4", arrays)) - matrix).reshape(-1, 64)
    bound = np.diff(NF4_BOOK).max() / 2 * absmax + np.abs(kept - absmax)
    assert (error <= bound[:, None] * (1 + 1e-6)).all()
    # of normal weights 9.2 % is lost, as by bitsandbytes with double quantisation (0.09205)
    normal = (np.random.default_rng(0).standard_normal((576, 576)) * 0.02).astype(np.float32)
    lost = np.linalg.norm(np.asarray(expanded("nf4", quantise("nf4", normal))) - normal) / np.linalg.norm(normal)
    assert lost == pytest.approx(0.09205, abs=3e-4)


# --- integers


@pytest.mark.parametrize(("kind", "group", "most"), [("int8", 384, 127), ("int4", 128, 7)])
def test_integer_errors_are_within_half_a_step(kind, group, most):
    matrix = bell(5, 40, 384)
    matrix[3, 5], matrix[7], matrix[8, :128] = 40.0, 0.0, 0.25
    arrays = quantise(kind, matrix)
    scale = np.abs(matrix).reshape(40, -1, group).max(2) / (most + 0.5)
    np.testing.assert_allclose(arrays["scale"].reshape(scale.shape), scale, rtol=1e-6)
    error = np.abs(np.asarray(expanded(kind, arrays)) - matrix).reshape(40, -1, group)
    assert (error <= scale[..., None] / 2 * (1 + 1e-5)).all()
    assert (error[7] == 0).all()
    codes = arrays["codes"].astype(int) if kind == "int8" else unpacked(arrays["codes"]).astype(int) - 8
    assert codes.min() == -most
    assert codes.max() == most


def test_int4_groups_are_the_largest_power_of_two_that_divides():
    for inputs, group in ((128, 128), (512, 128), (576, 64), (96, 32), (80, 16)):
        assert quantise("int4", bell(1, 4, inputs))["scale"].shape == (4, inputs // group)


# --- shapes, dtypes, where it runs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(576, 1536), (3, 192)])
def test_arrays_are_those_that_leaves_names(kind, shape):
    arrays, expected = quantise(kind, bell(1, *shape)), leaves(kind, *shape)
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()
    }
    assert all(len(leaf.axes) == len(leaf.shape) for leaf in expected.values())
    assert expanded(kind, arrays).shape == shape


def test_sizes_of_nf4():
    leaf = leaves("nf4", 1536, 576)
    assert {name: (one.shape, one.axes) for name, one in leaf.items()} == {
        "codes": ((1536, 288), ("out", "in")),
        "absmax_codes": ((1536, 9), ("out", "in")),
        "absmax_scale": ((54,), (None,)),
        "absmax_offset": ((), ()),
    }
    bits = sum(8 * np.prod(one.shape, dtype=int) * one.dtype.itemsize for one in leaf.values()) / (1536 * 576)
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_jax_and_layers_at_once_give_the_same_arrays(kind):
    stacked = np.stack([bell(seed, 24, 192) for seed in range(3)]).astype(ml_dtypes.bfloat16)
    one_by_one = [quantise(kind, matrix) for matrix in stacked]
    assert all(isinstance(array, np.ndarray) for array in one_by_one[0].values())
    at_once = jax.jit(jax.vmap(lambda matrix: quantise(kind, matrix)))(jnp.asarray(stacked))
    matrices = jax.jit(jax.vmap(lambda arrays: dequantise(kind, arrays, jnp.bfloat16)))(at_once)
    assert matrices.dtype == jnp.bfloat16
    for layer, arrays in enumerate(one_by_one):
        for name, array in arrays.items():
            np.testing.assert_allclose(at_once[name][layer], array, rtol=1e-6, err_msg=name)
        wanted = np.asarray(expanded(kind, arrays))
        np.testing.assert_allclose(np.asarray(matrices[layer], np.float32), wanted, rtol=2**-8)


def test_messages():
    with pytest.raises(ValueError, match=r"got kind='nf5', expected one of nf4, int8, int4; name one of these"):
        leaves("nf5", 4, 64)
    with pytest.raises(ValueError, match=r"got a matrix of 96 inputs for nf4, expected a multiple of 64; use int8"):
        quantise("nf4", bell(1, 4, 96))
    with pytest.raises(ValueError, match=r"got a matrix of 90 inputs for int4, expected a multiple of 16; use int8"):
        quantise("int4", bell(1, 4, 90))
    with pytest.raises(ValueError, match=r"got an array of shape \(2, 3, 64\), expected \[out, in\]; reshape it"):
        quantise("nf4", np.zeros((2, 3, 64), np.float32))
    damaged = bell(1, 4, 128)
    for kind in KINDS:
        for value in (np.nan, np.inf):
            damaged[2, 70] = value
            with pytest.raises(ValueError, match=r"matrix \[4, 128\] with NaN or infinity.*check the checkpoint"):
                quantise(kind, damaged)


# --- the matmul


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_matmul_and_its_gradient_are_those_of_the_dequantised_matrix(kind, dtype):
    arrays = quantise(kind, bell(1, 40, 192))
    x = jnp.asarray(bell(2, 6, 192).reshape(2, 3, 192), dtype)
    dy = jnp.asarray(bell(3, 6, 40).reshape(2, 3, 40), dtype)
    y, pull = jax.vjp(jax.jit(lambda x: quantised_matmul(x, arrays, kind)), x)
    plain, pull_plain = jax.vjp(lambda x: x @ expanded(kind, arrays, dtype).T, x)
    assert y.dtype == dtype
    assert pull(dy)[0].dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(y, np.float32), np.asarray(plain, np.float32), atol=tolerance)
    got, expected = (np.asarray(pull(dy)[0], np.float32) for pull in (pull, pull_plain))
    np.testing.assert_allclose(got, expected, atol=tolerance)


@pytest.mark.parametrize("kind", ["nf4", "int4"])
def test_accelerators_take_even_and_odd_columns_apart(kind):
    """What is lowered for a TPU, run here: the same product and gradient, and no matrix that is put together again."""
    arrays = quantise(kind, bell(1, 40, 192))
    x, dy = jnp.asarray(bell(2, 6, 192)), jnp.asarray(bell(3, 6, 40))
    matrix = np.asarray(expanded(kind, arrays), np.float64)
    np.testing.assert_allclose(quant._halved_product(x, arrays, kind=kind), x @ matrix.T, atol=1e-5)
    np.testing.assert_allclose(quant._halved_gradient(dy, arrays, kind=kind), dy @ matrix, atol=1e-5)
    even, odd = quant._halves(kind, arrays, jnp.float32)
    np.testing.assert_array_equal(even, np.asarray(expanded(kind, arrays))[:, 0::2])
    np.testing.assert_array_equal(odd, np.asarray(expanded(kind, arrays))[:, 1::2])

    def product(x):
        return quantised_matmul(x, arrays, kind)

    texts = {
        platform: jax.jit(product).trace(x).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert "tensor<40x96xf32>" in texts["tpu"]
    assert "tensor<40x192xf32>" not in texts["tpu"]
    assert "tensor<40x192xf32>" in texts["cpu"]


def test_arrays_get_no_gradient():
    arrays = {name: jnp.asarray(array) for name, array in quantise("int8", bell(1, 8, 64)).items()}
    x = jnp.ones((2, 64))
    gradient = jax.grad(lambda scale: quantised_matmul(x, {**arrays, "scale": scale}, "int8").sum())(arrays["scale"])
    assert (gradient == 0).all()


def temporaries(matmul, kind, wrap):
    """Bytes that value_and_grad of a scan over LAYERS layers needs beside arguments and results, in float32 layers."""

    def layer(x, arrays):
        return jnp.tanh(matmul(x, arrays, kind)), None

    def loss(x, arrays):
        return jnp.sum(jax.lax.scan(wrap(layer), x, arrays)[0])

    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    arrays = {
        name: jax.ShapeDtypeStruct((LAYERS, *leaf.shape), leaf.dtype)
        for name, leaf in leaves(kind, WIDTH, WIDTH).items()
    }
    compiled = jax.jit(jax.value_and_grad(loss)).lower(x, arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (4 * WIDTH * WIDTH)


WRAPS = {
    "no checkpoint": lambda layer: layer,
    "checkpoint": jax.checkpoint,
    "everything saved": lambda layer: jax.checkpoint(layer, policy=jax.checkpoint_policies.everything_saveable),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_expanded_matrix_outlives_its_layer(kind, wrap):
    assert temporaries(quantised_matmul, kind, WRAPS[wrap]) < 3


@pytest.mark.parametrize("wrap", ["no checkpoint", "everything saved"])
def test_plain_autodiff_would_keep_every_expanded_matrix(wrap):
    def plain(x, arrays, kind):
        return x @ dequantise(kind, arrays, x.dtype).T

    assert temporaries(plain, "nf4", WRAPS[wrap]) > LAYERS


def test_a_table_of_selections_would_keep_sixteen_matrices(monkeypatch):
    def selections(codes):
        values = list(NF4_BOOK)
        for bit in (1, 2, 4, 8):
            values = [
                jnp.where(codes & bit != 0, one, zero) for zero, one in zip(values[::2], values[1::2], strict=True)
            ]
        return values[0]

    monkeypatch.setattr(quant, "_nf4_values", selections)
    assert temporaries(quantised_matmul, "nf4", jax.checkpoint) > 16


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_matrices_are_expanded_where_they_lie(kind, axis):
    matrix, mesh = bell(1, 256, 1024), Mesh(np.array(jax.devices()[:8]), ("tensor",))
    arrays, x = quantise(kind, matrix), bell(2, 8, 1024)

    def placed(array, axes):
        return jax.device_put(
            array, NamedSharding(mesh, PartitionSpec(*("tensor" if a == axis else None for a in axes)))
        )

    sharded = {name: placed(arrays[name], leaf.axes) for name, leaf in leaves(kind, *matrix.shape).items()}
    split = placed(x, (None, "in"))
    compiled = jax.jit(quantised_matmul, static_argnums=2).lower(split, sharded, kind).compile()
    text = compiled.as_text()
    assert "all-gather" not in text
    assert ("all-reduce" in text) == (axis == "in")
    np.testing.assert_allclose(compiled(split, sharded), x @ np.asarray(expanded(kind, arrays)).T, atol=1e-5)
