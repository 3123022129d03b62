"""Attention by the kernels that come with JAX for one kind of accelerator: `splash` for TPU, `cudnn` for NVIDIA GPUs.

They are fast because they see less than a Forest can say. What each can express of `ends`:

             rows of whole documents      one document a row, padded      branching trees, prefix
  splash     yes, ends as segment ids     yes                             no
  cudnn      no                           yes                             no

Two documents of a row have distinct ends, and padding sees itself alone, so `ends` are segment ids as they stand. What
a kernel cannot express raises ValueError where it is known while tracing; where it is data inside jit, the row comes
out as NaN: a wrong mask would train without a sign (google/maxtext issue 4476). A sliding window must be one number, so
models whose layers differ in reach have `blockwise`.

On a mesh the kernels run in jax.shard_map, each device on its own rows and heads. Key/value heads are repeated as
often as is needed to split them like the query heads: 8 of them over tensor=16 become 16. Rows whose tokens are split
too are for nn.context.

Sources: nn.splash; jax.nn.dot_product_attention.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from medjax.nn import splash

KERNELS = ("splash", "cudnn")

Local = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def choose_backend(wanted: str, platform: str, *, packed: bool, layers_differ: bool, dtype: str) -> str:
    """The back end of a training run: `wanted`, checked, or for "auto" splash on TPU and blockwise elsewhere.

    platform       of the mesh's devices: tpu, gpu, cpu
    packed         whether a row may hold several documents
    layers_differ  in reach or frequencies (DecoderConfig.is_mixed), which makes the window data

    "auto" takes no cudnn: it was lowered for CUDA, but not yet run on a GPU here, and it cannot do packed rows.
    Raises ValueError where the wanted one cannot do what is asked.
    """
    if wanted == "auto":
        return "splash" if platform == "tpu" and not layers_differ else "blockwise"
    if wanted not in KERNELS:
        return wanted
    home = {"splash": ("tpu",), "cudnn": ("gpu", "cuda")}[wanted]
    if platform not in home:
        raise ValueError(f"model.backend: got {wanted} on {platform}, expected {home[0]}; use auto or blockwise.")
    if layers_differ:
        raise ValueError(
            f"model.backend: got {wanted} for a model whose layers differ in sliding window or rotary embedding, "
            "expected layers of one kind; use auto or blockwise."
        )
    if wanted == "cudnn" and packed:
        raise ValueError(
            "model.backend: got cudnn with data.packing=true, expected one document a row, since cuDNN's attention "
            "has no document bounds; set data.packing=false, or use auto or blockwise."
        )
    if wanted == "cudnn" and dtype != "bfloat16":
        raise ValueError(
            f"model.backend: got cudnn with {dtype}, expected bfloat16; set model.dtype, or use auto or blockwise."
        )
    return wanted


def kernel_attention(
    backend: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ends: jax.Array,
    *,
    scale: float,
    window: jax.Array | int | None,
    sharding: NamedSharding | None,
    interpret: bool = False,
) -> jax.Array:
    """nn.attention.attention of rows of documents by one of KERNELS.

    q          [b, t, n, h]; k, v [b, t, kv, h]
    ends       [b, t] int32, one past the token's document; padding: own index + 1
    window     a token sees the last `window` tokens of its document, itself included; None: no limit
    sharding   of q: rows and heads may be split, tokens not; None: one device
    interpret  splash only: emulate the TPU, for tests
    returns    [b, t, n, h], dtype of q

    Raises ValueError for a window that is data, and for `ends` that are known and out of the back end's reach.
    """
    t = ends.shape[1]
    if backend == "splash":
        q = splash_queries(q, ends, scale, window)
        return _by_device(_splash(_limit(window, t), interpret), sharding, q, k, v, ends)
    _check_window(window, backend)
    fits = _is_one_document(ends)
    _check_rows(fits, "one document and padding", backend)
    return _marked(_by_device(_cudnn(scale, _limit(window, t)), sharding, q, k, v, ends), fits, 1.0)


def splash_queries(q: jax.Array, ends: jax.Array, scale: float, window: jax.Array | int | None) -> jax.Array:
    """Queries [b, t, n, h] as nn.splash wants them: scaled, and NaN in the rows of `ends` that it cannot express.

    Raises ValueError as kernel_attention does.
    """
    _check_window(window, "splash")
    fits = _are_documents(ends)
    _check_rows(fits, "whole documents: no tree may branch", "splash")
    return _marked(q, fits, scale)


def _check_window(window: jax.Array | int | None, backend: str) -> None:
    if window is not None and not isinstance(window, int):
        raise ValueError(
            f"attention: got a sliding window that is data for backend={backend}, expected one number for all layers; "
            "use backend=blockwise."
        )


def _limit(window: jax.Array | int | None, t: int) -> int | None:
    return window if isinstance(window, int) and window < t else None


def _check_rows(fits: jax.Array, expected: str, backend: str) -> None:
    """Raise where rows are known; inside jit they are not."""
    if not isinstance(fits, jax.core.Tracer) and not fits.all():
        row = int(jnp.argmin(fits))
        raise ValueError(f"attention: row {row} has other than {expected}; use backend=blockwise instead of {backend}.")


def _are_documents(ends: jax.Array) -> jax.Array:
    """Whether the tokens of every tree end together: [b, t] -> [b] bool."""
    goes_on = jnp.arange(1, ends.shape[1]) < ends[:, :-1]
    return jnp.all(~goes_on | (ends[:, 1:] == ends[:, :-1]), axis=1)


def _is_one_document(ends: jax.Array) -> jax.Array:
    """Whether a row is one document and then padding: [b, t] -> [b] bool."""
    index = jnp.arange(ends.shape[1])
    return jnp.all(ends == jnp.where(index < ends[:, :1], ends[:, :1], index + 1), axis=1)


def _marked(x: jax.Array, fits: jax.Array, factor: float) -> jax.Array:
    """x [b, t, n, h] times factor; rows that do not fit become NaN."""
    return (x * jnp.where(fits, factor, jnp.nan)[:, None, None, None]).astype(x.dtype)


def repeat_heads(x: jax.Array, ways: int) -> jax.Array:
    """Keys or values [b, s, kv, h] with each head as often as is needed to split them into `ways` parts."""
    copies = ways // math.gcd(ways, x.shape[2])
    return jnp.repeat(x, copies, axis=2) if copies > 1 else x


def _by_device(local: Local, sharding: NamedSharding | None, q, k, v, ends) -> jax.Array:
    """local(q, k, v, ends) on every device's own rows and heads."""
    if sharding is None:
        return local(q, k, v, ends)
    rows, _, heads, _ = sharding.spec
    mesh = sharding.mesh
    ways = math.prod(mesh.shape[axis] for axis in ((heads,) if isinstance(heads, str) else heads or ()))
    k, v = (repeat_heads(x, ways) for x in (k, v))
    place = PartitionSpec(rows, None, heads, None)
    specs = (place, place, place, PartitionSpec(rows, None))
    # check_vma: the kernels' outputs do not say over which axes they vary
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=place, check_vma=False)(q, k, v, ends)


def _splash(window: int | None, interpret: bool) -> Local:
    """Queries come scaled. Forward and backward kernels skip the blocks above the diagonal and beyond the window."""

    def local(q, k, v, ends):
        _, t, n, h = q.shape
        kernel = splash.make_kernel(t, t, n, h, q.dtype, window=window, interpret=interpret)
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        return splash.whole_rows(kernel, q, k, v, ends).transpose(0, 2, 1, 3)

    return local


def _cudnn(scale: float, window: int | None) -> Local:
    """Causal over the row; what padding gives is never seen by a document. Lowered for CUDA, not run on a GPU by us.

    A mask for packed rows would be [b, n, t, s] numbers in every layer, and their gradient as much again. Under remat
    the forward kernel runs twice, since its log-sum-exp cannot be named.
    """

    def local(q, k, v, ends):
        near = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, local_window_size=near, implementation="cudnn"
        )

    return local
