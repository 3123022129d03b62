"""The steps of ECG encoders: the same on every mesh and in parts, and who learns how fast."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_ecg import settings_of

from medjax.data.ecg.batches import EcgBatch
from medjax.models import ecg_mae, predictor
from medjax.models.predictor import PredictorConfig, Target
from medjax.train.ecg_program import encoder_config, mae_config, mae_program, predictor_program, rate_shares
from medjax.train.state import init_state, path_name, split

TARGETS = (Target("high", "binary"), Target("age", "regression", mean=60.0, sd=10.0))


def batch_of(seed: int, rows: int = 8) -> EcgBatch:
    rng = np.random.default_rng(seed)
    valid = np.ones((rows, 4, 100), bool)
    valid[1, 2] = False
    valid[2, :, 60:] = False
    return EcgBatch(
        signal=np.where(valid, rng.normal(size=(rows, 4, 100)), 0).astype(np.float32),
        valid=valid,
        targets=np.stack([rng.integers(0, 2, rows), rng.normal(60, 10, rows)], 1).astype(np.float32),
        weights=np.ones((rows, 2), np.float32),
        seeds=rng.integers(0, 2**32, rows, dtype=np.uint32),
    )


def program_of(objective: str, devices: int = 1, **options):
    targets = () if objective == "mae" else ("high", "age")
    settings = settings_of("unused", objective=objective, data__targets=targets, **options)
    if objective == "mae":
        return mae_program(settings, 10, jax.devices()[:devices]), mae_config(settings), ecg_mae
    config = PredictorConfig(encoder_config(settings), TARGETS)
    return predictor_program(settings, config, 10, jax.devices()[:devices]), config, predictor


def train(objective: str, devices: int = 1, steps: int = 2, **options):
    """Losses of some steps and the trained leaves after them, by name."""
    program, config, module = program_of(objective, devices, **options)
    variables = module.init_variables(config, jax.random.key(0))
    trainable, frozen = split(variables, program.chosen)
    state = init_state(
        jax.device_put(trainable, jax.tree.map(lambda x: x.sharding, program.state.trainable)),
        program.tx,
        program.state,
    )
    frozen = jax.device_put(frozen, jax.tree.map(lambda x: x.sharding, program.frozen))
    # half the time to compile, and the same program
    step, losses = program.lower().compile(compiler_options={"xla_backend_optimization_level": 0}), []
    for number in range(steps):
        host = batch_of(number)
        if objective == "mae":
            host = host._replace(targets=host.targets[:, :1], weights=host.weights[:, :1])
        placed = jax.device_put(host, jax.tree.map(lambda x: x.sharding, program.batch))
        state, metrics = step(state, frozen, placed)
        losses.append(float(metrics.means["loss"]))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state.trainable))
    return losses, {path_name(path): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def alone():
    return {objective: train(objective) for objective in ("mae", "classify")}


MESH = (8, {"mesh__shape": "data=2,fsdp=2,tensor=2"})
PARTS = (1, {"train__accumulation": 4})
REMAT = (1, {"train__remat": "full"})
OFFLOAD = (8, {"train__remat": "offload", "mesh__shape": "fsdp=4,tensor=2"})


@pytest.mark.parametrize(
    ("objective", "devices", "options"),
    [
        ("mae", *MESH),
        ("mae", *REMAT),
        ("classify", *PARTS),
        ("classify", *OFFLOAD),
        pytest.param("classify", *MESH, marks=pytest.mark.slow),
        pytest.param("classify", *REMAT, marks=pytest.mark.slow),
        pytest.param("mae", *PARTS, marks=pytest.mark.slow),
        pytest.param("mae", *OFFLOAD, marks=pytest.mark.slow),
    ],
)
def test_losses_do_not_depend_on_mesh_parts_or_remat(alone, objective, devices, options):
    losses, leaves = train(objective, devices, **options)
    np.testing.assert_allclose(losses, alone[objective][0], rtol=2e-5)
    for name, leaf in alone[objective][1].items():
        # Adam divides small differences by small gradients; a step is 1e-3 at most
        np.testing.assert_allclose(leaves[name], leaf, atol=3e-4, err_msg=name)


def test_a_probe_trains_the_head_only(alone):
    _, leaves = train("classify", finetune__trained="probe")
    assert sorted(leaves) == sorted(name for name in alone["classify"][1] if not name.startswith("params/encoder/"))
    assert {"params/head/kernel", "params/head/bias"} <= set(leaves)


def test_layer_decay_scales_what_each_layer_learns():
    """Adam's first update of a weight is its learning rate, whatever the gradient: shares can be read off."""
    still = {"optimizer__warmup": 0.0, "optimizer__weight_decay": 0.0, "optimizer__clip": 0.0}
    _, whole = train("classify", steps=1, **still)
    _, decayed = train("classify", steps=1, **still, finetune__layer_decay=0.5)
    _, config, _ = program_of("classify")
    first = {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(predictor.init_variables(config, jax.random.key(0)))
    }
    for name, power in (("head/kernel", 0), ("encoder/norm/scale", 0), ("encoder/embedding/kernel", 5)):
        moved = np.abs(decayed[f"params/{name}"] - first[f"params/{name}"]).max()
        at_once = np.abs(whole[f"params/{name}"] - first[f"params/{name}"]).max()
        np.testing.assert_allclose(moved, at_once * 0.5**power, rtol=2e-3, err_msg=name)
    name = "params/encoder/layers/mlp/up/kernel"
    moved = np.abs(decayed[name] - first[name]).reshape(4, -1).max(1)
    at_once = np.abs(whole[name] - first[name]).reshape(4, -1).max(1)
    np.testing.assert_allclose(moved, at_once * 0.5 ** np.array([4, 3, 2, 1]), rtol=2e-3)


def test_shares_of_the_rate_in_closed_form():
    _, config, _ = program_of("classify")
    variables = predictor.abstract_variables(config)
    shares = {path_name(p): s for p, s in jax.tree_util.tree_leaves_with_path(rate_shares(variables, 0.75))}
    assert shares["params/head/bias"] == 1
    assert shares["params/encoder/leads"] == np.float32(0.75**5)
    np.testing.assert_allclose(
        shares["params/encoder/layers/attention/qkv/bias"].ravel(), [0.75**4, 0.75**3, 0.75**2, 0.75], rtol=1e-6
    )


def test_the_same_mask_every_time_a_held_out_loss_is_computed():
    program, config, module = program_of("mae")
    variables = module.init_variables(config, jax.random.key(0))
    evaluation = program.lower_evaluation().compile()
    host = batch_of(0)._replace(targets=np.zeros((8, 1), np.float32), weights=np.ones((8, 1), np.float32))
    first, again = (evaluation(variables, {}, host) for _ in range(2))
    assert float(first["loss"]) == float(again["loss"])
    # 4 leads x 4 patches; row 1 lacks a lead, row 2 two patches of each; 3/4 of what is there is masked
    assert float(first["counted"]) == 6 * 12 + 9 + 6
    other = evaluation(variables, {}, host._replace(seeds=host.seeds + 1))
    assert float(other["loss"]) != float(first["loss"])


def test_patches_that_do_not_divide_a_window_are_refused():
    settings = settings_of("unused", encoder__patch=30)
    with pytest.raises(ValueError, match=r"encoder.patch: got 30 samples, expected a divisor of signal.samples=100"):
        mae_program(settings, 10)
    with pytest.raises(ValueError, match=r"train.batch_size: got 6 rows, expected a multiple of 4 \(data=2 x fsdp=2"):
        mae_program(
            replace(
                settings_of("unused", mesh__shape="data=2,fsdp=2"),
                train=replace(settings.train, batch_size=6),
            ),
            10,
            jax.devices()[:4],
        )
