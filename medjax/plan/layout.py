"""What memory and time of a decoder's training step depend on: sizes on one device, without a program.

Estimates are made of this, thousands a second, where building a program takes a second. `layout` reads it off a
program, `medjax.plan.candidates` makes variants of one.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medjax.models.decoder_config import DecoderConfig
from medjax.nn import quant
from medjax.nn.lora import LoraConfig
from medjax.parallel.sharding import Rules, partition_spec, ways
from medjax.plan.program import PlannedStep
from medjax.train.language_program import LanguageProgram

AGAIN = ("attention", "full", "offload")  # train.remat that computes projections again
IN_FLIGHT = 2  # layers whose activations are on their way to the host or back (train.remat=offload)


@dataclass(frozen=True)
class Layout:
    """A training step of a decoder on one device of a mesh. Bytes are of one device.

    rows, window     of a whole step; accumulation: parts that it is computed in
    remat            of train.settings.REMAT
    width            bytes of a number of the computation
    quantisation     how frozen projections are stored
    backend, context of attention, resolved
    trains           "full", "lora" or "head"
    trains_table     whether the unembedding is trained
    trained, optimizer, frozen, batch  bytes of the step's arguments
    on_tpu           arrays are padded to tiles there
    """

    config: DecoderConfig
    mesh: Mesh
    rules: Rules
    rows: int
    window: int
    accumulation: int
    remat: str
    width: int
    quantisation: str | None
    backend: str
    context: str
    lora: LoraConfig | None
    trains: str
    trains_table: bool
    trained: int
    optimizer: int
    frozen: int
    batch: int
    on_tpu: bool

    @property
    def tokens(self) -> int:
        """Of one device, computed at one time."""
        parts = ways(self.mesh, self.rules.batch) * ways(self.mesh, self.rules.seq)
        return self.rows // self.accumulation * self.window // parts

    @property
    def arguments(self) -> int:
        return self.trained + self.optimizer + self.frozen + self.batch

    @property
    def gathered(self) -> int:
        """Into how many parts the weights are split that every device gathers before it uses them."""
        return ways(self.mesh, partition_spec(("embed",), (self.config.embed,), self.mesh, self.rules)[0])

    def ways(self, axis: str) -> int:
        """Into how many parts a logical axis of the model is split: heads, kv_heads, mlp, vocab."""
        size = {
            "heads": self.config.heads,
            "kv_heads": self.config.kv_heads,
            "mlp": self.config.mlp,
            "vocab": self.config.vocab_size,
        }[axis]
        return ways(self.mesh, partition_spec((axis,), (size,), self.mesh, self.rules)[0])

    @property
    def stored_width(self) -> float:
        """Bytes of a number of a kernel as it is stored, and travels."""
        if self.quantisation is None:
            return self.width
        leaves = quant.leaves(self.quantisation, self.config.mlp, self.config.embed).values()
        stored = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        return stored / (self.config.mlp * self.config.embed)

    @property
    def packed(self) -> bool:
        """Whether a stored code is less than a byte."""
        return self.quantisation is not None and self.stored_width < 1

    @property
    def mlp_codes(self) -> int:
        """Bytes of the packed codes of the MLP of all layers on a device."""
        c = self.config
        return c.layers * (3 if c.gated else 2) * c.embed * c.mlp // 2 // (self.gathered * self.ways("mlp"))

    @property
    def layer_weights(self) -> int:
        """Numbers of one layer's kernels on a device once they are gathered."""
        c = self.config
        attention = 2 * c.heads // self.ways("heads") + 2 * c.kv_heads // self.ways("kv_heads")
        return c.embed * (c.head_dim * attention + (3 if c.gated else 2) * c.mlp // self.ways("mlp"))


def layout(step: PlannedStep) -> Layout | None:
    """The layout of a step; None for what is no decoder."""
    program = step.program
    if step.config is None or not isinstance(program, LanguageProgram):
        return None
    rows, window = program.batch.tokens.shape
    return Layout(
        config=step.config,
        mesh=program.mesh,
        rules=program.rules,
        rows=rows,
        window=window,
        accumulation=program.steps.accumulation,
        remat=program.steps.remat,
        width=jnp.dtype(program.dtype).itemsize,
        quantisation=program.settings.model.quantisation,
        backend=program.backend,
        context=program.context,
        lora=program.lora,
        trains="lora" if program.lora else "head" if program.settings.train.trainable == ("head",) else "full",
        trains_table=("params/embedding" if step.config.tied else "params/unembedding") in program.chosen,
        trained=tree_bytes(program.state.trainable),
        optimizer=tree_bytes(program.state.optimizer),
        frozen=tree_bytes(program.frozen),
        batch=tree_bytes(program.batch),
        on_tpu=program.mesh.devices.flat[0].platform == "tpu",
    )


def with_rows(of: Layout, rows: int, accumulation: int, remat: str) -> Layout:
    """The same arrays and mesh with another batch and another remat policy."""
    return replace(of, rows=rows, accumulation=accumulation, remat=remat, batch=of.batch * rows // of.rows)


def tree_bytes(tree: Any) -> int:
    """Bytes of one device: jax.ShapeDtypeStructs with shardings."""
    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
    bits = 4 if leaf.dtype.name in ("int4", "uint4") else leaf.dtype.itemsize * 8
    return prod(shape) * bits // 8
