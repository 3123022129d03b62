"""The training steps of ECG encoders: masked autoencoding, and prediction from an encoder; the batch is an EcgBatch.

Augmentation and normalisation happen here, on the device, as part of the step, so the host only reads, filters and
cuts. A loss is called with a key when it trains and without one when it is evaluated; what is random about a row is
drawn from the row's own seed, so losses do not depend on mesh or accumulation.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from medjax.data.ecg.augment import augment
from medjax.data.ecg.batches import EcgBatch
from medjax.data.ecg.signal import normalise
from medjax.models import ecg_mae, predictor
from medjax.models.ecg_mae import EcgMae, MaeConfig, mae_loss
from medjax.models.predictor import Predictor, PredictorConfig, predictor_loss
from medjax.models.vit import SIZES, VitConfig, vit_config, with_aligned_keys
from medjax.nn.patches import valid_tokens
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint, Rules, is_box, partition_spec, shardings
from medjax.train.ecg_settings import EcgTrainSettings, EncoderSettings
from medjax.train.optimizer import optimizer
from medjax.train.program import StepProgram, abstract_frozen, check_batch_divides, check_remat
from medjax.train.state import Tree, abstract_state, choose_trainable, path_name, split
from medjax.train.step import Loss


def encoder_config(settings: EcgTrainSettings) -> VitConfig:
    """The encoder that the settings describe. Raises ValueError where patches do not divide a window."""
    e, s = settings.encoder, settings.signal
    if s.samples % e.patch:
        raise ValueError(
            f"encoder.patch: got {e.patch} samples, expected a divisor of signal.samples={s.samples}; choose "
            f"signal.samples={s.samples // e.patch * e.patch or e.patch}, or another patch."
        )
    return vit_config(
        e.size,
        (e.patch,),
        lead_count=len(s.leads),
        class_token=e.class_token,
        registers=e.registers,
        drop_path=e.drop_path,
        position_base=e.position_base,
    )


def encoder_settings(vit: VitConfig, given: EncoderSettings) -> EncoderSettings:
    """The settings that describe an encoder; what is of training alone (drop_path, dtype) stays as given."""
    shape = {name: getattr(vit, name) for name in next(iter(SIZES.values()))}
    return replace(
        given,
        size=next((name for name, known in SIZES.items() if known == shape), given.size),
        patch=vit.patch[0],
        registers=vit.registers,
        class_token=vit.class_token,
        position_base=vit.position_base,
    )


def mae_config(settings: EcgTrainSettings) -> MaeConfig:
    """The masked autoencoder that the settings describe."""
    m = settings.mae
    return MaeConfig(
        encoder_config(settings),
        decoder_embed=m.decoder_embed,
        decoder_layers=m.decoder_layers,
        decoder_heads=m.decoder_heads,
        masked=m.masked,
        masking=m.masking,
        decoder=m.decoder,
        normalised_targets=m.normalised_targets,
    )


def mae_program(settings: EcgTrainSettings, steps: int, devices: list | None = None) -> StepProgram:
    """The step of a masked autoencoder on the mesh that the settings name; all parameters are trained.

    steps    of the whole run, which the schedule needs
    devices  default: all of this run
    Raises ValueError where mesh, batch or patches do not fit.
    """
    mesh, rules = _placement(settings, devices)
    config = mae_config(settings)
    model = EcgMae(config, jnp.dtype(settings.encoder.dtype), settings.train.remat, Constraint(mesh, rules))

    def loss(variables: Tree, batch: EcgBatch, key: jax.Array | None):
        signal, valid = model_input(settings, batch, training=key is not None)
        made: Any = model.apply(variables, signal, valid, batch.seeds, training=key is not None)
        return mae_loss(made)

    return _program(settings, mesh, rules, ecg_mae.abstract_variables(config), ("full",), loss, steps)


def predictor_program(
    settings: EcgTrainSettings, config: PredictorConfig, steps: int, devices: list | None = None
) -> StepProgram:
    """The step of a predictor: all of it, or the head on a frozen encoder, with layer-wise decay of the rate.

    Arguments and errors are those of mae_program.
    """
    mesh, rules = _placement(settings, devices)
    model = predictor_model(settings, config, mesh, rules)

    def loss(variables: Tree, batch: EcgBatch, key: jax.Array | None):
        signal, valid = model_input(settings, batch, training=key is not None)
        outputs: Any = model.apply(variables, signal, valid, batch.seeds if key is not None else None)
        # a window without any whole patch, as in a gap, is one that the model sees nothing of
        judged = valid_tokens(valid, config.vit.patch).any(-1, keepdims=True)
        return predictor_loss(outputs, batch.targets, batch.weights * judged, config)

    variables = predictor.abstract_variables(config)
    names = ("full",) if settings.finetune.trained == "full" else head_names(variables)
    return _program(settings, mesh, rules, variables, names, loss, steps, targets=len(config.targets))


def predictor_model(
    settings: EcgTrainSettings, config: PredictorConfig, mesh: Mesh, rules: Rules, dtype: str | None = None
) -> Predictor:
    """The module of a predictor under a mesh; dtype: of computation, instead of encoder.dtype."""
    dtype = dtype or settings.encoder.dtype
    return Predictor(config, jnp.dtype(dtype), settings.train.remat, Constraint(mesh, rules))


def head_names(variables: Tree) -> tuple[str, ...]:
    """The parameters outside the encoder: those of a linear probe."""
    return tuple(f"params/{name}/*" if isinstance(variables["params"][name], dict) else f"params/{name}"
                 for name in variables["params"] if name != "encoder")  # fmt: skip


def model_input(settings: EcgTrainSettings, batch: EcgBatch, *, training: bool) -> tuple[jax.Array, jax.Array]:
    """Signal and validity [b, leads, samples] as the model takes them: augmented in training, normalised always."""
    signal, valid = batch.signal, batch.valid
    if training:
        signal, valid = augment(signal, valid, batch.seeds, settings.augment, settings.signal)
    return normalise(signal, valid, settings.signal), valid


def fresh_variables(settings: EcgTrainSettings, init: Callable[..., Tree], config: Any, program: StepProgram) -> Tree:
    """New parameters in place, drawn from train.seed; init: init_variables of the model's module."""

    def draw(key: jax.Array) -> Tree:
        params = init(config, key)["params"]
        return {"params": with_aligned_keys(params) if settings.encoder.aligned_keys else params}

    places = shardings(program.variables, program.mesh, program.rules)
    return jax.jit(draw, out_shardings=places)(jax.random.key(settings.train.seed))


def _placement(settings: EcgTrainSettings, devices: list | None) -> tuple[Mesh, Rules]:
    mesh, rules = make_mesh(settings.mesh.shape or "fsdp=-1", devices), PRESETS[settings.mesh.rules]
    check_batch_divides(settings.train, mesh, rules)
    check_remat(settings.train, mesh)
    # tokens are few, and every one of them meets every other: they are never split
    return mesh, replace(rules, seq=None)


def _program(
    settings: EcgTrainSettings,
    mesh: Mesh,
    rules: Rules,
    variables: Tree,
    names: tuple[str, ...],
    loss: Loss,
    steps: int,
    *,
    targets: int = 1,
) -> StepProgram:
    chosen = choose_trainable(variables, names)
    shares = None
    if settings.objective != "mae" and settings.finetune.layer_decay < 1:
        shares = split(rate_shares(variables, settings.finetune.layer_decay), chosen)[0]
    tx = optimizer(settings.optimizer, steps, shares)
    rows, shape = settings.train.batch_size, (len(settings.signal.leads), settings.signal.samples)

    def leaf(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        axes = ("batch", *[None] * len(shape))
        place = NamedSharding(mesh, partition_spec(axes, (rows, *shape), mesh, rules))
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place)

    return StepProgram(
        mesh=mesh,
        rules=rules,
        variables=variables,
        chosen=chosen,
        dtype=settings.encoder.dtype,
        dropout=True,
        loss=loss,
        tx=tx,
        state=abstract_state(variables, chosen, tx, mesh, rules),
        frozen=abstract_frozen(split(variables, chosen)[1], mesh, rules, jnp.dtype(jnp.float32)),
        batch=EcgBatch(
            signal=leaf(shape, np.float32),
            valid=leaf(shape, np.bool_),
            targets=leaf((targets,), np.float32),
            weights=leaf((targets,), np.float32),
            seeds=leaf((), np.uint32),
        ),
        steps=settings.train,
    )


def rate_shares(variables: Tree, decay: float) -> Tree:
    """The share of the learning rate of every parameter: decay to the power of the layers above it.

    variables  boxed tree of a predictor
    The head has 1, the last layer of L decay, the first decay^L, what lies below the layers decay^(L + 1) (ELECTRA,
    arXiv 2003.10555; BEiT, 2106.08254).
    """

    def share(path, box):
        name, shape = path_name(path), box.value.shape
        if not name.startswith("params/encoder/"):
            return np.float32(1)
        if name.startswith("params/encoder/norm/"):
            return np.float32(1)
        if name.startswith("params/encoder/layers/"):
            depth = np.arange(shape[0], 0, -1).reshape(-1, *[1] * (len(shape) - 1))
            return (decay**depth).astype(np.float32)
        layers = jax.tree.leaves(variables["params"]["encoder"]["layers"], is_leaf=is_box)[0].value.shape[0]
        return np.float32(decay ** (layers + 1))

    return jax.tree_util.tree_map_with_path(share, variables, is_leaf=is_box)
