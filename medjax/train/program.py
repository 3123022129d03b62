"""The training step of a language model as a program: everything that is known of it before data and weights are read.

The same program is run by train.run, lowered by tests, and compiled ahead for machines that are not there.
"""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from medjax.data.text.packing import Batch
from medjax.models.decoder import Decoder, abstract_variables, unembedding
from medjax.models.decoder_config import DecoderConfig
from medjax.nn.attention import forest
from medjax.nn.kernels import choose_backend
from medjax.nn.lora import TARGETS, LoraConfig
from medjax.nn.loss import cross_entropy
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint, Rules, is_box, partition_spec, ways
from medjax.train.optimizer import optimizer
from medjax.train.settings import TrainSettings
from medjax.train.state import TrainState, Tree, abstract_state, choose_trainable, split
from medjax.train.step import Loss, make_evaluation, make_step


@dataclass(frozen=True)
class StepProgram:
    """A training step and the shapes, dtypes and shardings of what goes in.

    variables       boxed tree of all variables
    chosen          paths of the trained ones
    backend         of nn.attention, resolved
    state, frozen, batch   jax.ShapeDtypeStructs with shardings
    """

    mesh: Mesh
    rules: Rules
    lora: LoraConfig | None
    variables: Tree
    chosen: frozenset[str]
    backend: str
    loss: Loss
    tx: optax.GradientTransformation
    state: TrainState
    frozen: Tree
    batch: Batch
    settings: TrainSettings

    @property
    def batch_sharding(self) -> NamedSharding:
        return self.batch.tokens.sharding

    @property
    def precision(self) -> str:
        """Of matrix products: float32 means float32, also on devices that would use TF32 or bfloat16 for it."""
        return "highest" if self.settings.model.dtype == "float32" else "default"

    def lower(self) -> Any:
        """The step (state, frozen, batch) -> (state, StepMetrics), lowered; the state is donated."""
        t = self.settings.train
        step = make_step(
            self.loss,
            self.tx,
            accumulation=t.accumulation,
            spike=t.spike,
            dropout_seed=t.seed if self.lora and self.lora.dropout else None,
        )
        placed = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        with jax.default_matmul_precision(self.precision):
            jitted = jax.jit(step, donate_argnums=0, out_shardings=(placed, None))
            return jitted.lower(self.state, self.frozen, self.batch)

    def lower_evaluation(self) -> Any:
        """The held-out loss (trainable, frozen, batch) -> sums, lowered; of as many rows as a step has at one time."""
        rows = self.settings.train.batch_size // self.settings.train.accumulation

        def part(leaf):
            return jax.ShapeDtypeStruct((rows, leaf.shape[1]), leaf.dtype, sharding=leaf.sharding)

        with jax.default_matmul_precision(self.precision):
            evaluation = jax.jit(make_evaluation(self.loss))
            return evaluation.lower(self.state.trainable, self.frozen, jax.tree.map(part, self.batch))


def step_program(
    settings: TrainSettings, config: DecoderConfig, steps: int, devices: list | None = None
) -> StepProgram:
    """The program of a run on the mesh that its settings name.

    steps    of the whole run, which the schedule needs
    devices  default: all of this run
    Raises ValueError where mesh, batch, window, attention back end or names of parameters do not fit.
    """
    mesh, rules = make_mesh(settings.mesh.shape or "fsdp=-1", devices), PRESETS[settings.mesh.rules]
    _check_divides(settings, mesh, rules)
    backend = choose_backend(
        settings.model.backend,
        mesh.devices.flat[0].platform,
        packed=settings.data.packing,
        layers_differ=config.is_mixed,
        dtype=settings.model.dtype,
    )
    lora = _lora_config(settings, config)
    variables = abstract_variables(config, lora, settings.model.quantisation)
    chosen = choose_trainable(variables, settings.train.trainable)
    tx = optimizer(settings.optimizer, steps)
    compute = jnp.dtype(settings.model.dtype)
    frozen = _frozen(split(variables, chosen)[1], mesh, rules, compute)
    shape = settings.train.batch_size, settings.data.window
    place = NamedSharding(mesh, partition_spec(("batch", "seq"), shape, mesh, rules))
    dtypes = Batch(tokens=np.int32, targets=np.int32, weights=np.float32, positions=np.int32, ends=np.int32)
    return StepProgram(
        mesh=mesh,
        rules=rules,
        lora=lora,
        variables=variables,
        chosen=chosen,
        backend=backend,
        loss=_loss(settings, config, backend, lora, mesh, rules, chosen),
        tx=tx,
        state=abstract_state(variables, chosen, tx, mesh, rules),
        frozen=frozen,
        batch=Batch(*(jax.ShapeDtypeStruct(shape, dtype, sharding=place) for dtype in dtypes)),
        settings=settings,
    )


def _frozen(boxes: Tree, mesh: Mesh, rules: Rules, dtype: jnp.dtype) -> Tree:
    """Frozen leaves as they are loaded: floats in the compute dtype, quantised kernels and adapters in their own."""

    def leaf(path, box):
        kept = path[0].key == "lora" or (len(path) > 1 and path[-2].key == "kernel")
        sharding = NamedSharding(mesh, partition_spec(box.names, box.value.shape, mesh, rules))
        return jax.ShapeDtypeStruct(box.value.shape, box.value.dtype if kept else dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(leaf, boxes, is_leaf=is_box)


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
    """Raise ValueError when a batch or a row cannot be split over the mesh, naming axis and sizes that would do."""
    t, window = settings.train, settings.data.window
    parts = ways(mesh, rules.batch)
    if t.batch_size % (parts * t.accumulation):
        each = parts * t.accumulation
        axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in rules.batch or () if mesh.shape[axis] > 1)
        raise ValueError(
            f"train.batch_size: got {t.batch_size} rows, expected a multiple of {each} "
            f"({axes or 'one device'}, accumulation {t.accumulation}); use {-(-t.batch_size // each) * each}, or "
            "change the mesh or the accumulation."
        )
    along = ways(mesh, rules.seq)
    if window % (128 * along):
        raise ValueError(
            f"data.window: got {window} tokens, expected a multiple of {128 * along}, since sequence={along} splits "
            f"rows into parts of a multiple of 128; use {-(-window // (128 * along)) * 128 * along}, or another mesh."
        )


def _loss(
    settings: TrainSettings,
    config: DecoderConfig,
    backend: str,
    lora: LoraConfig | None,
    mesh: Mesh,
    rules: Rules,
    chosen: frozenset[str],
) -> Loss:
    """Next-token cross-entropy over the counted targets of a Batch; means: loss (with z-loss), nll, accuracy."""
    m, t = settings.model, settings.train
    decoder = Decoder(
        config,
        dtype=jnp.dtype(m.dtype),
        backend=backend,
        lora=lora,
        quantisation=m.quantisation,
        remat=t.remat,
        constrain=Constraint(mesh, rules),
    )
    shards = ways(mesh, rules.batch), ways(mesh, rules.seq)
    table = "params/embedding" if config.tied else "params/unembedding"

    def loss(variables: Tree, batch: Batch, key: jax.Array | None):
        trees = forest(batch.positions, batch.ends)
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
        )
        counted = jnp.sum(batch.weights)
        return total, {"loss": total, "nll": sums.nll, "accuracy": sums.right, "counted": counted}

    return loss
