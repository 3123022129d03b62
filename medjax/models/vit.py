"""The vision transformer of every modality: patches of one, two or three dimensions, one stack of blocks.

What the encoder takes are patches that were cut already (nn.patches), where each lies, and which are valid; so a subset
of leads, a short record, a frame and a clip differ in their tokens only. Tokens that are not to be computed are left
out before anything else is done (`keep`).

  params/embedding/kernel  [values of a patch, embed]   bias [embed]
  params/leads             [lead_count, embed]          absent without leads
  params/class_token       [embed]                      absent unless asked for
  params/registers         [registers, embed]           absent when 0
  params/layers/…          [layers, …]                  of nn.encoder
  params/norm/scale, bias  [embed]

Sources: arXiv 2010.11929 (ViT), 2111.06377 (MAE: fixed sin-cos positions), 2309.16588 (registers).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medjax.models.decoder import REMAT
from medjax.nn import ops
from medjax.nn.encoder import EncoderBlock, drop_factors
from medjax.nn.masking import take
from medjax.nn.positions import sin_cos
from medjax.nn.transformer import Constrain, Norm, Projection, parameter, unconstrained

# Ti to H: arXiv 2012.12877 and 2010.11929; nano is for CPUs and tests
SIZES: Mapping[str, Mapping[str, int]] = {
    "nano": {"embed": 64, "layers": 4, "heads": 4, "mlp": 256},
    "Ti": {"embed": 192, "layers": 12, "heads": 3, "mlp": 768},
    "S": {"embed": 384, "layers": 12, "heads": 6, "mlp": 1536},
    "B": {"embed": 768, "layers": 12, "heads": 12, "mlp": 3072},
    "L": {"embed": 1024, "layers": 24, "heads": 16, "mlp": 4096},
    "H": {"embed": 1280, "layers": 32, "heads": 16, "mlp": 5120},
}


@dataclass(frozen=True)
class VitConfig:
    """Shapes and choices of an encoder.

    patch        (samples,) of one lead for an ECG, (height, width) for frames, (frames, height, width) for clips
    channels     of frames and clips; 1 for an ECG
    lead_count   size of the learned lead embedding; 0: none
    class_token  a learned token before all others
    registers    learned tokens that only carry what blocks put there
    drop_path    rate of the last layer, rising from 0 at the first
    activation   of nn.ops.ACTIVATIONS
    position_base  of nn.positions.sin_cos
    """

    patch: tuple[int, ...]
    embed: int
    layers: int
    heads: int
    mlp: int
    channels: int = 1
    lead_count: int = 0
    class_token: bool = False
    registers: int = 0
    drop_path: float = 0.0
    norm_eps: float = 1e-6
    activation: str = "gelu"
    position_base: float = 10000.0

    def __post_init__(self):
        object.__setattr__(self, "patch", tuple(self.patch))
        for name in ("embed", "layers", "heads", "mlp", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"vit.{name}: got {getattr(self, name)}, expected 1 or more; choose a size of SIZES.")
        if not 1 <= len(self.patch) <= 3 or min(self.patch) < 1:
            raise ValueError(
                f"vit.patch: got {self.patch}, expected 1, 2 or 3 numbers above 0; write (250,) for 250 samples of an "
                "ECG's lead, (16, 16) for frames, (2, 16, 16) for clips."
            )
        if len(self.patch) == 1 and self.channels != 1:
            raise ValueError(f"vit.channels: got {self.channels}, expected 1: every lead of an ECG has its own tokens.")
        if len(self.patch) > 1 and self.lead_count:
            raise ValueError(
                f"vit.lead_count: got {self.lead_count} for frames or clips, expected 0: they have no leads."
            )
        if self.embed % self.heads:
            raise ValueError(
                f"vit.heads: got {self.heads}, expected a divisor of embed={self.embed}; change one of the two."
            )
        if self.lead_count < 0 or self.registers < 0:
            raise ValueError(
                f"vit: got lead_count={self.lead_count} and registers={self.registers}, expected 0 or more of each."
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"vit.drop_path: got {self.drop_path}, expected 0 or more and below 1; 0.1 is usual.")
        if self.position_base <= 1:
            raise ValueError(
                f"vit.position_base: got {self.position_base}, expected more than 1; 10000 is usual, five times the "
                "patches of a lead learns sooner."
            )
        if self.activation not in ops.ACTIVATIONS:
            raise ValueError(
                f"vit.activation: got {self.activation!r}, expected one of {', '.join(ops.ACTIVATIONS)}; choose one."
            )

    @property
    def values(self) -> int:
        """Numbers in a patch."""
        return int(np.prod(self.patch)) * self.channels

    @property
    def extra(self) -> int:
        """Tokens before those of the patches: class token first, then registers."""
        return self.class_token + self.registers

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {**asdict(self), "patch": list(self.patch)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "vit") -> "VitConfig":
        """The inverse of to_dict. Raises ValueError for keys that are unknown or missing; where: named by it."""
        check_keys(cls, values, where)
        return cls(**values)


def vit_config(size: str, patch: tuple[int, ...], **choices: Any) -> VitConfig:
    """The config of a named size of SIZES; choices: the other fields of VitConfig."""
    if size not in SIZES:
        raise ValueError(f"vit.size: got {size!r}, expected one of {', '.join(SIZES)}; choose one.")
    return VitConfig(patch=patch, **{**SIZES[size], **choices})


def check_keys(config: type, values: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless values has every field of the config class, and no other."""
    names = {field.name for field in fields(config)}
    if wrong := sorted(names ^ set(values)):
        unknown = [name for name in wrong if name not in names]
        raise ValueError(
            f"{where}: got {'unknown' if unknown else 'no'} {', '.join(unknown or wrong)}, expected exactly "
            f"{', '.join(sorted(names))}; was it written by another version of medjax?"
        )


def run_layers(
    config: VitConfig, x: jax.Array, valid: jax.Array, seeds: jax.Array | None, remat: str, constrain: Constrain
) -> jax.Array:
    """Declare the stacked blocks `layers` and the final `norm` in the calling module, and run them.

    x [b, t, embed], valid [b, t] bool, seeds uint32 [b] for drop path (None: off) -> [b, t, embed]
    """
    block: Any = EncoderBlock
    if remat != "none":
        block = nn.remat(EncoderBlock, prevent_cse=False, policy=REMAT[remat])
    drops = None
    if config.drop_path and seeds is not None:
        drops = drop_factors(seeds, config.layers, config.drop_path)
    scan = nn.scan(
        block,
        variable_axes={"params": 0, "attention": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        length=config.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = scan(config, constrain, name="layers")(x, valid, drops)
    return Norm("layer", config.norm_eps, 0.0, "embed", name="norm")(x)


class Encoder(nn.Module):
    """Patches -> hidden states.

    dtype  compute dtype; parameters keep theirs
    remat  of models.decoder.REMAT, what the backward pass may reuse
    With the collection `attention` mutable, layers/attention/weights in it is [layers, b, heads, t, t].
    """

    config: VitConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(
        self,
        patches: jax.Array,
        positions: np.ndarray | jax.Array,
        leads: np.ndarray | jax.Array | None,
        valid: jax.Array,
        keep: jax.Array | None = None,
        seeds: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm.

        patches    [b, t, values]; those that are not valid may hold anything, NaN too
        positions  [t, axes] or [b, t, axes] int, place along the cut axes
        leads      [t] or [b, t] int, row of the lead embedding; None: of a model without one
        valid      [b, t] bool; a token that is not valid reaches no other
        keep       [b, k] int32, the tokens to compute; None: all
        seeds      [b] uint32, each row's randomness: drop path; None: off
        returns    [b, extra + k (or t), embed]: class token, registers, tokens; without meaning where not valid
        """
        c = self.config
        if (leads is None) != (c.lead_count == 0):
            raise ValueError(
                f"encoder: got {'no' if leads is None else 'the'} leads of the tokens for lead_count={c.lead_count}, "
                "expected them if and only if the model has a lead embedding; change one of the two."
            )
        table = sin_cos(positions, c.embed, c.position_base)
        if keep is not None:
            patches, valid = take(patches, keep), take(valid, keep)
            table = take(jnp.asarray(table), keep) if table.ndim == 3 else jnp.asarray(table)[keep]
            if leads is not None:
                leads = take(jnp.asarray(leads), keep) if leads.ndim == 2 else jnp.asarray(leads)[keep]
        patches = jnp.where(valid[..., None], patches, 0).astype(self.dtype)
        x = Projection("btp,pd->btd", (c.values, c.embed), ("patch", "embed"), 1, name="embedding")(patches)
        x = x + jnp.asarray(table, self.dtype)
        if leads is not None:
            x = x + lead_embedding(self, c.lead_count, c.embed, leads).astype(self.dtype)
        x, valid = self._with_extra(x, valid)
        return run_layers(c, x, valid, seeds, self.remat, self.constrain)

    def _with_extra(self, x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The class token and the registers put before the tokens of the patches."""
        c = self.config
        extra = []
        if c.class_token:
            extra.append(parameter(self, "class_token", nn.initializers.normal(0.02), (c.embed,), ("embed",))[None])
        if c.registers:
            shape = c.registers, c.embed
            extra.append(parameter(self, "registers", nn.initializers.normal(0.02), shape, (None, "embed")))
        if not extra:
            return x, valid
        rows = jnp.concatenate(extra).astype(x.dtype)
        rows = jnp.broadcast_to(rows, (x.shape[0], *rows.shape))
        return jnp.concatenate([rows, x], axis=1), jnp.pad(valid, ((0, 0), (c.extra, 0)), constant_values=True)


def lead_embedding(module: nn.Module, count: int, embed: int, leads: np.ndarray | jax.Array) -> jax.Array:
    """Declare the parameter `leads` [count, embed] of a module and look leads [...] up in it: [..., embed]."""
    table = parameter(module, "leads", nn.initializers.normal(0.02), (count, embed), (None, "embed"))
    # a product instead of a look-up: its gradient is a product too, not a scatter
    return jax.nn.one_hot(leads, count, dtype=table.dtype) @ table


def with_aligned_keys(params: Mapping[str, Any]) -> dict[str, Any]:
    """Fresh parameters in which every key projection begins as a copy of its query projection.

    A token then begins by attending to tokens that are like it, of its own place first of all, instead of at random;
    trained vision transformers look so, and small data sets get there much sooner (arXiv 2305.09828, the part on
    queries and keys).

    params  nested dicts; of every block's attention/qkv/kernel [layers, embed, 3, heads, head_dim]
    """
    aligned: dict[str, Any] = {}
    for name, value in params.items():
        if name == "qkv":
            kernel = value["kernel"]
            aligned[name] = {**value, "kernel": kernel.at[:, :, 1].set(kernel[:, :, 0])}
        else:
            aligned[name] = with_aligned_keys(value) if isinstance(value, Mapping) else value
    return aligned
