"""The masked autoencoder of ECGs: hide most tokens, encode the others, predict what was hidden.

A token is one patch of one lead (12 x 5,000 samples in patches of 250: 240 tokens, 60 of them encoded at 75 % masked).
Tokens with any sample that is not valid (missing lead, padded time) are never encoded, never a key, never a target.

  masking "random"  over all leads and times           "lead"  the same share of each lead
  decoder "full"    every token sees every valid one   "lead"  a token sees only those of its own lead

With decoder "lead" the prediction for a lead is a function of the encoder's output for that lead's visible tokens and
of nothing else, so the decoder cannot copy III from I and II; what it knows of other leads went through the encoder.
The class token and registers stay in the encoder for the same reason.

  params/encoder/…                  of models.vit
  params/decoder/embedding/kernel   [embed, decoder_embed]            bias [decoder_embed]
  params/decoder/mask_token         [decoder_embed]
  params/decoder/leads              [lead_count, decoder_embed]
  params/decoder/layers/…           of nn.encoder, stacked;  params/decoder/norm/…
  params/decoder/head/kernel        [decoder_embed, values of a patch]  bias [values]

Sources: arXiv 2111.06377 (MAE); Sawano et al., PLOS ONE 2024, e0307978 (tokens, 75 %, masked MSE).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medjax.models.vit import Encoder, VitConfig, check_keys, lead_embedding, run_layers
from medjax.nn.masking import Mask, draw_mask, restore
from medjax.nn.objectives import masked_patch_error, normalised_patches
from medjax.nn.patches import patchify, token_leads, token_positions, valid_tokens
from medjax.nn.positions import sin_cos
from medjax.nn.transformer import Constrain, Projection, parameter, unconstrained

MASKINGS = ("random", "lead")
DECODERS = ("full", "lead")


@dataclass(frozen=True)
class MaeConfig:
    """Shapes and choices of a masked autoencoder.

    vit                 of the encoder: a one-axis patch and a lead embedding
    masked              share of a row's (masking "lead": of each lead's) valid tokens that is hidden
    decoder_…           shape of the decoder; its MLP is 4 * decoder_embed wide
    normalised_targets  each target patch has its own mean taken off and is divided by its own standard deviation
    """

    vit: VitConfig
    decoder_embed: int
    decoder_layers: int
    decoder_heads: int
    masked: float = 0.75
    masking: str = "random"
    decoder: str = "full"
    normalised_targets: bool = False

    def __post_init__(self):
        for name, options in (("masking", MASKINGS), ("decoder", DECODERS)):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"mae.{name}: got {getattr(self, name)!r}, expected one of {', '.join(options)}; choose one."
                )
        if not 0 < self.masked < 1:
            raise ValueError(f"mae.masked: got {self.masked}, expected a share between 0 and 1; 0.75 is usual.")
        if len(self.vit.patch) != 1 or not self.vit.lead_count:
            raise ValueError(
                f"mae.vit: got patch={self.vit.patch} and lead_count={self.vit.lead_count}, expected one number and "
                "the leads of the training data; write for instance patch=(250,), lead_count=12."
            )
        self.decoder_vit  # noqa: B018  raises for a decoder's shape that does not fit

    @property
    def decoder_vit(self) -> VitConfig:
        """The decoder's blocks in the terms of an encoder's."""
        try:
            return replace(
                self.vit,
                embed=self.decoder_embed,
                layers=self.decoder_layers,
                heads=self.decoder_heads,
                mlp=4 * self.decoder_embed,
                class_token=False,
                registers=0,
                drop_path=0.0,
            )
        except ValueError as error:
            raise ValueError(f"mae.decoder_embed, decoder_layers, decoder_heads: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {**asdict(self), "vit": self.vit.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "mae") -> "MaeConfig":
        """The inverse of to_dict. Raises ValueError for keys that are unknown or missing; where: named by it."""
        check_keys(cls, values, where)
        return cls(**{**values, "vit": VitConfig.from_dict(values["vit"], f"{where}.vit")})


class Reconstruction(NamedTuple):
    """What a masked autoencoder made of a batch.

    predicted  [b, t, values] of every token, in the terms of the targets
    targets    [b, t, values] float32, patches of the signal, normalised if the config says so
    mask       which tokens were shown and which are targets
    """

    predicted: jax.Array
    targets: jax.Array
    mask: Mask


class MaeDecoder(nn.Module):
    """Encoded visible tokens -> a patch for every token; see the module's docstring."""

    config: MaeConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, encoded: jax.Array, mask: Mask, positions: np.ndarray, leads: np.ndarray) -> jax.Array:
        """encoded [b, k, embed] of the tokens mask.keep; positions [t, axes]; leads [t] -> [b, t, values]."""
        c, d = self.config, self.config.decoder_embed
        x = Projection("bte,ed->btd", (c.vit.embed, d), ("embed", None), 1, name="embedding")(encoded)
        fill = parameter(self, "mask_token", nn.initializers.normal(0.02), (d,), ("embed",))
        x = restore(x, fill.astype(x.dtype), mask)
        x = x + (sin_cos(positions, d, c.vit.position_base) + lead_embedding(self, c.vit.lead_count, d, leads)).astype(
            x.dtype
        )
        valid = mask.shown | mask.masked
        b, t, _ = x.shape
        if c.decoder == "lead":
            count = len(np.unique(leads))
            x, valid = x.reshape(b * count, t // count, d), valid.reshape(b * count, t // count)
        x = run_layers(c.decoder_vit, x, valid, None, self.remat, self.constrain)
        x = x.reshape(b, t, d)
        return Projection("btd,dp->btp", (d, c.vit.values), ("embed", "patch"), 1, name="head")(x)


class EcgMae(nn.Module):
    """Signal -> Reconstruction.

    dtype  compute dtype; parameters keep theirs, targets and loss are float32
    remat  of models.decoder.REMAT, what the backward pass may reuse
    """

    config: MaeConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    constrain: Constrain = unconstrained

    def setup(self):
        self.encoder = Encoder(self.config.vit, self.dtype, self.remat, self.constrain)
        self.decoder = MaeDecoder(self.config, self.dtype, self.remat, self.constrain)

    def __call__(
        self,
        signal: jax.Array,
        valid: jax.Array,
        seeds: jax.Array,
        mask: Mask | None = None,
        *,
        training: bool = False,
    ) -> Reconstruction:
        """Mask, encode and reconstruct a batch.

        signal    [b, leads, samples] float, normalised; what is not valid may hold anything
        valid     [b, leads, samples] bool
        seeds     [b] uint32, each row's randomness
        mask      None: drawn from the seeds
        training  drop path is on
        """
        c = self.config
        patches, known = patchify(signal, c.vit.patch), valid_tokens(valid, c.vit.patch)
        patches = jnp.where(known[..., None], patches, 0)
        if mask is None:
            mask = random_mask(seeds, known, c, leads=signal.shape[1])
        positions, leads = token_positions(signal.shape[1:], c.vit.patch), token_leads(signal.shape[1:], c.vit.patch)
        encoded = self.encoder(patches, positions, leads, mask.shown, mask.keep, seeds if training else None)
        predicted = self.decode(encoded[:, c.vit.extra :], mask, signal.shape[1:])
        targets = patches.astype(jnp.float32)
        return Reconstruction(predicted, normalised_patches(targets) if c.normalised_targets else targets, mask)

    def decode(self, encoded: jax.Array, mask: Mask, shape: tuple[int, ...]) -> jax.Array:
        """encoded [b, k, embed] of the tokens mask.keep; shape (leads, samples) -> predicted [b, t, values]."""
        patch = self.config.vit.patch
        return self.decoder(encoded, mask, token_positions(shape, patch), token_leads(shape, patch))


def random_mask(seeds: jax.Array, valid: jax.Array, config: MaeConfig, *, leads: int) -> Mask:
    """Draw which tokens are shown, kept and masked.

    seeds  [b] uint32
    valid  [b, leads * times] bool, of tokens
    """
    return draw_mask(seeds, valid, masked=config.masked, groups=leads if config.masking == "lead" else 1)


def mae_loss(made: Reconstruction) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared error of each masked patch, summed over them.

    A row that is padding of the batch has nothing valid, so no target.
    returns  the sum, and the sums "loss" (the same) and "counted", the number of masked patches; float32
    """
    loss = masked_patch_error(made.predicted, made.targets, made.mask.masked)
    return loss, {"loss": loss, "counted": jnp.sum(made.mask.masked, dtype=jnp.float32)}


def abstract_variables(config: MaeConfig) -> Any:
    """Shapes, logical axes and dtypes of the collection `params`, boxed as Linen metadata; nothing is allocated."""
    return jax.eval_shape(lambda key: _init(config, key), jax.random.key(0))


def init_variables(config: MaeConfig, key: jax.Array) -> Any:
    """Fresh parameters, a tree of float32 arrays; to be jitted with their shardings."""
    return nn.unbox(_init(config, key))


def _init(config: MaeConfig, key: jax.Array) -> Any:
    # parameters do not depend on the record's length: one patch of one lead will do
    signal = jnp.zeros((1, 1, config.vit.patch[0]))
    return {
        "params": EcgMae(config).init(key, signal, jnp.ones(signal.shape, bool), jnp.zeros(1, jnp.uint32))["params"]
    }
