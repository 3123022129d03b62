"""One vector for a row of tokens, of the valid ones only; zeros for a row that has none."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from medjax.nn.transformer import Projection, parameter


def mean_pool(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over valid tokens: x [b, t, d], valid [b, t] bool -> [b, d] float32."""
    kept = jnp.where(valid[..., None], x.astype(jnp.float32), 0.0)
    return jnp.sum(kept, axis=1) / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None]


class AttentionPool(nn.Module):
    """A learned query a head attends to the valid tokens (arXiv 1810.00825): x [b, t, d], valid [b, t] -> [b, d].

    Parameters: query [heads, head_dim]; key, value kernel [embed, heads, head_dim] and out kernel [heads, head_dim,
    embed], with their biases.
    """

    embed: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        d, n, h = self.embed, self.heads, self.embed // self.heads
        axes = ("embed", "heads", "head_dim")
        x = jnp.where(valid[..., None], x.astype(jnp.float32), 0.0)
        query = parameter(self, "query", nn.initializers.normal(1.0), (n, h), axes[1:])
        k = Projection("btd,dnh->btnh", (d, n, h), axes, 2, name="key")(x)
        v = Projection("btd,dnh->btnh", (d, n, h), axes, 2, name="value")(x)
        scores = jnp.einsum("nh,btnh->bnt", query, k) * h**-0.5
        weights = jax.nn.softmax(jnp.where(valid[:, None, :], scores, -1e30), axis=-1)
        y = jnp.einsum("bnt,btnh->bnh", weights, v)
        y = Projection("bnh,nhd->bd", (n, h, d), ("heads", "head_dim", "embed"), 1, name="out")(y)
        return jnp.where(jnp.any(valid, axis=1)[:, None], y, 0.0)
