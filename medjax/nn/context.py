"""Rows split over devices: attention for more devices a row than there are heads.

Where a mesh axis splits the tokens of a row, queries must meet keys that other devices hold. Three ways, all exact:

  heads   all-to-all before and after attention: every device has whole rows and some of the heads (arXiv 2309.14509).
          The cheapest; there can be no more devices than heads. It needs nothing here: attention sees whole rows
  gather  every device gathers all keys and values, for its own queries. Their gradients are summed by reduce-scatter
  ring    keys and values travel round the devices, and each adds what it sees of them to an online softmax
          (arXiv 2310.01889). No device ever has more than two shares of them. The gradient is a second round, in which
          the gradients of keys and values travel with them

With gather and ring the tokens stand in zig-zag order, so that every device has as many scores to compute: of the 2 n
equal pieces of a row device i of n has pieces i and 2 n - 1 - i, and its queries see

  of its own keys               the causal half
  of those of device j < i      piece j, with both its pieces
  of those of device j > i      both pieces, with its second piece

`zigzag` brings tokens, targets and positions into that order, once, before the model; the Forest stays as it is, in the
order of the row. What no document reaches is skipped: a share in the ring by lax.cond, key blocks in blockwise.

Back ends: splash, with a sliding window only by gather, and blockwise. Between two shares, splash rounds to the dtype
of the queries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from medjax.nn import splash
from medjax.nn.forest import BLOCK, Forest
from medjax.nn.kernels import repeat_heads, splash_queries
from medjax.nn.shares import BlockwiseShares, Final, Gradients, Shares, SplashShares

CONTEXTS = ("heads", "gather", "ring")
_BACKENDS = ("splash", "blockwise")


def choose_context(
    wanted: str, *, shards: int, heads: int, other_ways: int, window: int | None, backend: str, tokens: int
) -> str:
    """How a run's attention treats rows that are split: `wanted`, checked, or for "auto" heads where there are enough.

    shards      devices that a row is split over
    heads       of queries; other_ways: into how many parts the mesh splits them besides
    window      the sliding window of every layer, None: no limit
    tokens      of a row

    Where there are too few heads, "auto" is ring, or gather for a window that ring cannot do; or heads all the same,
    some of the devices doing the same work, for rows and back ends that neither can split.
    Raises ValueError where the wanted one cannot do what is asked.
    """
    windowed = backend == "splash" and window is not None and window < tokens
    whole = 2 * BLOCK * shards
    if wanted == "auto":
        cannot = backend not in _BACKENDS or tokens % whole
        wanted = "heads" if cannot or heads % (shards * other_ways) == 0 else "gather" if windowed else "ring"
    if wanted == "heads" or shards == 1:
        return "heads"
    if backend not in _BACKENDS:
        raise ValueError(
            f"model.context: got {wanted} with model.backend={backend}, expected one of {', '.join(_BACKENDS)}; "
            "change either."
        )
    if wanted == "ring" and windowed:
        raise ValueError(
            f"model.context: got ring with splash and a sliding window of {window} tokens, expected no window; use "
            "gather."
        )
    if tokens % whole:
        next_one = -(-tokens // whole) * whole
        raise ValueError(
            f"data.window: got {tokens} tokens, expected a multiple of {whole}, since model.context={wanted} splits "
            f"rows into {2 * shards} pieces of a multiple of {BLOCK}; use {next_one}, or another mesh."
        )
    return wanted


def splash_blocks(
    context: str, tokens: int, shards: int, head_dim: int, dtype: Any, window: int | None = None
) -> dict[str, splash.Blocks]:
    """The block sizes of a run's splash kernels, by what queries meet: "rows", "all keys", or the three of a ring."""
    own, piece = tokens // shards, tokens // (2 * shards)
    blocks = partial(splash.block_sizes, head_dim=head_dim, dtype=dtype)
    if context == "heads":
        return {"rows": blocks(tokens, tokens, window=window)}
    if context == "gather":
        return {"all keys": blocks(piece, tokens, window=window)}
    earlier, later = blocks(own, piece, causal=False), blocks(piece, own, causal=False)
    return {"own keys": blocks(own, own), "earlier keys": earlier, "later keys": later}


def zigzag(x: jax.Array, shards: int) -> jax.Array:
    """Bring the tokens of whole rows [b, t, …] into the order that splits them evenly.

    Shard i gets pieces i and 2 n - 1 - i. Where every device has the whole rows, none has to ask another.
    """
    return jnp.take(x, _order(x.shape[1], shards), axis=1)


def _order(t: int, shards: int) -> np.ndarray:
    """The index in the row of every token, int32, in zig-zag order."""
    pieces = np.arange(t, dtype=np.int32).reshape(2 * shards, -1)
    return pieces[_pieces(shards)].reshape(-1)


def _pieces(shards: int) -> np.ndarray:
    return np.stack([np.arange(shards), 2 * shards - 1 - np.arange(shards)], axis=1).reshape(-1)


def _reorder(x: jax.Array, order: np.ndarray) -> jax.Array:
    """Bring the pieces of [b, n, t, h] into another order: copies of whole pieces, unlike a look-up of every token."""
    pieces = jnp.split(x, len(order), axis=2)
    return jnp.concatenate([pieces[i] for i in order], axis=2)


def splits_tokens(sharding: NamedSharding) -> bool:
    """Whether a sharding of [b, t, n, h] splits the tokens of a row."""
    return _ways(sharding.mesh, sharding.spec[1]) > 1


def _ways(mesh: Mesh | AbstractMesh, axes: Any) -> int:
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def context_attention(
    context: str,
    backend: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    trees: Forest,
    *,
    scale: float,
    window: jax.Array | int | None,
    sharding: NamedSharding,
    interpret: bool = False,
) -> jax.Array:
    """nn.attention.attention of rows that are split over devices.

    context    gather or ring
    backend    splash (trees whole documents, window a number) or blockwise
    q          [b, t, n, h]; k, v [b, t, kv, h]; their tokens in the order of `zigzag`
    trees      of the rows as they were
    sharding   of q: rows, tokens and heads may be split
    interpret  splash only: emulate the TPU, for tests
    returns    [b, t, n, h], dtype of q

    Raises ValueError for another context or back end, a row that cannot be split, a window that ring cannot do, and as
    nn.kernels does.
    """
    rows, tokens, heads, _ = sharding.spec
    mesh = sharding.mesh
    shards, (_, t, n, h) = _ways(mesh, tokens), q.shape
    if context not in CONTEXTS[1:]:
        raise ValueError(
            f"attention: got context={context} for rows split over {shards} devices, expected one of "
            f"{', '.join(CONTEXTS[1:])}; for heads leave rows whole."
        )
    choose_context(
        context,
        shards=shards,
        heads=n,
        other_ways=_ways(mesh, heads),
        window=window if isinstance(window, int) else None,
        backend=backend,
        tokens=t,
    )
    k, v = (repeat_heads(x, _ways(mesh, heads)) for x in (k, v))
    if backend == "splash":
        q = splash_queries(q, trees.ends, scale, window)
        make = partial(splash.make_kernel, heads=n // _ways(mesh, heads), head_dim=h, dtype=q.dtype)
        kernels, kernel_specs = _kernels(partial(make, interpret=interpret), context, t, window, mesh, tokens)
    else:
        kernels, kernel_specs = (), ()
    plan = _Plan(context, backend, tokens, shards, scale)
    place, whole = PartitionSpec(rows, tokens, heads, None), PartitionSpec(rows, None)
    trees_specs: Any = Forest(whole, whole, PartitionSpec(None))  # type: ignore[arg-type]
    reach = None if backend == "splash" or window is None else jnp.asarray(window, jnp.int32)

    def local(q, k, v, trees, reach, kernels):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        return _attend(plan, q, k, v, trees, reach, kernels).transpose(0, 2, 1, 3)

    # check_vma: the kernels' outputs do not say over which axes they vary
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(place, place, place, trees_specs, PartitionSpec(), kernel_specs),
        out_specs=place,
        check_vma=False,
    )
    return mapped(q, k, v, trees, reach, kernels)


def _kernels(make: Callable[..., Any], context: str, t: int, window: Any, mesh: Any, axis: Any) -> tuple[Any, Any]:
    """The kernels that nn.shares.SplashShares wants, for rows of t tokens, and their specs for jax.shard_map."""
    shards = _ways(mesh, axis)
    own, piece = t // shards, t // (2 * shards)
    if context == "gather":
        limit = window if window is not None and window < t else None
        kernel = make(_order(t, shards), t, window=limit, shards=shards, share=True)
        return (kernel,), (kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, axis))),)
    full = partial(make, causal=False, share=True)
    return (make(own, own, share=True), full(own, piece), full(piece, own)), (PartitionSpec(),) * 3


@dataclass(frozen=True)
class _Plan:
    """What is known of a call while tracing; axis: the mesh axis or axes that split the tokens, into `shards` parts."""

    context: str
    backend: str
    axis: Any
    shards: int
    scale: float

    def shares(self, trees: Forest, reach: jax.Array | None, kernels: tuple[Any, ...]) -> Shares:
        device = jax.lax.axis_index(self.axis)
        if self.backend == "splash":
            return SplashShares(trees, device, self.shards, kernels)
        return BlockwiseShares(trees, device, self.shards, self.scale, reach)

    def natural(self, x: jax.Array) -> jax.Array:
        """All shares [b, n, t, h] of every device, in the order of the row."""
        gathered = jax.lax.all_gather(x, self.axis, axis=2, tiled=True)
        return _reorder(gathered, np.argsort(_pieces(self.shards)))

    def summed(self, x: jax.Array) -> jax.Array:
        """The transpose of `natural`: this device's share of the sum over devices of [b, n, t, h] float32."""
        return jax.lax.psum_scatter(_reorder(x, _pieces(self.shards)), self.axis, scatter_dimension=2, tiled=True)

    def shift(self, x: Any) -> Any:
        """Send to the next device."""
        return jax.lax.ppermute(x, self.axis, [(i, (i + 1) % self.shards) for i in range(self.shards)])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q, k, v, trees, reach, kernels) -> jax.Array:
    """One device's queries [b, n, t, h] against the keys and values of all devices, of which it has [b, kv, t, h]."""
    return _forward(plan, q, k, v, trees, reach, kernels)[0]


def _forward(plan: _Plan, q, k, v, trees, reach, kernels):
    here = plan.shares(trees, reach, kernels)
    if plan.context == "gather":
        out, lse = here.all(q, plan.natural(k), plan.natural(v))
    else:
        device = jax.lax.axis_index(plan.axis)

        # keys are sent on before they are used, so that the transfer overlaps the computation
        def step(carry, distance):
            state, (k, v) = carry
            sent = plan.shift((k, v))
            return (here.add(state, q, k, v, (device - distance) % plan.shards), sent), None

        carry = here.own(q, k, v), plan.shift((k, v))
        ((out, lse), _), _ = jax.lax.scan(step, carry, jnp.arange(1, plan.shards))
    out, lse = checkpoint_name(out.astype(q.dtype), "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, trees, reach, kernels, out, lse)


def _backward(plan: _Plan, residuals, d_out):
    q, k, v, trees, reach, kernels, out, lse = residuals
    here, final = plan.shares(trees, reach, kernels), Final(out, lse, d_out)
    if plan.context == "gather":
        dq, dk, dv = here.all_gradient(q, plan.natural(k), plan.natural(v), final)
        dk, dv = plan.summed(dk), plan.summed(dv)
    else:
        device = jax.lax.axis_index(plan.axis)

        def step(carry, distance):
            dq, sums, (k, v) = carry
            sums, sent = plan.shift((sums, (k, v)))
            found = here.add_gradient(Gradients(dq, *sums), q, k, v, final, (device - distance) % plan.shards)
            return (found.q, (found.k, found.v), sent), None

        own = here.own_gradient(q, k, v, final)
        carry = own.q, (own.k, own.v), plan.shift((k, v))
        (dq, sums, _), _ = jax.lax.scan(step, carry, jnp.arange(1, plan.shards))
        dk, dv = plan.shift(sums)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


_attend.defvjp(_forward, _backward)
