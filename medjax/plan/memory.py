"""What a training step of a decoder needs of a device's memory, by arithmetic alone: a second, not minutes.

  arguments     trained parameters, optimiser, frozen weights, batch: exact, from shapes and shardings
  kept          what the forward pass keeps of each layer for the backward pass; train.remat says what. Of what goes to
                the host's memory (offload) two layers are on the device at a time
  gradients     float32, of what is trained, and once more where a batch comes in parts
  loss          the table of the vocabulary, gathered; logits of a chunk of tokens with their gradient; the gradients of
                the hidden states, and that of the table if it is trained
  layer         activations of a layer with their gradients while its backward pass runs, and its weights once as they
                meet the tokens: out of their quantised form, and gathered (in part: the compiler streams them)
  copied        TPU, packed kinds: the codes of the MLP once more, of all layers, in the order in which they are read
  code          the program itself: what programs of this kind have on TPU

The step's peak is arguments + kept + gradients + copied + code + the larger of loss and layer. It prunes the search;
`medjax.plan` prints how far it was from the compiler, docs/scaling.md has that for programs of every kind.
"""

from dataclasses import dataclass

from medjax.nn.loss import CHUNK
from medjax.plan import encoder
from medjax.plan.encoder import EncoderLayout, encoder_layout
from medjax.plan.engine import EngineStep
from medjax.plan.engine_layout import EngineLayout
from medjax.plan.layout import IN_FLIGHT, Layout, layout
from medjax.plan.program import PlannedStep

_CODE = 48 * 2**20


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device, by part."""

    arguments: int
    kept: int
    gradients: int
    loss: int
    layer: int
    code: int
    copied: int = 0

    @property
    def temporary(self) -> int:
        return self.kept + self.gradients + self.copied + max(self.loss, self.layer)

    @property
    def peak(self) -> int:
        return self.arguments + self.temporary + self.code


def layout_of(step: PlannedStep | EngineStep) -> Layout | EncoderLayout | EngineLayout:
    """What memory and time of any step depend on."""
    if isinstance(step, EngineStep):
        return step.layout
    return layout(step) or encoder_layout(step)


def estimate(step: PlannedStep | EngineStep) -> Estimate:
    """The estimate of a step."""
    return memory(layout_of(step))


def memory(of: Layout | EncoderLayout | EngineLayout) -> Estimate:
    """The estimate of a layout."""
    if isinstance(of, EngineLayout):
        return Estimate(of.held, of.kept, 0, of.loss, of.layer, _CODE if of.on_tpu else 0)
    if isinstance(of, EncoderLayout):
        return Estimate(
            arguments=of.arguments,
            kept=encoder.kept(of),
            gradients=of.trained * (2 if of.accumulation > 1 else 1),
            loss=encoder.loss(of),
            layer=encoder.layer(of),
            code=_CODE if of.on_tpu else 0,
        )
    weights, inside = _layer_weights(of), of.tokens * _inside(of)
    table, logits, table_gradient = _vocabulary(of)
    layers = min(IN_FLIGHT, of.config.layers) if of.remat == "offload" else of.config.layers
    if of.trains == "head":  # nothing below it has a gradient
        layers, inside = 0, inside // 2
    return Estimate(
        arguments=of.arguments,
        kept=layers * of.tokens * _kept(of),
        gradients=of.trained * (2 if of.accumulation > 1 else 1),
        loss=table + logits + table_gradient + 2 * of.tokens * of.config.embed * of.width,
        layer=weights + 2 * inside + table_gradient,
        code=_CODE if of.on_tpu else 0,
        copied=of.mlp_codes if of.on_tpu and of.packed else 0,
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
    """Bytes of one layer's kernels where they are not used as they are stored, and scales of half of the largest."""
    if of.gathered == 1 and of.quantisation is None:
        return 0
    scales = of.config.embed * of.config.mlp // of.ways("mlp") // 2 * 4 if of.packed and of.on_tpu else 0
    return of.layer_weights * of.width + scales


def _vocabulary(of: Layout) -> tuple[int, int, int]:
    """Bytes of the table as it is gathered, of logits, and of the table's gradient."""
    c = of.config
    vocabulary = c.vocab_size // of.ways("vocab")
    logits = min(CHUNK, of.tokens) * vocabulary * (4 + of.width)
    table = vocabulary * c.embed * of.width if of.gathered > 1 else 0
    return table, logits, vocabulary * c.embed * 4 if of.trains_table else 0
