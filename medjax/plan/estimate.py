"""What a decoder's training step computes, moves and sends, by arithmetic alone, and the time that this takes at least.

  operations  kernels: 2 a number and token forward, 2 for the gradient of the input, 2 for that of the kernel if it is
              trained; attention 4 a pair and component forward, 10 backward (14 with splash, which computes scores in
              both of its kernels); what remat computes again comes on top
  HBM         weights as they are stored where they are gathered (forward and backward) and for every product; written
              and read once more where they are expanded; activations as they are written and read between matrix
              products, inputs of adapters with dropout besides; TPU, packed kinds: both halves of every product, and
              under dots and none the scales, spread out (inferred from compiled steps). The optimiser's state read and
              written. NOT counted: copies into another order (rows split over sequence have many), what an attention
              kernel reads several times, what the compiler keeps in VMEM (small steps need less than is said here)
  host        what train.remat=offload keeps in the host's memory, there and back
  links       by mesh axis, of one device, ring algorithms: (n - 1) / n of what is gathered or scattered, twice that
              of what is summed
                fsdp      weights for each of two passes, as they are stored; gradients
                tensor    sums after the projections back to the embedding, forward and backward
                sequence  queries, keys, values and outputs (heads), keys and values (gather, ring); gradients
                data      gradients

`medjax.plan` compiles the best by this and takes the compiler's program for the figures that it prints.
"""

from dataclasses import dataclass

import numpy as np

from medjax.parallel.topology import Topology
from medjax.plan import encoder
from medjax.plan.encoder import EncoderLayout
from medjax.plan.engine_layout import EngineLayout
from medjax.plan.layout import AGAIN, Layout
from medjax.plan.memory import host_bytes
from medjax.plan.roofline import Roofline, link, network, of_work
from medjax.train.flops import attended_pairs, lora_params

_NOT_HIDDEN = 0.1  # share of what is not the limit that counts all the same: of two equal limits the one with less wins
_PASSES = {**dict.fromkeys(AGAIN, 3), "dots": 2, "none": 2}  # over the activations between matrix products


@dataclass(frozen=True)
class Work:
    """Of one device in a step.

    flops       operations, a multiplication and an addition count 2
    hbm_bytes   read and written
    sent        bytes by mesh axis
    host_bytes  to the host's memory and back, both together
    """

    flops: float
    hbm_bytes: float
    sent: dict[str, float]
    host_bytes: float = 0.0


def work(of: Layout | EncoderLayout | EngineLayout) -> Work:
    """The work of a step with full rows."""
    if isinstance(of, EngineLayout):
        return Work(of.flops, of.hbm_bytes, of.sent)
    if isinstance(of, EncoderLayout):
        host = 2.0 * of.accumulation * encoder.host_bytes(of)
        return Work(encoder.flops(of), encoder.hbm_bytes(of), encoder.sent(of), host)
    return Work(_flops(of), _hbm_bytes(of), _sent(of), 2.0 * of.accumulation * host_bytes(of))


def bound(of: Layout | EncoderLayout | EngineLayout, place: Topology) -> Roofline | None:
    """The least time of a step on a slice, from its work; None where the chip has no figures."""
    if not place.chip.bf16_flops:
        return None
    todo = work(of)
    sent = []
    for axis, moved in todo.sent.items():
        within = of.mesh.shape[axis] // place.slices if axis == "data" else of.mesh.shape[axis]
        if within > 1:
            sent.append((*link(place, of.mesh, (axis,)), moved))
    if place.slices > 1 and not isinstance(of, EngineLayout):
        share = of.trained * of.accumulation / (of.mesh.shape["data"] // place.slices)
        sent.append((*network(place, ("data",)), 2 * (place.slices - 1) / place.slices * share))
    return of_work(place, todo.flops, todo.hbm_bytes, sent, todo.host_bytes, of.width)


def seconds(line: Roofline) -> float:
    """By which candidates are ranked: the limit, and a tenth of the rest, as nothing overlaps perfectly."""
    every = (line.compute, line.memory, line.host, *line.links.values())
    return line.step + _NOT_HIDDEN * (sum(every) - line.step)


def _tokens(of: Layout) -> int:
    """Of one device in a whole step."""
    return of.tokens * of.accumulation


def _flops(of: Layout) -> float:
    c, tokens = of.config, _tokens(of)
    again = of.remat in AGAIN and of.trains != "head"
    kernels = 2 + (2 if of.trains != "head" else 0) + (2 if of.trains == "full" else 0) + (2 if again else 0)
    total: float = kernels * tokens * of.layer_weights * c.layers
    if again and not c.post_norms:  # nothing in the backward pass needs what the last projection gave
        total -= 2 * tokens * c.layers * c.embed * (c.mlp // of.ways("mlp"))
    if of.lora:  # adapters are split as their kernels are
        share = of.layer_weights * c.layers / c.matmul_params
        total += (8 if again else 6) * tokens * lora_params(c, of.lora) * share
    backward = 0 if of.trains == "head" else 14 if of.backend == "splash" else 10
    pair = 4 + backward + (4 if again and of.remat == "full" else 0)
    pairs = of.rows * attended_pairs(c, np.arange(of.window)) / of.mesh.size * of.mesh.shape["tensor"]
    total += pair * pairs * c.heads // of.ways("heads") * c.head_dim
    return total + (6 if of.trains_table else 4) * tokens * (c.vocab_size // of.ways("vocab")) * c.embed


def _hbm_bytes(of: Layout) -> float:
    c, tokens = of.config, _tokens(of)
    heads = c.heads // of.ways("heads") + 2 * c.kv_heads // of.ways("kv_heads")
    inside = 6 * c.embed + 4 * heads * c.head_dim + (4 if c.gated else 3) * c.mlp // of.ways("mlp")
    activations = 2 * _PASSES[of.remat] * tokens * c.layers * inside * of.width
    state = 2 * of.optimizer + (4 + 2 * of.accumulation) * of.trained
    chunks = -(-of.tokens // 512) * of.accumulation
    table = chunks * 2 * (c.vocab_size // of.ways("vocab")) * c.embed * of.width
    weights = _weight_bytes(of) * of.layer_weights * c.layers * of.accumulation
    return weights + activations + tokens * c.layers * _beside(of) + state + table


def _weight_bytes(of: Layout) -> float:
    """Bytes of HBM for a number of a kernel in a step."""
    reads = 1 if of.trains == "head" else 3 if of.remat in AGAIN else 2
    gathers = min(reads, 2) if of.gathered > 1 else 0
    found = (gathers + reads) * of.stored_width
    if of.quantisation:
        found += 2 * reads * of.width  # expanded: written and read
    if of.packed and of.on_tpu and of.remat not in AGAIN:
        # scales, spread out to float32 for half of the numbers, are written, and read by both halves
        found += 6 * reads
    if of.trains == "full":
        found += 8 if of.gathered > 1 else 4  # its gradient in float32, read again to be summed
    return found


def _beside(of: Layout) -> float:
    """Bytes of HBM a token and layer for adapters, and for products with packed kernels, which are made in halves."""
    c, kept = of.config, of.remat not in AGAIN
    heads, kv = c.heads // of.ways("heads") * c.head_dim, c.kv_heads // of.ways("kv_heads") * c.head_dim
    mlp, wide = c.mlp // of.ways("mlp"), 2 if c.gated else 1
    shared = 2 * c.embed + heads + mlp  # inputs, those of several projections once
    inputs, outputs = (3 + wide) * c.embed + heads + mlp, heads + 2 * kv + 2 * c.embed + wide * mlp
    found = 0.0
    if of.lora and of.lora.dropout:  # dropped inputs, again in the backward pass, and their gradients: written and read
        found += 2 * (2 if of.remat == "none" else 3) * inputs * of.width
    if of.lora and kept:
        found += 2 * outputs * of.width
    if of.packed and of.on_tpu:
        forward = 8 * outputs + 3 * shared * of.width  # a half's product in float32, written and read; x split in two
        backward = 5 * inputs * of.width + outputs * of.width  # halves of dx put side by side; dy read once more
        found += forward * (1 if kept or of.trains == "head" else 2) + (backward if of.trains != "head" else 0)
    return found


def _sent(of: Layout) -> dict[str, float]:
    c, tokens, sizes = of.config, _tokens(of), of.mesh.shape
    again = of.remat in AGAIN
    found = {}
    if (n := sizes["fsdp"]) > 1:
        share = (n - 1) / n
        weights = 0.0
        if of.gathered > 1:
            numbers = of.layer_weights * c.layers * of.stored_width
            if of.lora:  # in the compute dtype; stored in float32, in as many parts
                numbers += of.trained / 4 * n * of.width
            weights = (1 if of.trains == "head" else 2) * numbers * of.accumulation
        found["fsdp"] = share * (weights + 2 * _gradients(of, "fsdp"))
    if (n := sizes["tensor"]) > 1 and of.ways("mlp") > 1:
        sums = 2 + (2 if of.trains != "head" else 0) + (1 if again else 0)
        found["tensor"] = 2 * (n - 1) / n * sums * tokens * c.layers * c.embed * of.width
    if (n := sizes["sequence"]) > 1:
        found["sequence"] = _context(of, n) + 2 * (n - 1) / n * _gradients(of, "sequence")
    if (n := sizes["data"]) > 1:
        found["data"] = 2 * (n - 1) / n * _gradients(of, "data")
    return found


def _gradients(of: Layout, axis: str) -> float:
    """Bytes of gradients that are summed over an axis, for every part of a batch.

    Over fsdp those of all parts: of kernels in float32, scattered as they are summed, which is half of a sum; of
    adapters whole, in the compute dtype.
    """
    once = of.trained * of.accumulation
    if axis != "fsdp" or of.gathered == 1:
        return once
    return once * of.mesh.shape["fsdp"] * (of.width / 4 if of.lora else 0.5)


def _context(of: Layout, n: int) -> float:
    c, tokens = of.config, _tokens(of)
    passes = 3 if of.remat == "full" else 2
    heads = c.heads // of.ways("heads") * c.head_dim
    kv = c.kv_heads // of.ways("kv_heads") * c.head_dim
    if of.context == "heads":  # an all-to-all of q, k, v and back of the output
        return passes * (n - 1) / n * tokens * c.layers * 2 * (heads + kv) * of.width
    return (passes + 1) * (n - 1) * tokens * c.layers * 2 * kv * of.width
