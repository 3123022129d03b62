"""A training step as a program: everything that is known of it before data and weights are read.

The same program is run by train.run, lowered by tests, and compiled ahead for machines that are not there. What is
trained on what is said by train.language_program and train.ecg_program.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from medjax.parallel.sharding import Rules, is_box, partition_spec, ways
from medjax.train.settings import StepsSettings
from medjax.train.state import TrainState, Tree
from medjax.train.step import Loss, make_evaluation, make_step

_HOST = "pinned_host"  # the memory that models.decoder.REMAT offloads to


@dataclass(frozen=True)
class StepProgram:
    """A training step and the shapes, dtypes and shardings of what goes in.

    variables       boxed tree of all variables
    chosen          paths of the trained ones
    dtype           of computation
    dropout         whether the loss wants a key
    state, frozen, batch   jax.ShapeDtypeStructs with shardings
    """

    mesh: Mesh
    rules: Rules
    variables: Tree
    chosen: frozenset[str]
    dtype: str
    dropout: bool
    loss: Loss
    tx: optax.GradientTransformation
    state: TrainState
    frozen: Tree
    batch: Any
    steps: StepsSettings

    @property
    def precision(self) -> str:
        """Of matrix products: float32 means float32, also on devices that would use TF32 or bfloat16 for it."""
        return "highest" if self.dtype == "float32" else "default"

    @property
    def held_out_batch(self) -> Any:
        """The batch of an evaluation: as many rows as a step has at one time."""
        rows = self.steps.batch_size // self.steps.accumulation
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding), self.batch
        )

    def lower(self) -> Any:
        """The step (state, frozen, batch) -> (state, StepMetrics), lowered; the state is donated."""
        s = self.steps
        step = make_step(
            self.loss,
            self.tx,
            accumulation=s.accumulation,
            spike=s.spike,
            dropout_seed=s.seed if self.dropout else None,
        )
        placed = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        with jax.default_matmul_precision(self.precision):
            jitted = jax.jit(step, donate_argnums=0, out_shardings=(placed, None))
            return jitted.lower(self.state, self.frozen, self.batch)

    def lower_evaluation(self) -> Any:
        """The held-out loss (trainable, frozen, batch) -> sums, lowered."""
        with jax.default_matmul_precision(self.precision):
            evaluation = jax.jit(make_evaluation(self.loss))
            return evaluation.lower(self.state.trainable, self.frozen, self.held_out_batch)


def abstract_frozen(boxes: Tree, mesh: Mesh, rules: Rules, dtype: jnp.dtype) -> Tree:
    """Frozen leaves as they are loaded: floats in the compute dtype, quantised kernels and adapters in their own."""

    def leaf(path, box):
        kept = path[0].key == "lora" or (len(path) > 1 and path[-2].key == "kernel")
        sharding = NamedSharding(mesh, partition_spec(box.names, box.value.shape, mesh, rules))
        return jax.ShapeDtypeStruct(box.value.shape, box.value.dtype if kept else dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(leaf, boxes, is_leaf=is_box)


def check_remat(steps: StepsSettings, mesh: Mesh) -> None:
    """Raise ValueError when activations are to go to the host's memory and these devices cannot, or may do it wrong.

    XLA's GPU compiler has given wrong gradients without a word for what a loop keeps there (openxla/xla#46231).
    """
    if steps.remat != "offload":
        return
    device = mesh.devices.flat[0]
    instead = "use attention or full, or more train.accumulation, which keeps less at a time."
    if device.platform not in ("tpu", "cpu"):
        raise ValueError(
            f"train.remat: got offload on {device.device_kind}, expected a TPU (or a CPU, to try it): on GPUs "
            f"gradients have come out wrong with activations in the host's memory (openxla/xla#46231); {instead}"
        )
    if not hasattr(device, "addressable_memories"):  # a device by name alone, for estimates
        return
    kinds = [memory.kind for memory in device.addressable_memories()]
    if _HOST not in kinds:
        raise ValueError(
            f"train.remat: got offload on {device.device_kind}, whose memories are {', '.join(kinds)}; expected "
            f"{_HOST} among them, which a newer jax may offer; {instead}"
        )


def check_batch_divides(steps: StepsSettings, mesh: Mesh, rules: Rules) -> None:
    """Raise ValueError when a batch cannot be split over the mesh, naming axes and a size that would do."""
    each = ways(mesh, rules.batch) * steps.accumulation
    if steps.batch_size % each:
        axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in rules.batch or () if mesh.shape[axis] > 1)
        raise ValueError(
            f"train.batch_size: got {steps.batch_size} rows, expected a multiple of {each} "
            f"({axes or 'one device'}, accumulation {steps.accumulation}); use {-(-steps.batch_size // each) * each}, "
            "or change the mesh or the accumulation."
        )
