"""Quantised weights: NF4 with double quantisation, int8 a channel, int4 a group, and the matmul that reads them.

A quantised kernel is a dict of arrays in place of the array. They hold the checkpoint's matrix W [out, in], `in` last,
where `out` and `in` stand for the product of the output and of the input axes; blocks run along `in`:

  nf4    codes         uint8   [out, in / 2]   two codes a byte, the first in the high nibble
         absmax_codes  uint8   [out, in / 64]  the largest magnitude of each block of 64, in 8 bits
         absmax_scale  float32 [ceil(out * in / 64 / 256)]      and its own scale, a block of 256
         absmax_offset float32 []              the mean that was taken off before
         w = BOOK[code] * (MAP[absmax_code] * absmax_scale + absmax_offset), 4.127 bits a weight
  int8   codes int8 [out, in], scale float32 [out]              w = code * scale
  int4   codes uint8 [out, in / 2], packed like nf4's, scale float32 [out, in / group]     w = (code - 8) * scale

Code books, blocks and bytes are those of bitsandbytes, so that a QLoRA base is the same numbers here and there: codes
are equal code for code, and the same arrays dequantise to the same bits. Quantising, the offset may differ in its last
digit, as a mean is added up in another order; about one absmax in 20,000 is then rounded to the code beside. Integer
scales are the largest magnitude over 7.5 or 127.5, not 7 or 127: every error is still within half a step, and the step
is 7 % finer at 4 bits.

`quantised_matmul` keeps nothing but the codes for its backward pass and expands them once more there. Differentiating
`x @ dequantise(...).T` would instead make the expanded matrix a residual, one for each layer of a scan.

Packed kinds are two products on accelerators, of even and of odd columns: putting those side by side takes a TPU more
time and memory than all else (NF4, two layers as wide as Llama 3 8B's, compiled for v5e: 66 GB of HBM traffic a step
before, 13 GB so; temporaries 3.7 and 1.4 GiB).

Sources: NF4 and double quantisation, arXiv 2305.14314 (section 3, appendix E); the 8-bit map, arXiv 2110.02861.
"""

import math
from collections.abc import Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

KINDS = ("nf4", "int8", "int4")

BLOCK = 64  # weights of nf4 that share an absmax
ABSMAX_BLOCK = 256  # absmaxes that share a scale
GROUP = 128  # weights of int4 that share a scale, at most
_LEAST_GROUP = 16  # below, the scales take more room than the codes

NF4_BOOK = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_NF4_BOUNDS = (NF4_BOOK[:-1] + NF4_BOOK[1:]) / 2  # a value on a bound takes the lower code


def _dynamic_map() -> np.ndarray:
    """The 256 values of the signed dynamic 8-bit type, ascending.

    Decade i of 7 reaches from 10**(i - 7) to 10**(i - 6) and is cut in 2**i equal parts, each coded by its middle;
    then the mirror image, 0 and 1. Rounded to float32 where bitsandbytes rounds: the edges (computed from either end
    with a float32 step and fused multiply-adds), their means, and the product with the power of ten.
    """
    start, positive = np.float32(0.1), []
    for i in range(7):
        step, index = float((1 - start) / np.float32(2**i)), np.arange(2**i + 1)
        edges = np.where(index < (2**i + 1) // 2, start + step * index, 1 - step * index[::-1]).astype(np.float32)
        positive.append(np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / 2))
    magnitudes = np.concatenate(positive)
    return np.concatenate([-magnitudes[::-1], [0], magnitudes, [1]]).astype(np.float32)


DYNAMIC_MAP = _dynamic_map()
# bitsandbytes on the CPU finds the nearest of the 256 on a grid of 65,536 points over [-1, 1]; so does this. It is the
# nearest itself but for about one value in 500, which lies between two codes to 1.5e-5
_GRID = 65535
_GRID_CODES = np.searchsorted(
    (DYNAMIC_MAP[:-1].astype(np.float64) + DYNAMIC_MAP[1:]) / 2, np.arange(_GRID + 1) * (2 / _GRID) - 1
).astype(np.uint8)


class Leaf(NamedTuple):
    """One array of a quantised matrix; axes names what each axis runs along: "out", "in", or None for neither."""

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str | None, ...]


Places = tuple[tuple[str, NamedSharding], ...]  # of arrays, by name


def leaves(kind: str, out: int, in_: int) -> dict[str, Leaf]:
    """The arrays of a quantised matrix [out, in_], by name.

    Raises ValueError on an unknown kind, and where in_ is no multiple of nf4's 64 or int4's 16.
    """
    if kind not in KINDS:
        raise ValueError(f"quantise: got kind={kind!r}, expected one of {', '.join(KINDS)}; name one of these.")
    uint8, float32 = np.dtype(np.uint8), np.dtype(np.float32)
    if kind == "int8":
        return {"codes": Leaf((out, in_), np.dtype(np.int8), ("out", "in")), "scale": Leaf((out,), float32, ("out",))}
    least = BLOCK if kind == "nf4" else _LEAST_GROUP
    if in_ % least:
        raise ValueError(
            f"quantise: got a matrix of {in_} inputs for {kind}, expected a multiple of {least}; use int8 for it, "
            "which takes any length, or leave it as it is."
        )
    codes = Leaf((out, in_ // 2), uint8, ("out", "in"))
    if kind == "int4":
        return {"codes": codes, "scale": Leaf((out, in_ // _group(in_)), float32, ("out", "in"))}
    blocks = in_ // BLOCK
    return {
        "codes": codes,
        "absmax_codes": Leaf((out, blocks), uint8, ("out", "in")),
        "absmax_scale": Leaf((math.ceil(out * blocks / ABSMAX_BLOCK),), float32, (None,)),
        "absmax_offset": Leaf((), float32, ()),
    }


def quantise(kind: str, matrix: np.ndarray | jax.Array) -> dict[str, Any]:
    """Quantise a matrix [out, in] of any float dtype; computed in float32.

    A NumPy matrix is quantised on the host's CPU, whatever the accelerator, and gives NumPy arrays. A JAX array stays
    where it is, also under jit and vmap.

    Raises ValueError on an unknown kind, on a matrix that is not 2-D or whose length does not divide (see leaves), and
    on a NumPy matrix that holds NaN or infinity.
    """
    if matrix.ndim != 2:
        raise ValueError(
            f"quantise: got an array of shape {matrix.shape}, expected [out, in]; reshape it, or vmap over its layers."
        )
    leaves(kind, *matrix.shape)  # raises where the shape does not fit
    if isinstance(matrix, jax.Array):
        return _quantise(kind, matrix)
    with jax.default_device(_cpu()):
        arrays = {name: np.asarray(array) for name, array in _quantise(kind, matrix).items()}
    if not all(np.isfinite(array).all() for name, array in arrays.items() if array.dtype == np.float32):
        raise ValueError(
            f"quantise: got a matrix {list(matrix.shape)} with NaN or infinity, expected finite weights; check the "
            "checkpoint, the file may be damaged."
        )
    return arrays


def dequantise(kind: str, arrays: Mapping[str, Any], dtype: Any = jnp.float32) -> jax.Array:
    """The matrix [out, in] of quantised arrays: float32 inside, then cast to dtype. Works under jit and vmap."""
    codes = jnp.asarray(arrays["codes"])
    with jax.named_scope("dequantise"):
        if kind == "int8":
            return (codes.astype(jnp.float32) * arrays["scale"][:, None]).astype(dtype)
        codes = jnp.stack([codes >> 4, codes & 15], axis=-1).reshape(codes.shape[0], -1)
        if kind == "int4":
            return _scaled(codes.astype(jnp.float32) - 8, arrays["scale"]).astype(dtype)
        return _scaled(_nf4_values(codes), _absmax(arrays)).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def quantised_matmul(x: jax.Array, arrays: Mapping[str, Any], kind: str, gathered: Places | None = None) -> jax.Array:
    """x @ W.T for a quantised W [out, in].

    x         [..., in], its dtype is the dtype of the computation and of the result
    arrays    of quantise(kind, W)
    gathered  where arrays, by name, are brought before they are expanded, here and once more in the backward pass
    returns   [..., out]

    Differentiable in x only, in reverse mode; the arrays get no gradient. Its residuals are the arrays themselves.
    """
    arrays = _gather(arrays, gathered)
    if kind == "int8":
        return _whole_product(x, arrays, kind=kind)
    return jax.lax.platform_dependent(
        x, arrays, cpu=partial(_whole_product, kind=kind), default=partial(_halved_product, kind=kind)
    )


def _gather(arrays: Mapping[str, Any], gathered: Places | None) -> Mapping[str, Any]:
    places = dict(gathered or ())
    return {
        name: jax.lax.with_sharding_constraint(array, places[name]) if name in places else array
        for name, array in arrays.items()
    }


def _whole_product(x: jax.Array, arrays: Mapping[str, Any], *, kind: str) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x, dequantise(kind, arrays, x.dtype))


def _halved_product(x: jax.Array, arrays: Mapping[str, Any], *, kind: str) -> jax.Array:
    even, odd = _halves(kind, arrays, x.dtype)
    product = partial(jnp.einsum, "...i,oi->...o", preferred_element_type=jnp.float32)
    return (product(x[..., 0::2], even) + product(x[..., 1::2], odd)).astype(x.dtype)


def _halves(kind: str, arrays: Mapping[str, Any], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The even and the odd columns [out, in / 2] of a packed matrix, each expanded by itself.

    Side by side they would have to be interleaved, which takes a TPU several passes over matrices of int32.
    """
    codes = jnp.asarray(arrays["codes"])
    with jax.named_scope("dequantise"):
        scale = arrays["scale"] if kind == "int4" else _absmax(arrays)

        def expanded(half: jax.Array) -> jax.Array:
            values = half.astype(jnp.float32) - 8 if kind == "int4" else _nf4_values(half)
            return _scaled(values, scale).astype(dtype)

        return expanded(codes >> 4), expanded(codes & 15)


def _forward(x: jax.Array, arrays: Mapping[str, Any], kind: str, gathered: Places | None):
    return quantised_matmul(x, arrays, kind, gathered), arrays


def _backward(kind: str, gathered: Places | None, arrays: Mapping[str, Any], dy: jax.Array) -> tuple[jax.Array, None]:
    arrays = _gather(arrays, gathered)
    if kind == "int8":
        return _whole_gradient(dy, arrays, kind=kind), None
    whole, halved = partial(_whole_gradient, kind=kind), partial(_halved_gradient, kind=kind)
    return jax.lax.platform_dependent(dy, arrays, cpu=whole, default=halved), None


def _whole_gradient(dy: jax.Array, arrays: Mapping[str, Any], *, kind: str) -> jax.Array:
    return jnp.einsum("...o,oi->...i", dy, dequantise(kind, arrays, dy.dtype))


def _halved_gradient(dy: jax.Array, arrays: Mapping[str, Any], *, kind: str) -> jax.Array:
    columns = [jnp.einsum("...o,oi->...i", dy, half) for half in _halves(kind, arrays, dy.dtype)]
    return jnp.stack(columns, axis=-1).reshape(*dy.shape[:-1], -1)


quantised_matmul.defvjp(_forward, _backward)


def _group(in_: int) -> int:
    return min(GROUP, in_ & -in_)  # the largest power of two that divides in_


def _cpu() -> jax.Device | None:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out: the default device it is
        return None


@partial(jax.jit, static_argnums=0)
def _quantise(kind: str, matrix: jax.Array) -> dict[str, jax.Array]:
    matrix = matrix.astype(jnp.float32)
    out, in_ = matrix.shape
    if kind == "int8":
        scale = jnp.max(jnp.abs(matrix), axis=1) / 127.5
        return {"codes": _steps(matrix, scale[:, None], 127).astype(jnp.int8), "scale": scale}
    if kind == "int4":
        groups = matrix.reshape(out, -1, _group(in_))
        scale = jnp.max(jnp.abs(groups), axis=2) / 7.5
        codes = (_steps(groups, scale[..., None], 7) + 8).astype(jnp.uint8)
        return {"codes": _pack(codes.reshape(out, in_)), "scale": scale}
    blocks = matrix.reshape(out, -1, BLOCK)
    absmax = jnp.max(jnp.abs(blocks), axis=2)
    codes = _above(blocks * _inverse(absmax)[..., None], _NF4_BOUNDS)
    offset = jnp.mean(absmax)
    offset += jnp.mean(absmax - offset)  # a float32 sum of a million numbers is off in its last digits
    rest = (absmax - offset).reshape(-1)
    rest = jnp.pad(rest, (0, -rest.size % ABSMAX_BLOCK)).reshape(-1, ABSMAX_BLOCK)
    scale = jnp.max(jnp.abs(rest), axis=1)
    grid = ((rest * _inverse(scale)[:, None] + 1) * 0.5 * _GRID + 0.5).astype(jnp.int32)
    absmax_codes = jnp.where(scale[:, None] > 0, jnp.asarray(_GRID_CODES)[grid], 0)
    return {
        "codes": _pack(codes.reshape(out, in_)),
        "absmax_codes": absmax_codes.reshape(-1)[: absmax.size].reshape(absmax.shape),
        "absmax_scale": scale,
        "absmax_offset": offset,
    }


def _inverse(x: jax.Array) -> jax.Array:
    return 1 / jnp.maximum(x, np.finfo(np.float32).tiny)  # blocks of zeros stay zeros


def _above(x: jax.Array, bounds: np.ndarray) -> jax.Array:
    """How many of the few bounds lie below each x, uint8: plain comparisons are many times faster than a search."""
    return reduce(jnp.add, [(x > bound).astype(jnp.uint8) for bound in bounds])


def _steps(x: jax.Array, scale: jax.Array, most: int) -> jax.Array:
    return jnp.clip(jnp.round(x / jnp.where(scale > 0, scale, 1)), -most, most)


def _pack(codes: jax.Array) -> jax.Array:
    pairs = codes.reshape(codes.shape[0], -1, 2)
    return pairs[..., 0] << 4 | pairs[..., 1]


def _scaled(values: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiply [out, in] by [out, blocks], one factor a block."""
    out, in_ = values.shape
    return (values.reshape(out, scale.shape[1], -1) * scale[..., None]).reshape(out, in_)


def _nf4_values(codes: jax.Array) -> jax.Array:
    """NF4_BOOK[codes], chosen by the four bits of a code.

    Elementwise, so that every back end can fuse and vectorise it; on a CPU it takes as long as a gather from the table.
    In integers, because the constants of a jnp.where are whole arrays, and jax.lax.scan computes those before its loop:
    16 matrices that live as long as it runs.
    """
    codes = codes.astype(jnp.int32)
    table = [np.int32(value) for value in NF4_BOOK.view(np.int32)]
    masks = [-((codes >> bit) & 1) for bit in range(4)]  # all ones where the bit is set
    values = [(masks[0] & (zero ^ one)) ^ zero for zero, one in zip(table[::2], table[1::2], strict=True)]
    for mask in masks[1:]:
        values = [(mask & (zero ^ one)) ^ zero for zero, one in zip(values[::2], values[1::2], strict=True)]
    return jax.lax.bitcast_convert_type(values[0], jnp.float32)


def _absmax(arrays: Mapping[str, Any]) -> jax.Array:
    """The largest magnitude of each block, [out, in / 64] float32."""
    codes = jnp.asarray(arrays["absmax_codes"])
    scale = jnp.repeat(arrays["absmax_scale"], ABSMAX_BLOCK)[: codes.size].reshape(codes.shape)
    product = jnp.asarray(DYNAMIC_MAP)[codes] * scale
    # bitsandbytes rounds here; the maximum changes nothing, but keeps the compiler from a fused multiply-add
    return jnp.maximum(product, np.finfo(np.float32).min) + arrays["absmax_offset"]
