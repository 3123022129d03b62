"""The decoder block: projections that declare their parameters with logical axes, and the order of the steps.

One block serves every family; what differs is data in the model's config (norm kind, biases, Q/K norms, parallel
residual, norms after the sub-layers). A projection may keep its kernel quantised (nn.quant) and may have a low-rank
adapter (nn.lora), which are declared here, where the kernel is. Einsum letters: b batch, t tokens, d embed, n heads,
k kv heads, h head_dim, f mlp.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding

from medjax.nn import ops, quant
from medjax.nn.attention import Forest, Prefix, attention
from medjax.nn.cache import Cache, cached_attention
from medjax.nn.lora import LoraConfig, merged_matmul, merging_pays
from medjax.nn.rope import rotate

_SPLIT_AS_TOKENS = ("embed", "rank")  # logical axes of kernels that fsdp splits, as it splits the batch


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


class Constrain(Protocol):
    """Holds an array to the sharding of its logical axes, and tells that sharding (parallel.sharding.Constraint)."""

    def __call__(self, x: jax.Array, *axes: str | None) -> jax.Array: ...

    def sharding(self, shape: tuple[int, ...], *axes: str | None) -> NamedSharding | None: ...


@dataclass(frozen=True)
class Unconstrained:
    """Leaves the sharding to the compiler."""

    def __call__(self, x: jax.Array, *axes: str | None) -> jax.Array:
        return x

    def sharding(self, shape: tuple[int, ...], *axes: str | None) -> NamedSharding | None:
        return None


unconstrained = Unconstrained()


def parameter(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> jax.Array:
    """Declare a parameter of a module with the logical names of its axes, which parallel.sharding reads."""
    boxed: Any = nn.with_logical_partitioning(init, axes)
    return module.param(name, boxed, shape)


class Projection(nn.Module):
    """y = einsum(equation, x, kernel) (+ bias), parameters named kernel and bias.

    equation      for instance "btd,dnh->btnh": the axes that are summed come first in the kernel
    shape         of the kernel; axes its logical axis names
    bias          how many trailing kernel axes the bias has, 0 for none
    lora          of its adapter, whose factors a [in..., rank] and b [rank, out...] lie in the collection `lora`
    quantisation  of nn.quant: then `kernel` is a dict of arrays in the checkpoint's [out, in] order
    constrain     of activations; a quantised kernel that is split along `embed` is brought together by it
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    bias: int = 0
    lora: LoraConfig | None = None
    quantisation: str | None = None
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        letters, result = self.equation.split(",")[1].split("->")
        inputs = sum(letter not in result for letter in letters)
        if self.lora or self.quantisation:
            flat = x.reshape(*x.shape[: x.ndim - inputs], -1)
            y = self._adapted(flat, inputs).reshape(*flat.shape[:-1], *self.shape[inputs:])
        else:
            y = product(self.constrain, self.equation, x, self._kernel(inputs), self.axes)
        y = checkpoint_name(y, "projection")
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.shape[-self.bias :], self.axes[-self.bias :])
            y = y + bias.astype(x.dtype)
        return y

    def _kernel(self, inputs: int) -> jax.Array:
        summed, kept = tuple(range(inputs)), tuple(range(inputs, len(self.shape)))
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=summed, out_axis=kept)
        return parameter(self, "kernel", init, self.shape, self.axes)

    def _adapted(self, x: jax.Array, inputs: int) -> jax.Array:
        """x [..., in] -> [..., out] with a quantised kernel, an adapter, or both."""
        into, out = math.prod(self.shape[:inputs]), math.prod(self.shape[inputs:])
        rows = x.reshape(-1, into)
        kind = self.quantisation
        kernel = None if kind else self._kernel(inputs).reshape(into, out)
        if self.lora:
            a, b = adapter(self, self.lora, self.shape, self.axes, inputs)
            a, b = a.reshape(into, -1), b.reshape(-1, out)
            dropped = self.lora.dropout and self.has_rng("dropout")
            if kernel is not None and not dropped and merging_pays(len(rows), kernel, x.dtype):
                return merged_matmul(rows, kernel, a, b, self.lora.scale).reshape(*x.shape[:-1], out)
            thin = nn.Dropout(self.lora.dropout, deterministic=not dropped)(rows)
            thin = product(self.constrain, "ti,ir->tr", thin, a, (self._flat(0), "rank")) * self.lora.scale
            added = product(self.constrain, "tr,ro->to", thin, b, ("rank", self._flat(inputs)))
        if kind:
            held = QuantisedKernel(kind, (out, into), (self.axes[inputs], self.axes[0]), name="kernel")
            y = quant.quantised_matmul(rows, held(), kind, held.gathered(self.constrain))
        elif kernel is not None:
            y = product(self.constrain, "ti,io->to", rows, kernel, (self._flat(0), self._flat(inputs)))
        return (y + added if self.lora else y).reshape(*x.shape[:-1], out)

    def _flat(self, index: int) -> str | None:
        """The name of an axis that is flattened with those after it: none where the mesh would cut what it counts."""
        place = self.constrain.sharding((self.shape[index],), self.axes[index])
        return None if place is not None and place.spec[0] is None else self.axes[index]


def product(
    constrain: Constrain, equation: str, x: jax.Array, kernel: jax.Array, axes: tuple[str | None, ...]
) -> jax.Array:
    """einsum(equation, x, kernel) in x's dtype; a kernel that is split as tokens are is brought together for it.

    equation  sums over the last axes of x, which are the first of the kernel
    axes      logical names of the kernel's; those of _SPLIT_AS_TOKENS are made whole
    """
    kernel = kernel.astype(x.dtype)
    home = constrain.sharding(kernel.shape, *axes)
    whole = constrain.sharding(kernel.shape, *(None if axis in _SPLIT_AS_TOKENS else axis for axis in axes))
    if home is None or home == whole:
        letters, result = equation.split(",")[1].split("->")
        # einsum sums over "nh" as "hn", for which both sides would be copied
        return jnp.tensordot(x, kernel, sum(letter not in result for letter in letters))
    # gradients of adapters are few, and summing them piece by piece takes longer than summing them everywhere
    return gathered_einsum(equation, x, kernel, whole, (whole, home) if "rank" in axes else (home,))


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def gathered_einsum(
    equation: str, x: jax.Array, kernel: jax.Array, whole: NamedSharding | None, home: tuple[NamedSharding | None, ...]
) -> jax.Array:
    """einsum(equation, x, kernel) with a kernel that is brought to the sharding `whole`.

    home  shardings that its gradient is brought to, one after the other

    Left to itself the TPU compiler multiplies by one part after the other as they come in, and adds every product to
    the whole output in HBM (Llama 3 8B with LoRA, fsdp=16 on v5e: 980 million cycles in 8 layers by its own schedule,
    629 so). The kernel is brought together once more in the backward pass, so that no layer keeps it.
    """
    return jnp.einsum(equation, x, jax.lax.with_sharding_constraint(kernel, whole))


def _gathered_forward(equation, x, kernel, whole, home):
    return gathered_einsum(equation, x, kernel, whole, home), (x, kernel)


def _gathered_backward(equation, whole, home, kept, dy):
    x, kernel = kept
    _, pull = jax.vjp(partial(jnp.einsum, equation), x, jax.lax.with_sharding_constraint(kernel, whole))
    dx, dkernel = pull(dy)
    for place in home:
        dkernel = jax.lax.with_sharding_constraint(dkernel, place)
    return dx, dkernel


gathered_einsum.defvjp(_gathered_forward, _gathered_backward)


class QuantisedKernel(nn.Module):
    """The arrays of a quantised matrix [out, in], as nn.quant lays them out; axes: the logical names of both."""

    kind: str
    shape: tuple[int, int]
    axes: tuple[str | None, str | None]

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        return {
            name: parameter(self, name, partial(nn.initializers.zeros, dtype=leaf.dtype), leaf.shape, axes)
            for name, (leaf, axes) in self._leaves().items()
        }

    def gathered(self, constrain: Constrain) -> quant.Places:
        """Where the arrays are to be when they are expanded: whole along `embed`.

        Left to itself the compiler expands its part of a kernel and sends that, up to four times as many bytes. Arrays
        that `constrain` does not split so stay where they are.
        """
        places = []
        for name, (leaf, axes) in self._leaves().items():
            whole = constrain.sharding(leaf.shape, *(None if axis in _SPLIT_AS_TOKENS else axis for axis in axes))
            if whole is not None and whole != constrain.sharding(leaf.shape, *axes):
                places.append((name, whole))
        return tuple(places)

    def _leaves(self) -> dict[str, tuple[quant.Leaf, tuple[str | None, ...]]]:
        """Every array with the logical names of its axes."""
        name_of = {"out": self.axes[0], "in": self.axes[1], None: None}
        return {
            name: (leaf, tuple(name_of[axis] for axis in leaf.axes))
            for name, leaf in quant.leaves(self.kind, *self.shape).items()
        }


def adapter(
    module: nn.Module, lora: LoraConfig, shape: tuple[int, ...], axes: tuple[str | None, ...], inputs: int
) -> tuple[jax.Array, jax.Array]:
    """Declare the factors of a kernel's adapter in the collection `lora`: a [in..., rank], b [rank, out...].

    A is uniform within 1 / sqrt(fan-in), as PEFT draws it; B is zero.
    """
    parts = {
        "a": ((*shape[:inputs], lora.rank), (*axes[:inputs], "rank")),
        "b": ((lora.rank, *shape[inputs:]), ("rank", *axes[inputs:])),
    }
    draw = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=tuple(range(inputs)), out_axis=-1)

    def declare(name: str, init: Callable) -> jax.Array:
        size, names = parts[name]
        boxed: Any = nn.with_logical_partitioning(init, names)
        return module.variable("lora", name, lambda: boxed(module.make_rng("lora"), size, jnp.float32)).value

    return declare("a", draw), declare("b", nn.initializers.zeros)


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


class FusedLowRank(nn.Module):
    """The adapter of GPT-NeoX's one projection for query, key and value: x [b, t, d] -> three [b, t, n, h]."""

    lora: LoraConfig
    shape: tuple[int, int, int]
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        d, n, h = self.shape
        a, b = adapter(self, self.lora, (d, 3, n, h), ("embed", None, "heads", "head_dim"), 1)
        dropped = self.lora.dropout and self.has_rng("dropout")
        rows = nn.Dropout(self.lora.dropout, deterministic=not dropped)(x)
        thin = product(self.constrain, "btd,dr->btr", rows, a, ("embed", "rank")) * self.lora.scale
        y = product(self.constrain, "btr,rcnh->btcnh", thin, b, ("rank", None, "heads", "head_dim"))
        return [y[..., part, :, :] for part in range(3)]


class Attention(nn.Module):
    """Projected queries, keys and values, rotated, attended, projected back.

    Returns the output [b, t, d] and this call's own (k, v), each [b, t, kv_heads, head_dim], keys already rotated.
    With a Cache each row is one new token, and the cache with that token is returned in their place.
    """

    config: BlockConfig
    backend: str
    lora: LoraConfig | None = None
    quantisation: str | None = None
    constrain: Constrain = unconstrained
    context: str = "heads"

    @nn.compact
    def __call__(self, x, rotation, window, where: Forest | Cache, prefix: Prefix | None):
        c = self.config
        d, n, kv_heads, h = c.embed, c.heads, c.kv_heads, c.head_dim
        bias = 2 if c.qkv_bias else 0

        def project(name, equation, shape, axes, bias):
            lora = self.lora if self.lora and name in self.lora.targets else None
            return Projection(equation, shape, axes, bias, lora, self.quantisation, self.constrain, name=name)

        q = project("query", "btd,dnh->btnh", (d, n, h), ("embed", "heads", "head_dim"), bias)(x)
        k = project("key", "btd,dkh->btkh", (d, kv_heads, h), ("embed", "kv_heads", "head_dim"), bias)(x)
        v = project("value", "btd,dkh->btkh", (d, kv_heads, h), ("embed", "kv_heads", "head_dim"), bias)(x)
        if self.lora and "query_key_value" in self.lora.targets:
            added = FusedLowRank(self.lora, (d, n, h), self.constrain, name="query_key_value")(x)
            q, k, v = (y + extra for y, extra in zip((q, k, v), added, strict=True))
        if c.qk_norm:
            q = Norm("rms", c.norm_eps, c.norm_offset, "head_dim", name="query_norm")(q)
            k = Norm("rms", c.norm_eps, c.norm_offset, "head_dim", name="key_norm")(k)
        with jax.named_scope("rope"):
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        with jax.named_scope("attention"):
            whole = self.context == "heads"
            axes = ("batch", None, "attention_heads", None) if whole else ("batch", "seq", "heads", None)
            q, k, v = (self.constrain(x, *axes) for x in (q, k, v))
            kv: tuple[jax.Array, jax.Array] | Cache = k, v
            if isinstance(where, Cache):
                y, kv = cached_attention(q, k, v, where, scale=c.query_scale, window=window, prefix=prefix)
            else:
                y = attention(
                    q,
                    k,
                    v,
                    trees=where,
                    scale=c.query_scale,
                    window=window,
                    prefix=prefix,
                    backend=self.backend,
                    sharding=self.constrain.sharding(q.shape, *axes),
                    context=self.context,
                )
        y = self.constrain(y, "batch", "seq", "heads", None)
        y = project("out", "btnh,nhd->btd", (n, h, d), ("heads", "head_dim", "embed"), 1 if c.out_bias else 0)(y)
        return y, kv


class Mlp(nn.Module):
    """Feed-forward layer: gated (act(x W_gate) * x W_up) W_down, or plain act(x W_up) W_down."""

    config: BlockConfig
    lora: LoraConfig | None = None
    quantisation: str | None = None
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        d, f = c.embed, c.mlp
        bias = 1 if c.mlp_bias else 0
        act = ops.ACTIVATIONS[c.activation]

        def project(name, equation, shape, axes):
            lora = self.lora if self.lora and name in self.lora.targets else None
            return Projection(equation, shape, axes, bias, lora, self.quantisation, self.constrain, name=name)

        y = project("up", "btd,df->btf", (d, f), ("embed", "mlp"))(x)
        y = act(project("gate", "btd,df->btf", (d, f), ("embed", "mlp"))(x)) * y if c.gated else act(y)
        return project("down", "btf,fd->btd", (f, d), ("mlp", "embed"))(y)


class Block(nn.Module):
    """One decoder layer: x [b, t, d] -> x, and the layer's own (k, v) or its Cache."""

    config: BlockConfig
    backend: str
    lora: LoraConfig | None = None
    quantisation: str | None = None
    constrain: Constrain = unconstrained
    context: str = "heads"

    @nn.compact
    def __call__(self, x, rotation, window, where: Forest | Cache, prefix: Prefix | None):
        c = self.config

        def norm(name):
            return Norm(c.norm, c.norm_eps, c.norm_offset, "embed", name=name)

        attend = Attention(
            c, self.backend, self.lora, self.quantisation, self.constrain, self.context, name="attention"
        )
        mlp = Mlp(c, self.lora, self.quantisation, self.constrain, name="mlp")
        x = checkpoint_name(self.constrain(x, "batch", "seq", None), "input")
        y, kv = attend(norm("attention_norm")(x), rotation, window, where, prefix)
        if c.parallel_residual:
            return x + y + mlp(norm("mlp_norm")(x)), kv
        x = x + (norm("attention_post_norm")(y) if c.post_norms else y)
        y = mlp(norm("mlp_norm")(x))
        return x + (norm("mlp_post_norm")(y) if c.post_norms else y), kv
