"""What a training step of an encoder of ECGs needs of a device's memory and time, by arithmetic alone.

The parts are those of plan.memory and plan.estimate, for stacks of bidirectional blocks (an autoencoder has two):

  kept    what the forward pass keeps of each layer of each stack; train.remat says what
  layer   the largest stack's: activations of a layer with their gradients, scores of attention, weights in use
  loss    the signal in float32 on its way into patches, and what is predicted of it with its gradient
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.sharding import Mesh

from medjax.models.vit import VitConfig
from medjax.parallel.sharding import Rules, partition_spec, ways
from medjax.plan.layout import AGAIN, IN_FLIGHT, tree_bytes
from medjax.plan.program import PlannedStep, Stack

_LANES = 128  # to which TPU pads the last axis of an array
_SCORES = 3  # arrays of scores that live at one time in the backward pass: weights, their gradient, that of the scores
_SIGNALS = 4  # float32 arrays as large as the signal: itself, augmented, normalised, cut into patches


@dataclass(frozen=True)
class EncoderLayout:
    """A training step of an encoder on one device of a mesh. Bytes are of one device.

    rows            of a whole step; accumulation: parts that it is computed in
    samples         numbers of a record: leads x samples
    remat           of train.settings.REMAT
    width           bytes of a number of the computation
    trains          "full" or "head"
    trained, optimizer, frozen, batch  bytes of the step's arguments
    on_tpu          arrays are padded to tiles there
    """

    stacks: tuple[Stack, ...]
    mesh: Mesh
    rules: Rules
    rows: int
    samples: int
    accumulation: int
    remat: str
    width: int
    trains: str
    trained: int
    optimizer: int
    frozen: int
    batch: int
    on_tpu: bool

    @property
    def records(self) -> int:
        """Of one device, computed at one time."""
        return self.rows // self.accumulation // ways(self.mesh, self.rules.batch)

    @property
    def arguments(self) -> int:
        return self.trained + self.optimizer + self.frozen + self.batch

    @property
    def parts(self) -> int:
        """Into how many parts the weights are split that every device gathers before it uses them."""
        embed = self.stacks[0].vit.embed
        return ways(self.mesh, partition_spec(("embed",), (embed,), self.mesh, self.rules)[0])

    def split(self, axis: str, size: int) -> int:
        """Into how many parts a logical axis of a stack is split."""
        return ways(self.mesh, partition_spec((axis,), (size,), self.mesh, self.rules)[0])

    def layer_weights(self, vit: VitConfig) -> int:
        """Numbers of one layer's kernels on a device once they are gathered."""
        heads, mlp = self.split("heads", vit.heads), self.split("mlp", vit.mlp)
        return 4 * vit.embed**2 // heads + 2 * vit.embed * vit.mlp // mlp


def encoder_layout(step: PlannedStep) -> EncoderLayout:
    """The layout of a step of an encoder."""
    program = step.program
    rows, leads, samples = program.batch.signal.shape
    return EncoderLayout(
        stacks=step.stacks,
        mesh=program.mesh,
        rules=program.rules,
        rows=rows,
        samples=leads * samples,
        accumulation=program.steps.accumulation,
        remat=program.steps.remat,
        width=jnp.dtype(program.dtype).itemsize,
        trains="full" if tree_bytes(program.frozen) == 0 else "head",
        trained=tree_bytes(program.state.trainable),
        optimizer=tree_bytes(program.state.optimizer),
        frozen=tree_bytes(program.frozen),
        batch=tree_bytes(program.batch),
        on_tpu=program.mesh.devices.flat[0].platform == "tpu",
    )


def kept(of: EncoderLayout) -> int:
    """Bytes that the forward pass keeps for the backward pass; nothing where the head alone is trained."""
    if of.trains == "head":
        return 0
    layers = [min(IN_FLIGHT, one.vit.layers) if of.remat == "offload" else one.vit.layers for one in of.stacks]
    return sum(
        count * of.records * one.tokens * _kept(of, one.vit) for count, one in zip(layers, of.stacks, strict=True)
    )


def host_bytes(of: EncoderLayout) -> int:
    """What train.remat=offload keeps in the host's memory for one device."""
    if of.remat != "offload" or of.trains == "head":
        return 0
    return sum(one.vit.layers * of.records * one.tokens * _kept(of, one.vit) for one in of.stacks)


def layer(of: EncoderLayout) -> int:
    """Bytes while the backward pass of the largest layer runs."""
    return max(_layer(of, one) for one in of.stacks)


def loss(of: EncoderLayout) -> int:
    """Bytes of the signal and of what is predicted of it."""
    return of.records * of.samples * (_SIGNALS * 4 + 2 * of.width)


def flops(of: EncoderLayout) -> float:
    """Of one device in a step."""
    again = of.remat in AGAIN
    passes = (2 if of.trains == "head" else 6) + (2 if again and of.trains != "head" else 0)
    total = 0.0
    for one in of.stacks:
        tokens = of.records * of.accumulation * one.tokens
        heads = of.split("heads", one.vit.heads)
        # the weights of attention are always computed again: two more products of the scores' size
        scores = 4 if of.trains == "head" else 14 + (4 if of.remat == "full" else 0)
        total += one.vit.layers * tokens * passes * of.layer_weights(one.vit)
        if again and of.trains != "head":  # nothing in the backward pass needs what the last projection gave
            total -= 2 * one.vit.layers * tokens * one.vit.embed * (one.vit.mlp // of.split("mlp", one.vit.mlp))
        total += one.vit.layers * tokens * scores * one.tokens * one.vit.embed / heads
    return total


def hbm_bytes(of: EncoderLayout) -> float:
    """Of one device in a step: weights once a pass, activations between products, scores, the state."""
    again = of.remat in AGAIN
    passes = (2 + (1 if again else 0) + 1) if of.trains == "full" else 1
    total = 0.0
    for one in of.stacks:
        d, f = one.vit.embed, one.vit.mlp // of.split("mlp", one.vit.mlp)
        heads = one.vit.heads // of.split("heads", one.vit.heads)
        tokens = of.records * of.accumulation * one.tokens
        inside = 14 * d + 4 * f
        weights = passes * (3 if of.parts > 1 else 1) * of.layer_weights(one.vit) * of.width * of.accumulation
        scores = 4 * heads * one.tokens * 4
        total += one.vit.layers * (weights + passes * tokens * (inside * of.width + scores))
    state = 2 * of.optimizer + (4 + 2 * of.accumulation) * of.trained
    return total + state + 4 * loss(of) * of.accumulation


def sent(of: EncoderLayout) -> dict[str, float]:
    """Bytes that one device sends in a step, by mesh axis, with ring algorithms."""
    found = {}
    sizes, passes = of.mesh.shape, 2 if of.trains == "full" else 1
    if (n := sizes["fsdp"]) > 1:
        weights = sum(one.vit.layers * of.layer_weights(one.vit) for one in of.stacks) * of.width
        gradients = of.trained * n if of.trains == "full" and of.parts > 1 else 2 * of.trained
        found["fsdp"] = (n - 1) / n * of.accumulation * (passes * weights + gradients)
    if (n := sizes["tensor"]) > 1:
        sums = sum(one.vit.layers * one.tokens * one.vit.embed for one in of.stacks) * of.records * of.accumulation
        found["tensor"] = 2 * (n - 1) / n * 4 * sums * of.width
    if (n := sizes["data"]) > 1:
        found["data"] = 2 * (n - 1) / n * of.trained * of.accumulation
    return found


def _kept(of: EncoderLayout, vit: VitConfig) -> int:
    """Bytes a token and layer."""
    d, f = vit.embed // of.split("heads", vit.heads), vit.mlp // of.split("mlp", vit.mlp)
    carry = vit.embed * of.width
    if of.remat == "full":
        return carry
    attention = d * of.width
    if of.remat in ("attention", "offload"):
        return carry + attention
    projections = (3 * d + 2 * vit.embed + f) * of.width
    if of.remat == "dots":
        return carry + attention + projections
    return carry + attention + projections + _inside(of, vit)


def _inside(of: EncoderLayout, vit: VitConfig) -> int:
    """Bytes a token of what a layer makes on its way besides what it may keep: norms, heads, activation."""
    heads, f = vit.heads // of.split("heads", vit.heads), vit.mlp // of.split("mlp", vit.mlp)
    head = _padded(vit.embed // vit.heads, of)
    return (2 * vit.embed + 4 * heads * head + f) * of.width


def _layer(of: EncoderLayout, one: Stack) -> int:
    vit, heads = one.vit, one.vit.heads // of.split("heads", one.vit.heads)
    scores = of.records * heads * one.tokens * _padded(one.tokens, of) * 4
    weights = of.layer_weights(vit) * of.width
    if of.trains == "head":
        return weights + of.records * one.tokens * _inside(of, vit) + scores
    gradient = of.layer_weights(vit) * 4 if of.parts > 1 else 0  # whole, before it is split over fsdp
    return weights + gradient + 2 * of.records * one.tokens * _inside(of, vit) + _SCORES * scores


def _padded(size: int, of: EncoderLayout) -> int:
    return -(-size // _LANES) * _LANES if of.on_tpu else size
