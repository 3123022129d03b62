"""What a training step of a decoder needs of a device's memory, by arithmetic alone: a second, not minutes.

  arguments     trained parameters, optimiser, frozen weights, batch: exact, from shapes and shardings
  kept          what the forward pass keeps of each layer for the backward pass; train.remat says what. Of what goes to
                the host's memory (offload) two layers are on the device at a time
  gradients     float32, of what is trained, and once more where a batch comes in parts
  loss          the table of the vocabulary, gathered; logits of a chunk of tokens with their gradient; the gradients of
                the hidden states, and that of the table if it is trained
  layer         activations of a layer with their gradients while its backward pass runs, and its weights once as they
                meet the tokens: out of their quantised form, and gathered (in part: the compiler streams them)
  code          the program itself: what programs of this kind have on TPU

The step's peak is arguments + kept + gradients + code + the larger of loss and layer. It prunes the search;
`medjax.plan` prints how far it was from the compiler. Held against libtpu 0.0.42 with Llama 3 8B LoRA, bfloat16, on
v5e:4x4 (fsdp=16, a row of 2,048 tokens a chip): +0.5 % of the peak with remat=full and 4 layers, -11.5 % with dots and
2 layers; with Llama 2 70B QLoRA, int8 (fsdp=4, tensor=4, remat=full, 2 layers): -4.7 %.
"""

from dataclasses import dataclass

from medjax.nn.loss import CHUNK
from medjax.plan.layout import Layout, layout
from medjax.plan.program import PlannedStep

_CODE = 48 * 2**20
_IN_FLIGHT = 2  # layers whose activations are on their way to the host or back


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device, by part."""

    arguments: int
    kept: int
    gradients: int
    loss: int
    layer: int
    code: int

    @property
    def temporary(self) -> int:
        return self.kept + self.gradients + max(self.loss, self.layer)

    @property
    def peak(self) -> int:
        return self.arguments + self.temporary + self.code


def estimate(step: PlannedStep) -> Estimate | None:
    """The estimate of a step; None for what is no decoder."""
    found = layout(step)
    return memory(found) if found else None


def memory(of: Layout) -> Estimate:
    """The estimate of a layout."""
    weights, inside = _layer_weights(of), of.tokens * _inside(of)
    table, logits, table_gradient = _vocabulary(of)
    return Estimate(
        arguments=of.arguments,
        kept=(min(_IN_FLIGHT, of.config.layers) if of.remat == "offload" else of.config.layers) * of.tokens * _kept(of),
        gradients=of.trained * (2 if of.accumulation > 1 else 1),
        loss=table + logits + table_gradient + 2 * of.tokens * of.config.embed * of.width,
        layer=weights + 2 * inside + table_gradient,
        code=_CODE if of.on_tpu else 0,
    )


def host_bytes(of: Layout) -> int:
    """What train.remat=offload keeps in the host's memory for one device."""
    return of.config.layers * of.tokens * _kept(of) if of.remat == "offload" else 0


def _parts(of: Layout) -> tuple[int, int, int]:
    """Numbers of a token on one device: queries, keys (values are as many), and one of the MLP's products."""
    c = of.config
    # heads inside attention are split by the sequence axis too, but there every device has all tokens of a row
    heads, kv = c.heads * c.head_dim // of.ways("heads"), c.kv_heads * c.head_dim // of.ways("kv_heads")
    return heads, kv, c.mlp // of.ways("mlp")


def _kept(of: Layout) -> int:
    """Bytes a token and layer."""
    c, width = of.config, of.width
    heads, kv, mlp = _parts(of)
    carry = c.embed * width
    attention = heads * width + c.heads // of.ways("heads") * 4
    projections = (heads + 2 * kv + c.embed + (2 if c.gated else 1) * mlp + c.embed) * width
    if of.remat == "full":
        return carry
    if of.remat in ("attention", "offload"):
        return carry + attention
    if of.remat == "dots":
        return carry + attention + projections
    return carry + attention + projections + _inside(of)


def _inside(of: Layout) -> int:
    """Bytes a token of what a layer makes on its way besides what it may keep: norms, rotated heads, gated product."""
    c = of.config
    heads, kv, mlp = _parts(of)
    return (3 * c.embed + 2 * heads + 2 * kv + (3 if c.gated else 2) * mlp) * of.width


def _layer_weights(of: Layout) -> int:
    """Bytes of one layer's kernels where they are not used as they are stored."""
    return 0 if of.gathered == 1 and of.quantisation is None else of.layer_weights * of.width


def _vocabulary(of: Layout) -> tuple[int, int, int]:
    """Bytes of the table as it is gathered, of logits, and of the table's gradient."""
    c = of.config
    vocabulary = c.vocab_size // of.ways("vocab")
    logits = min(CHUNK, of.tokens) * vocabulary * (4 + of.width)
    table = vocabulary * c.embed * of.width if of.gathered > 1 else 0
    return table, logits, vocabulary * c.embed * 4 if of.trains_table else 0
