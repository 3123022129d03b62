"""The compiled step of a tiny model: the same losses on every mesh and in parts, remat, numerics, what it refuses."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import CONFIG, LLAMA, NEOX, Run, batch_of, placed, program_of, settings_of, variables_of

from medjax.models.decoder import REMAT, Decoder, unembedding
from medjax.models.decoder_config import from_hugging_face
from medjax.nn.attention import forest
from medjax.store.checkpoints import Checkpoints
from medjax.train.program import check_remat
from medjax.train.state import join, path_name, split
from medjax.train.step import make_evaluation


def plain_sums(program, variables, batch):
    """The sums that the loss function should give, by full logits in float32."""
    decoder = Decoder(CONFIG, lora=program.lora, backend="reference")
    trees = forest(jnp.asarray(batch.positions), jnp.asarray(batch.ends))
    hidden, _ = jax.jit(decoder.apply)(variables, batch.tokens, batch.positions, trees)
    logits = np.asarray(hidden @ unembedding(variables["params"]).T, np.float64)
    total = np.log(np.exp(logits).sum(axis=-1))
    at_target = np.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    right = (logits.argmax(axis=-1) == batch.targets) & (batch.weights > 0)
    return {
        "nll": (batch.weights * (total - at_target)).sum(),
        "z": (batch.weights * total**2).sum(),
        "accuracy": right.sum(),
        "counted": batch.weights.sum(),
    }


def test_the_loss_function_against_full_logits():
    """Sums over counted tokens of packed rows, with z-loss and an adapter whose B is not zero."""
    program = program_of(train__z_loss=1e-3, model__backend="blockwise")
    variables, batch = variables_of(program), batch_of(3)
    trainable, frozen = split(variables, program.chosen)
    found = jax.jit(make_evaluation(program.loss))(trainable, frozen, batch)
    expected = plain_sums(program, variables, batch)
    assert float(found["nll"]) == pytest.approx(expected["nll"], rel=1e-5)
    assert float(found["loss"]) == pytest.approx(expected["nll"] + 1e-3 * expected["z"], rel=1e-5)
    assert float(found["accuracy"]) == expected["accuracy"]
    assert float(found["counted"]) == expected["counted"]
    assert 500 < expected["counted"] < 1500  # of 2,048: prompts and padding are there


MESHES = (
    (8, "fsdp=2,tensor=2,sequence=2", "default"),
    pytest.param(4, "data=2,fsdp=2", "default", marks=pytest.mark.slow),
    pytest.param(8, "fsdp=8", "default", marks=pytest.mark.slow),
    pytest.param(8, "tensor=8", "default", marks=pytest.mark.slow),
    pytest.param(8, "sequence=2,tensor=4", "default", marks=pytest.mark.slow),
    pytest.param(4, "data=2,sequence=2", "default", marks=pytest.mark.slow),
    pytest.param(4, "data=2,fsdp=2", "replicated", marks=pytest.mark.slow),
    pytest.param(8, "data=2,fsdp=2,sequence=2", "replicated", marks=pytest.mark.slow),
)


@pytest.mark.parametrize(("devices", "mesh", "preset"), MESHES)
def test_losses_are_the_same_on_every_mesh(runs, devices, mesh, preset):
    """Five steps of adapters, each batch in two parts; `sequence` splits rows into halves that documents cross."""
    one = runs()
    expected = one.losses()
    split_run = runs(devices, mesh__shape=mesh, mesh__rules=preset, train__accumulation=1 if mesh == "fsdp=8" else 2)
    assert expected[0] - expected[-1] > 0.2
    assert split_run.losses() == pytest.approx(expected, abs=1e-4)
    for whole, part in zip(*map(jax.tree.leaves, (one.state.trainable, split_run.state.trainable)), strict=True):
        np.testing.assert_allclose(part, whole, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"train__trainable": "full"}, {"model__quantisation": "nf4"}, {"lora__dropout": 0.3}], ids=str
)
@pytest.mark.parametrize(("mesh", "preset"), [("data=2,fsdp=4", "default"), ("fsdp=2,tensor=2,sequence=2", "default"),
                                              ("data=2,fsdp=2,sequence=2", "replicated")])  # fmt: skip
def test_losses_of_other_trainings_are_the_same_on_every_mesh(runs, mesh, preset, options):
    assert runs(8, mesh__shape=mesh, mesh__rules=preset, **options).losses() == pytest.approx(
        runs(**options).losses(), abs=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2-window", "neox"])
def test_windows_and_fused_projections_over_the_sequence_axis(kind):
    """Layers of different windows, and GPT-NeoX's query_key_value."""
    hf = NEOX if kind == "neox" else LLAMA | {
        **{"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1},
        **{"layer_types": ["full_attention", "sliding_attention"]},
    }  # fmt: skip
    options = {"lora__targets": "query_key_value,out,up,down"} if kind == "neox" else {}
    config = from_hugging_face(hf)
    one = Run(program_of(config=config, **options)).losses()
    assert Run(program_of(8, config, mesh__shape="fsdp=2,tensor=2,sequence=2", **options)).losses() == pytest.approx(
        one, abs=1e-4
    )


def test_a_state_goes_on_on_another_mesh(runs, tmp_path):
    """Two steps on 8 devices, saved, three on one: the losses of one device throughout."""
    expected = runs().losses()
    many, one = runs(8, mesh__shape="fsdp=2,tensor=2,sequence=2", mesh__rules="default", train__accumulation=2), runs()
    losses = many.losses(2)
    with Checkpoints(tmp_path / "checkpoints", keep_last=1, keep_best=0, identity={}) as checkpoints:
        checkpoints.save(2, many.state, {})
        one.state = checkpoints.restore(2, one.program.state)
    assert int(one.state.step) == 2
    assert losses + one.losses(3, first=2) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_parts_of_a_batch_equal_the_whole(runs):
    """Four parts with very different counted tokens: loss, gradient norm and weights after a step."""
    whole, parts = runs(), runs(train__accumulation=4)
    counted = [float(batch_of(0).weights[i::4].sum()) for i in range(4)]
    assert max(counted) > 1.2 * min(counted)
    for one, other in zip(whole.steps(2), parts.steps(2), strict=True):
        assert float(other.means["loss"]) == pytest.approx(float(one.means["loss"]), rel=1e-6)
        assert float(other.grad_norm) == pytest.approx(float(one.grad_norm), rel=1e-5)
        assert float(other.counted) == float(one.counted)


def test_frozen_leaves_are_bit_identical_after_steps_and_trained_ones_are_not(runs):
    run = runs()
    before = jax.tree.map(np.array, (run.frozen, run.trainable))
    run = runs()
    run.steps(2)
    jax.tree.map(np.testing.assert_array_equal, before[0], jax.tree.map(np.asarray, run.frozen))
    moved = jax.tree.map(lambda old, new: bool(np.all(old != np.asarray(new))), before[1], run.state.trainable)
    assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("names", ["full", pytest.param("head", marks=pytest.mark.slow)])
def test_trainings_of_parameters_reduce_the_loss(names):
    """On one batch, repeated; in bfloat16 with float32 master weights."""
    run = Run(program_of(train__trainable=names, model__dtype="bfloat16"))
    losses = [run.losses(1)[0] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5
    assert {leaf.dtype for leaf in jax.tree.leaves(run.state.trainable)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(run.frozen)} <= {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("policies", [("none", "full"), pytest.param(tuple(REMAT), marks=pytest.mark.slow)], ids=len)
def test_remat_policies_give_the_same_gradients_and_need_less_memory(policies):
    found, memory = {}, {}
    for policy in policies:
        program = program_of(train__remat=policy, model__backend="blockwise")
        trainable, frozen = split(variables_of(program), program.chosen)

        def loss(trainable, frozen, batch, program=program):
            return program.loss(join(trainable, frozen), batch, None)[0]

        lowered = jax.jit(jax.value_and_grad(loss)).lower(trainable, frozen, program.batch)
        compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
        memory[policy] = compiled.memory_analysis().temp_size_in_bytes
        found[policy] = compiled(trainable, frozen, placed(program, batch_of(0)))
    expected = found.pop("none")
    for value, gradient in found.values():
        assert float(value) == pytest.approx(float(expected[0]), rel=1e-6)
        for one, other in zip(*map(jax.tree.leaves, (gradient, expected[1])), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert memory["full"] < memory["none"] / 1.3 / 1.3
    if "offload" in memory:
        # on a CPU the host's memory is the device's; what goes there is what attention keeps and layers' inputs
        assert memory["full"] < memory["offload"] < memory["none"] / 1.3
        assert memory["offload"] == pytest.approx(memory["attention"], rel=0.2)
        assert memory["full"] < memory["attention"] < memory["dots"] / 1.2 < memory["none"] / 1.2 / 1.3


@pytest.mark.slow
def test_offload_on_a_mesh_takes_the_same_steps(runs):
    """Rows, heads and tokens split, a batch in parts: what is kept on the host has a sharding of its own."""
    split_run = runs(8, mesh__shape="fsdp=2,tensor=2,sequence=2", train__accumulation=2, train__remat="offload")
    assert split_run.losses(3) == pytest.approx(runs().losses(3), abs=1e-4)


class Device(SimpleNamespace):
    """What a mesh and a check ask of a device, with memories of these kinds."""

    def addressable_memories(self):
        return [SimpleNamespace(kind=kind) for kind in self.kinds]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (
            Device(platform="gpu", device_kind="NVIDIA H100", kinds=("device", "pinned_host")),
            r"^train.remat: got offload on NVIDIA H100, expected a TPU .*#46231\); use attention or full, or more",
        ),
        (
            Device(platform="tpu", device_kind="TPU v2", kinds=("device", "unpinned_host")),
            r"^train.remat: got offload on TPU v2, whose memories are device, unpinned_host; expected pinned_host amo",
        ),
    ],
)
def test_offload_is_refused_where_it_cannot_or_may_not_be_right(device, message):
    mesh = SimpleNamespace(devices=np.array([device]))
    check_remat(settings_of(train__remat="full").train, mesh)
    with pytest.raises(ValueError, match=message):
        check_remat(settings_of(train__remat="offload").train, mesh)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mesh__shape": "data=3"},
            r"^mesh: 'data=3' needs 3 devices, there are 8; use data=8, or use -1 for one axis\.$",
        ),
        ({"mesh__shape": "data=2,tensor=6"}, r"needs 12 devices, there are 8; use tensor=4, or use -1 for one axis\.$"),
        (
            {"mesh__shape": "data=3,tensor=5"},
            r"needs 15 devices, there are 8; change the sizes, or use -1 for one axis",
        ),
        (
            {"mesh__shape": "data=4,fsdp=2", "train__batch_size": 12},
            r"^train.batch_size: got 12 rows, expected a multiple of 8 \(data=4 x fsdp=2, accumulation 1\); use 16, or",
        ),
        (
            {"mesh__shape": "data=2,tensor=4", "train__batch_size": 8, "train__accumulation": 8},
            r"^train.batch_size: got 8 rows, expected a multiple of 16 \(data=2, accumulation 8\); use 16, or change t",
        ),
        (
            {"mesh__shape": "fsdp=2,sequence=4", "data__window": 640},
            r"^data.window: got 640 tokens, expected a multiple of 512, since sequence=4 splits rows .* use 1024, or ",
        ),
        (
            {"lora__targets": "query_key_value,up"},
            r"^lora.targets: got query_key_value, which a llama model does not have; name some of query, key, value, ",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        program_of(8, **options)


def test_neox_has_no_gate_and_a_fused_projection():
    config = from_hugging_face(NEOX)
    with pytest.raises(
        ValueError, match=r"^lora.targets: got gate, which a gpt_neox model does not have; name some of"
    ):
        program_of(config=config)
    program = program_of(config=config, lora__targets="query_key_value")
    shapes = {
        path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.trainable)
    }
    assert shapes == {
        "lora/layers/attention/query_key_value/a": (2, 64, 4),
        "lora/layers/attention/query_key_value/b": (2, 4, 3, 4, 16),
    }


def test_float32_means_float32_on_every_device():
    assert program_of().precision == "highest"
    assert program_of(model__dtype="bfloat16").precision == "default"


def test_how_attention_is_computed_is_said():
    """Back end, context, and heads that several devices compute alike: two kv heads do not matter, eight do."""
    alone = program_of(model__backend="blockwise").attention
    assert (alone.backend, alone.context, alone.repeated, alone.blocks) == ("blockwise", None, 1, {})
    assert str(alone) == "blockwise"
    split = program_of(8, mesh__shape="tensor=4,sequence=2", model__context="heads").attention
    assert (split.context, split.repeated) == ("heads", 1)
    three = from_hugging_face(LLAMA | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32})
    cut = program_of(8, three, mesh__shape="fsdp=4,tensor=2").attention
    assert cut.repeated == 2
    assert "the same heads computed by 2 devices" in str(cut)
