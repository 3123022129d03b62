"""The bidirectional transformer block of every encoder here: pre-norm attention and MLP over tokens with validity.

Tokens are [b, t, d]; there are few of them (60 to 500), so attention holds all scores of one layer at a time. A token
that is not valid is never a key: nothing it holds reaches another token. Its own output is computed and has no meaning.

Parameters of one block; models.vit stacks them over layers, so each has a leading axis of layers there:

  attention_norm/scale, bias  [embed]
  attention/qkv/kernel        [embed, 3, heads, head_dim]   bias [3, heads, head_dim]; query, key, value in this order
  attention/out/kernel        [heads, head_dim, embed]      bias [embed]
  mlp_norm/scale, bias        [embed]
  mlp/up/kernel               [embed, mlp]                  bias [mlp]
  mlp/down/kernel             [mlp, embed]                  bias [embed]

Source: arXiv 2010.11929 (ViT), 1603.09382 (drop path).
"""

from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from medjax.nn import ops
from medjax.nn.transformer import Constrain, Norm, Projection, unconstrained

_UNSEEN = -1e30  # added to the score of a key that is not valid; finite, so that rows without any valid key are too
_STREAM = 2  # of a row's seed; nn.masking draws masks from another


class EncoderBlockConfig(Protocol):
    """The fields that a block reads; see models.vit.VitConfig for their meaning."""

    @property
    def embed(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def mlp(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def activation(self) -> str: ...


def attention_weights(q: jax.Array, k: jax.Array, valid: jax.Array) -> jax.Array:
    """softmax(q . k / sqrt(h)) over the valid keys, in float32.

    q, k     [b, t, n, h], [b, s, n, h]; valid [b, s] bool
    returns  [b, n, t, s]; a row without a valid key has equal weights
    """
    return _weights(q.swapaxes(1, 2), k.swapaxes(1, 2), valid)


def _weights(q: jax.Array, k: jax.Array, valid: jax.Array) -> jax.Array:
    """attention_weights of q, k [b, n, t, h], [b, n, s, h]."""
    scores = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jax.nn.softmax(scores + jnp.where(valid, 0.0, _UNSEEN)[:, None, None, :], axis=-1)


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
    """The values that each query attends to: attention_weights(q, k, valid) v.

    q, k, v  [b, n, t, h]: heads before tokens, so that every product is a plain one of matrices for each row and head
             (XLA's CPU back end is three times slower over 240 tokens when it has to find that by itself)
    valid    [b, t] bool
    returns  [b, n, t, h]

    The backward pass computes the weights again instead of keeping them: with few components a head, t numbers a
    token and head are more than all else that a layer keeps.
    """
    return jnp.einsum("bnts,bnsh->bnth", _weights(q, k, valid).astype(v.dtype), v)


def _attend_forward(q, k, v, valid):
    return attend(q, k, v, valid), (q, k, v, valid)


def _attend_backward(kept, dy):
    q, k, v, valid = kept
    weights = _weights(q, k, valid)
    dv = jnp.einsum("bnts,bnth->bnsh", weights.astype(v.dtype), dy)
    d_weights = jnp.einsum("bnth,bnsh->bnts", dy, v, preferred_element_type=jnp.float32)
    d_scores = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
    d_scores = (d_scores * q.shape[-1] ** -0.5).astype(q.dtype)
    return jnp.einsum("bnts,bnsh->bnth", d_scores, k), jnp.einsum("bnts,bnth->bnsh", d_scores, q), dv, None


attend.defvjp(_attend_forward, _attend_backward)


class EncoderAttention(nn.Module):
    """Every token attends to every valid token: x [b, t, d], valid [b, t] -> [b, t, d].

    With the collection `attention` mutable it holds the weights [b, n, t, s].
    """

    config: EncoderBlockConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        c = self.config
        d, n, h = c.embed, c.heads, c.embed // c.heads
        qkv_axes = ("embed", None, "heads", "head_dim")
        qkv = Projection("btd,dcnh->btcnh", (d, 3, n, h), qkv_axes, 3, constrain=self.constrain, name="qkv")(x)
        with jax.named_scope("attention"):
            q, k, v = (self.constrain(qkv[:, :, i], "batch", None, "attention_heads", None) for i in range(3))
            if self.is_mutable_collection("attention"):
                self.sow("attention", "weights", attention_weights(q, k, valid), reduce_fn=lambda _, new: new)
            y = attend(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), valid).swapaxes(1, 2)
            y = checkpoint_name(y, "attention")
        axes = ("heads", "head_dim", "embed")
        return Projection("btnh,nhd->btd", (n, h, d), axes, 1, constrain=self.constrain, name="out")(y)


class EncoderMlp(nn.Module):
    """act(x W_up) W_down: [b, t, d] -> [b, t, d]."""

    config: EncoderBlockConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d, f = self.config.embed, self.config.mlp
        y = Projection("btd,df->btf", (d, f), ("embed", "mlp"), 1, constrain=self.constrain, name="up")(x)
        y = ops.ACTIVATIONS[self.config.activation](y)
        return Projection("btf,fd->btd", (f, d), ("mlp", "embed"), 1, constrain=self.constrain, name="down")(y)


class EncoderBlock(nn.Module):
    """One layer: x [b, t, d], valid [b, t], drops [2, b] or None -> (x, None), as nn.scan wants it.

    drops  factors on what attention and MLP add to each row (drop_factors); None: 1
    """

    config: EncoderBlockConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, drops: jax.Array | None) -> tuple[jax.Array, None]:
        c = self.config
        x = checkpoint_name(self.constrain(x, "batch", "seq", None), "input")
        y = Norm("layer", c.norm_eps, 0.0, "embed", name="attention_norm")(x)
        y = EncoderAttention(c, self.constrain, name="attention")(y, valid)
        x = x + (y if drops is None else y * drops[0, :, None, None].astype(y.dtype))
        y = Norm("layer", c.norm_eps, 0.0, "embed", name="mlp_norm")(x)
        y = EncoderMlp(c, self.constrain, name="mlp")(y)
        return x + (y if drops is None else y * drops[1, :, None, None].astype(y.dtype)), None


def drop_factors(seeds: jax.Array, layers: int, rate: float) -> jax.Array:
    """Drop path, drawn from each row's own seed: [layers, 2, b] float32, each 0 or 1 / (1 - rate of the layer).

    seeds  [b] uint32
    rate   of the last layer; the rates of the layers before rise evenly from 0 (arXiv 1603.09382)
    """
    rates = rate * jnp.arange(layers) / max(layers - 1, 1)

    def draw(seed):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), _STREAM), (layers, 2))

    kept = jnp.moveaxis(jax.vmap(draw)(seeds), 0, -1) >= rates[:, None, None]
    return kept / (1 - rates[:, None, None])
