"""The decoder block: projections that declare their parameters with logical axes, and the order of the steps.

One block serves every family; what differs is data in the model's config (norm kind, biases, Q/K norms, parallel
residual, norms after the sub-layers). Einsum letters: b batch, t tokens, d embed, n heads, k kv heads, h head_dim,
f mlp.
"""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from medjax.nn import ops
from medjax.nn.attention import Cache, Forest, Prefix, attention, cached_attention
from medjax.nn.rope import rotate


class BlockConfig(Protocol):
    """The fields of a model config that a block reads; see models.decoder_config.DecoderConfig for their meaning."""

    embed: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: str
    norm_eps: float
    norm_offset: float
    activation: str
    gated: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    parallel_residual: bool
    post_norms: bool
    query_scale: float


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
    """Declare a parameter of a module with the logical names of its axes, which parallel.sharding reads."""
    boxed: Any = nn.with_logical_partitioning(init, axes)
    return module.param(name, boxed, shape)


class Projection(nn.Module):
    """y = einsum(equation, x, kernel) (+ bias), parameters named kernel and bias.

    equation  for instance "btd,dnh->btnh"
    shape     of the kernel; axes its logical axis names
    bias      how many trailing kernel axes the bias has, 0 for none
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    bias: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes, result = self.equation.split(",")[1].split("->")
        summed = [axis for axis, letter in enumerate(axes) if letter not in result]
        kept = [axis for axis, letter in enumerate(axes) if letter in result]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=summed, out_axis=kept)
        kernel = parameter(self, "kernel", init, self.shape, self.axes)
        y = jnp.einsum(self.equation, x, kernel.astype(x.dtype))
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.shape[-self.bias :], self.axes[-self.bias :])
            y = y + bias.astype(x.dtype)
        return y


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis, parameters named scale (and bias)."""

    kind: str
    eps: float
    offset: float
    axis: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, axes = (x.shape[-1],), (self.axis,)
        scale = parameter(self, "scale", nn.initializers.constant(1.0 - self.offset), shape, axes)
        if self.kind == "rms":
            return ops.rms_norm(x, scale, self.eps, self.offset)
        bias = parameter(self, "bias", nn.initializers.zeros, shape, axes)
        return ops.layer_norm(x, scale, bias, self.eps)


class Attention(nn.Module):
    """Projected queries, keys and values, rotated, attended, projected back.

    Returns the output [b, t, d] and this call's own (k, v), each [b, t, kv_heads, head_dim], keys already rotated.
    With a Cache each row is one new token, whose (k, v) the caller adds to the cache afterwards.
    """

    config: BlockConfig
    backend: str

    @nn.compact
    def __call__(self, x, rotation, window, where: Forest | Cache, prefix: Prefix | None):
        c = self.config
        d, n, kv, h = c.embed, c.heads, c.kv_heads, c.head_dim
        bias = 2 if c.qkv_bias else 0
        q = Projection("btd,dnh->btnh", (d, n, h), ("embed", "heads", "head_dim"), bias, name="query")(x)
        k = Projection("btd,dkh->btkh", (d, kv, h), ("embed", "kv_heads", "head_dim"), bias, name="key")(x)
        v = Projection("btd,dkh->btkh", (d, kv, h), ("embed", "kv_heads", "head_dim"), bias, name="value")(x)
        if c.qk_norm:
            q = Norm("rms", c.norm_eps, c.norm_offset, "head_dim", name="query_norm")(q)
            k = Norm("rms", c.norm_eps, c.norm_offset, "head_dim", name="key_norm")(k)
        with jax.named_scope("rope"):
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        with jax.named_scope("attention"):
            if isinstance(where, Cache):
                y = cached_attention(q, k, v, where, scale=c.query_scale, window=window, prefix=prefix)
            else:
                y = attention(
                    q, k, v, trees=where, scale=c.query_scale, window=window, prefix=prefix, backend=self.backend
                )
        out_bias = 1 if c.out_bias else 0
        y = Projection("btnh,nhd->btd", (n, h, d), ("heads", "head_dim", "embed"), out_bias, name="out")(y)
        return y, (k, v)


class Mlp(nn.Module):
    """Feed-forward layer: gated (act(x W_gate) * x W_up) W_down, or plain act(x W_up) W_down."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        d, f = c.embed, c.mlp
        bias = 1 if c.mlp_bias else 0
        act = ops.ACTIVATIONS[c.activation]
        y = Projection("btd,df->btf", (d, f), ("embed", "mlp"), bias, name="up")(x)
        y = act(Projection("btd,df->btf", (d, f), ("embed", "mlp"), bias, name="gate")(x)) * y if c.gated else act(y)
        return Projection("btf,fd->btd", (f, d), ("mlp", "embed"), bias, name="down")(y)


class Block(nn.Module):
    """One decoder layer: x [b, t, d] -> x, and the layer's own (k, v)."""

    config: BlockConfig
    backend: str

    @nn.compact
    def __call__(self, x, rotation, window, where: Forest | Cache, prefix: Prefix | None):
        c = self.config

        def norm(name):
            return Norm(c.norm, c.norm_eps, c.norm_offset, "embed", name=name)

        attend, mlp = Attention(c, self.backend, name="attention"), Mlp(c, name="mlp")
        y, kv = attend(norm("attention_norm")(x), rotation, window, where, prefix)
        if c.parallel_residual:
            return x + y + mlp(norm("mlp_norm")(x)), kv
        x = x + (norm("attention_post_norm")(y) if c.post_norms else y)
        y = mlp(norm("mlp_norm")(x))
        return x + (norm("mlp_post_norm")(y) if c.post_norms else y), kv
