"""The training step of a language model: decoder, adapters, next-token loss, and the batch that goes in."""

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.data.text.packing import Batch
from medjax.models.decoder import Decoder, abstract_variables, unembedding
from medjax.models.decoder_config import DecoderConfig
from medjax.nn.attention import forest
from medjax.nn.context import choose_context, splash_blocks, zigzag
from medjax.nn.kernels import choose_backend
from medjax.nn.lora import TARGETS, LoraConfig
from medjax.nn.loss import TablePlaces, cross_entropy
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint, Rules, mesh_axes, partition_spec, ways
from medjax.train.optimizer import optimizer
from medjax.train.program import StepProgram, abstract_frozen, check_batch_divides, check_remat
from medjax.train.settings import TrainSettings
from medjax.train.state import Tree, abstract_state, choose_trainable, split
from medjax.train.step import Loss


@dataclass(frozen=True)
class AttentionLayout:
    """How a run computes attention.

    backend   of nn.attention; context of nn.context, None where no row is split
    repeated  devices that compute the same heads, as the mesh splits them into more parts than there are
    blocks    tokens of the blocks of splash's kernels, by what queries meet and then by kernel
    """

    backend: str
    context: str | None
    repeated: int
    blocks: dict[str, dict[str, tuple[int, ...]]]

    def __str__(self) -> str:
        parts = [self.backend]
        if self.context:
            parts.append(f"rows split by {self.context}")
        for met, kernels in self.blocks.items():
            sizes = ", ".join(f"{name} {' x '.join(map(str, size))}" for name, size in kernels.items())
            parts.append(f"blocks over {met}: {sizes}")
        if self.repeated > 1:
            parts.append(f"the same heads computed by {self.repeated} devices, since the mesh does not divide them")
        return "; ".join(parts)


@dataclass(frozen=True)
class LanguageProgram(StepProgram):
    """The step of a decoder; its batch is a data.text.packing.Batch.

    backend    of nn.attention, resolved
    context    of nn.context, resolved
    attention  both, and what follows from them
    """

    lora: LoraConfig | None
    backend: str
    context: str
    attention: AttentionLayout
    settings: TrainSettings


def step_program(
    settings: TrainSettings, config: DecoderConfig, steps: int, devices: list | None = None
) -> LanguageProgram:
    """The program of a run on the mesh that its settings name.

    steps    of the whole run, which the schedule needs
    devices  default: all of this run
    Raises ValueError where mesh, batch, window, attention back end or names of parameters do not fit.
    """
    mesh, rules = make_mesh(settings.mesh.shape or "fsdp=-1", devices), PRESETS[settings.mesh.rules]
    _check_divides(settings, mesh, rules)
    check_remat(settings.train, mesh)
    backend = choose_backend(
        settings.model.backend,
        mesh.devices.flat[0].platform,
        packed=settings.data.packing,
        layers_differ=config.is_mixed,
        dtype=settings.model.dtype,
    )
    heads = (1, settings.data.window, config.heads, config.head_dim)
    context = choose_context(
        settings.model.context,
        shards=ways(mesh, rules.seq),
        heads=config.heads,
        other_ways=ways(mesh, partition_spec((None, None, "heads", None), heads, mesh, rules)[2]),
        window=None if config.is_mixed else config.windows[0] or None,
        backend=backend,
        tokens=settings.data.window,
    )
    lora = _lora_config(settings, config)
    variables = abstract_variables(config, lora, settings.model.quantisation)
    chosen = choose_trainable(variables, settings.train.trainable)
    tx = optimizer(settings.optimizer, steps)
    compute = jnp.dtype(settings.model.dtype)
    frozen = abstract_frozen(split(variables, chosen)[1], mesh, rules, compute)
    shape = settings.train.batch_size, settings.data.window
    place = NamedSharding(mesh, partition_spec(("batch", "seq"), shape, mesh, rules))
    dtypes = Batch(tokens=np.int32, targets=np.int32, weights=np.float32, positions=np.int32, ends=np.int32)
    return LanguageProgram(
        mesh=mesh,
        rules=rules,
        lora=lora,
        variables=variables,
        chosen=chosen,
        dtype=settings.model.dtype,
        dropout=bool(lora and lora.dropout),
        backend=backend,
        context=context,
        attention=_attention(settings, config, backend, context, mesh, rules),
        steps=settings.train,
        loss=_loss(settings, config, backend, context, lora, mesh, rules, chosen),
        tx=tx,
        state=abstract_state(variables, chosen, tx, mesh, rules),
        frozen=frozen,
        batch=Batch(*(jax.ShapeDtypeStruct(shape, dtype, sharding=place) for dtype in dtypes)),
        settings=settings,
    )


def _attention(
    settings: TrainSettings, config: DecoderConfig, backend: str, context: str, mesh: Mesh, rules: Rules
) -> AttentionLayout:
    window, shards = settings.data.window, ways(mesh, rules.seq)
    axes = ("batch", None, "attention_heads", None) if context == "heads" else ("batch", "seq", "heads", None)
    wanted = ways(mesh, rules.attention_heads if context == "heads" else rules.heads)
    shape = settings.train.batch_size, window, config.heads, config.head_dim
    blocks: dict[str, dict[str, tuple[int, ...]]] = {}
    if backend == "splash":
        reach = config.windows[0] if 0 < config.windows[0] < window else None
        found = splash_blocks(context, window, shards, config.head_dim, jnp.dtype(settings.model.dtype), reach)
        blocks = {met: each._asdict() for met, each in found.items()}
    split = ways(mesh, partition_spec(axes, shape, mesh, rules)[2])
    return AttentionLayout(backend, context if shards > 1 else None, wanted // split, blocks)


def _lora_config(settings: TrainSettings, config: DecoderConfig) -> LoraConfig | None:
    """The adapters of a run; None when none are trained. Raises ValueError for a target that the family lacks."""
    if not any(name == "lora" or name.startswith("lora/") for name in settings.train.trainable):
        return None
    targets = settings.lora.targets
    fused = config.family == "gpt_neox"
    absent = {"query_key_value": not fused, "gate": not config.gated}
    lacking = [name for name in targets if absent.get(name)]
    if lacking:
        raise ValueError(
            f"lora.targets: got {', '.join(lacking)}, which a {config.family} model does not have; name some of "
            f"{', '.join(name for name in TARGETS if not absent.get(name))}."
        )
    return LoraConfig(**asdict(settings.lora))


def _check_divides(settings: TrainSettings, mesh: Mesh, rules: Rules) -> None:
    """Raise ValueError when a batch or a row cannot be split over the mesh, naming axes and sizes that would do."""
    check_batch_divides(settings.train, mesh, rules)
    window = settings.data.window
    along = ways(mesh, rules.seq)
    if window % (128 * along):
        raise ValueError(
            f"data.window: got {window} tokens, expected a multiple of {128 * along}, since sequence={along} splits "
            f"rows into parts of a multiple of 128; use {-(-window // (128 * along)) * 128 * along}, or another mesh."
        )


def _table_places(config: DecoderConfig, mesh: Mesh, rules: Rules) -> TablePlaces | None:
    """Where the vocabulary's table lies around the loss; None on one device."""
    if mesh.size == 1:
        return None
    shape = config.vocab_size, config.embed
    home = partition_spec(("vocab", "embed"), shape, mesh, rules)
    tokens = [axis for one in (rules.batch, rules.seq) for axis in mesh_axes(one)]
    kept = tuple(axis for axis in mesh_axes(home[0]) if axis not in tokens)
    specs = home, PartitionSpec(kept, None), PartitionSpec(tuple(tokens), kept, None)
    return TablePlaces(*(NamedSharding(mesh, spec) for spec in specs))


def _loss(
    settings: TrainSettings,
    config: DecoderConfig,
    backend: str,
    context: str,
    lora: LoraConfig | None,
    mesh: Mesh,
    rules: Rules,
    chosen: frozenset[str],
) -> Loss:
    """Next-token cross-entropy over the counted targets of a Batch; means: loss (with z-loss), nll, accuracy."""
    m, t = settings.model, settings.train
    place = Constraint(mesh, rules)
    decoder = Decoder(
        config,
        dtype=jnp.dtype(m.dtype),
        backend=backend,
        lora=lora,
        quantisation=m.quantisation,
        remat=t.remat,
        constrain=place,
        context=context,
    )
    shards = ways(mesh, rules.batch), ways(mesh, rules.seq)
    table = "params/embedding" if config.tied else "params/unembedding"
    places = _table_places(config, mesh, rules)

    def loss(variables: Tree, batch: Batch, key: jax.Array | None):
        if context == "heads":
            trees = forest(batch.positions, batch.ends)
        else:  # every device has all numbers of its rows, and takes those of its tokens
            whole = Batch(*(place(x, "batch", None) for x in batch))
            trees = forest(whole.positions, whole.ends)
            batch = Batch(*(place(zigzag(x, shards[1]), "batch", "seq") for x in whole))
        hidden, _ = decoder.apply(
            variables, batch.tokens, batch.positions, trees, rngs={} if key is None else {"dropout": key}
        )
        total, sums = cross_entropy(
            hidden,
            unembedding(variables["params"]),
            batch.targets,
            batch.weights,
            z_weight=t.z_loss,
            shards=shards,
            trains_table=table in chosen,
            places=places,
        )
        counted = jnp.sum(batch.weights)
        return total, {"loss": total, "nll": sums.nll, "accuracy": sums.right, "counted": counted}

    return loss
