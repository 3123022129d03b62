"""Which leaves are trained, by name; that only these have optimiser state; and where everything of a state lies."""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import CONFIG, NEOX, program_of, settings_of, variables_of

from medjax.models.decoder import abstract_variables
from medjax.models.decoder_config import from_hugging_face
from medjax.nn.lora import LoraConfig
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, is_box
from medjax.train.optimizer import optimizer
from medjax.train.settings import OptimizerSettings
from medjax.train.state import abstract_state, choose_trainable, count, init_state, join, path_name, split

LORA = LoraConfig(4, 8.0, ("query", "down"))
BOXES = jax.tree_util.tree_leaves_with_path(abstract_variables(CONFIG, LORA), is_leaf=is_box)
ALL = {path_name(path) for path, _ in BOXES}
ADAPTERS = {f"lora/layers/{place}/{part}" for place in ("attention/query", "mlp/down") for part in "ab"}


def chosen(*names, config=CONFIG, lora=LORA, quantisation=None):
    return set(choose_trainable(abstract_variables(config, lora, quantisation), names))


def test_names_of_the_trainable_set():
    params = {name for name in ALL if name.startswith("params/")}
    assert chosen("lora") == ADAPTERS
    assert chosen("full") == params
    assert "params/layers/mlp/up/kernel" in params
    assert chosen("head") == {"params/unembedding"}
    tied = abstract_variables(from_hugging_face({**NEOX, "tie_word_embeddings": True}))
    assert choose_trainable(tied, ("head",)) == {"params/embedding"}


def test_patterns_choose_by_path():
    norms = {"params/layers/attention_norm/scale", "params/layers/mlp_norm/scale", "params/norm/scale"}
    assert chosen("params/*norm*") == norms
    assert chosen("lora", "params/layers/*norm*") == ADAPTERS | norms - {"params/norm/scale"}
    assert chosen("params/layers/mlp/up/kernel") == {"params/layers/mlp/up/kernel"}
    assert chosen("*/query/*", quantisation=None) == {
        *("params/layers/attention/query/kernel", "lora/layers/attention/query/a", "lora/layers/attention/query/b")
    }


def test_a_name_that_matches_nothing_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"^train.trainable: 'lorra' matches no parameter; did you mean lora\? "):
        chosen("lorra")
    with pytest.raises(ValueError, match=r"did you mean params/layers/mlp/up/kernel\?"):
        chosen("params/layers/mlp/up/kernal")
    with pytest.raises(ValueError, match=r"'zzz' matches no parameter; expected lora, full, head or a pattern of path"):
        chosen("zzz")
    with pytest.raises(ValueError, match=r"'lora' matches no parameter"):
        chosen("lora", lora=None)


@pytest.mark.parametrize("kind", ["nf4", "int8", "int4"])
def test_quantised_leaves_are_refused_and_the_others_are_not(kind):
    with pytest.raises(
        ValueError, match=r"params/layers/attention/key/kernel\S* is quantised and cannot be trained; tr"
    ):
        chosen("full", quantisation=kind)
    assert len(chosen("lora", "params/*norm*", quantisation=kind)) == 7
    assert chosen("head", quantisation=kind) == {"params/unembedding"}


def test_split_and_join_are_each_others_inverse():
    variables = {"params": {"a": 1, "b": {"c": 2, "d": 3}}, "lora": {"e": {"f": 4}}}
    inside, outside = split(variables, frozenset({"params/b/c", "lora/e/f"}))
    assert inside == {"params": {"b": {"c": 2}}, "lora": {"e": {"f": 4}}}
    assert outside == {"params": {"a": 1, "b": {"d": 3}}}
    assert join(inside, outside) == join(outside, inside) == variables


def specs(tree):
    return {path_name(path): tuple(leaf.sharding.spec) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# of data=2,fsdp=2,tensor=2, by the preset `default`: 8 heads and 2 kv heads, embed 64, mlp 192, vocabulary 400
FLOATS = {
    "params/embedding": ("tensor", "fsdp"),
    "params/unembedding": ("tensor", "fsdp"),
    "params/norm/scale": ("fsdp",),
    "params/layers/attention_norm/scale": (None, "fsdp"),
    "params/layers/mlp_norm/scale": (None, "fsdp"),
    **{f"params/layers/attention/{name}/kernel": (None, "fsdp", "tensor", None) for name in ("query", "key", "value")},
    "params/layers/attention/out/kernel": (None, "tensor", None, "fsdp"),
    "params/layers/mlp/gate/kernel": (None, "fsdp", "tensor"),
    "params/layers/mlp/up/kernel": (None, "fsdp", "tensor"),
    "params/layers/mlp/down/kernel": (None, "tensor", "fsdp"),
}
ADAPTED = {
    **{f"lora/layers/attention/{name}/a": (None, "fsdp", None) for name in ("query", "key", "value")},
    **{f"lora/layers/attention/{name}/b": (None, "fsdp", "tensor", None) for name in ("query", "key", "value")},
    "lora/layers/attention/out/a": (None, "tensor", None, "fsdp"),
    "lora/layers/attention/out/b": (None, "fsdp", None),
    **{f"lora/layers/mlp/{name}/a": (None, "fsdp", None) for name in ("gate", "up")},
    **{f"lora/layers/mlp/{name}/b": (None, "fsdp", "tensor") for name in ("gate", "up")},
    "lora/layers/mlp/down/a": (None, "tensor", "fsdp"),
    "lora/layers/mlp/down/b": (None, "fsdp", None),
}


def quantised_specs():
    """[layers, out, in]: as the kernel's, without its head_dim; key's one block of absmax for 16 x 1 codes is split."""
    found = {name: spec for name, spec in FLOATS.items() if "/kernel" not in name}
    for name in ("query", "key", "value", "gate", "up"):
        place = f"params/layers/{'mlp' if name in ('gate', 'up') else 'attention'}/{name}/kernel"
        found |= {f"{place}/codes": (None, "tensor", "fsdp"), f"{place}/absmax_codes": (None, "tensor", None)}
    found |= {
        "params/layers/attention/out/kernel/codes": (None, "fsdp", "tensor"),
        "params/layers/attention/out/kernel/absmax_codes": (None, "fsdp", None),
        "params/layers/mlp/down/kernel/codes": (None, "fsdp", "tensor"),
        "params/layers/mlp/down/kernel/absmax_codes": (None, "fsdp", None),
    }
    for name in [name.rpartition("/")[0] for name in found if name.endswith("/codes")]:
        found |= {f"{name}/absmax_scale": (None, None), f"{name}/absmax_offset": (None,)}
    return found


@pytest.mark.parametrize("preset", ["default", "replicated"])
@pytest.mark.parametrize("kind", [None, "nf4"])
def test_specs_of_every_leaf(preset, kind):
    """Frozen parameters, adapters, both moments: as their tables say, or whole under `replicated`."""
    program = program_of(8, mesh__shape="data=2,fsdp=2,tensor=2", mesh__rules=preset, model__quantisation=kind)
    frozen, adapters = quantised_specs() if kind else FLOATS, ADAPTED
    if preset == "replicated":
        frozen, adapters = ({name: (None,) * len(spec) for name, spec in tree.items()} for tree in (frozen, adapters))
    assert specs(program.frozen) == frozen
    assert specs(program.state.trainable) == adapters
    moments = specs(program.state.optimizer)
    for moment in ("mu", "nu"):
        assert {
            name.split(f"/{moment}/")[1]: spec for name, spec in moments.items() if f"/{moment}/" in name
        } == adapters
    assert all(spec == () for name, spec in moments.items() if not {"mu", "nu"} & set(name.split("/")))
    assert specs(program.state._replace(trainable={}, optimizer={})) == dict.fromkeys(
        ("step", "loss_average", "bad_steps"), ()
    )
    assert tuple(program.batch.tokens.sharding.spec) == (("data", "fsdp"), None)


def test_only_trained_leaves_have_optimiser_state():
    """Two moments for each trained number, two counters, nothing else."""
    for names in (("lora",), ("head",), ("lora", "params/*norm*")):
        program = program_of(train__trainable=names)
        trained = count(program.state.trainable)
        assert count(program.state.optimizer) == 2 * trained + 2
        assert count(program.state.trainable) + count(program.frozen) == count(
            jax.tree.map(lambda box: box.value, program.variables, is_leaf=is_box)
        )


def test_reduced_moments_of_adafactor_lie_as_the_axes_that_are_left():
    """[2, 256, 384] over fsdp, tensor: rows [2, 256] over fsdp, columns [2, 384] over tensor."""
    config = from_hugging_face(
        {**NEOX, "hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_hidden_layers": 2}
    )
    mesh, tx = make_mesh("data=2,fsdp=2,tensor=2"), optimizer(OptimizerSettings(name="adafactor"), 5)
    abstract = abstract_variables(config)
    choice = frozenset({"params/layers/mlp/up/kernel"})
    state = abstract_state(abstract, choice, tx, mesh, PRESETS["default"])
    found = {
        path_name(path): (leaf.shape, tuple(leaf.sharding.spec))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer)
        if leaf.size > 1
    }
    assert sorted(found.values()) == [((2, 256), (None, "fsdp")), ((2, 384), (None, "tensor"))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_trained_is_float32_and_what_is_frozen_has_the_compute_dtype(dtype):
    program = program_of(model__dtype=dtype, train__trainable=("lora", "head"), model__quantisation="nf4")
    assert {leaf.dtype for leaf in jax.tree.leaves(program.state.trainable)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(program.state.optimizer)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    dtypes = {path_name(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(program.frozen)}
    assert dtypes["params/embedding"] == dtypes["params/norm/scale"] == jnp.dtype(dtype)
    assert dtypes["params/layers/mlp/up/kernel/codes"] == np.uint8
    assert dtypes["params/layers/mlp/up/kernel/absmax_scale"] == np.float32


def test_the_first_state_is_float32_in_place_and_zero():
    program = program_of(8, mesh__shape="fsdp=4,tensor=2")
    trainable, _ = split(variables_of(program), program.chosen)
    values = jax.tree.map(np.array, trainable)
    state = init_state(trainable, program.tx, program.state)
    jax.tree.map(np.testing.assert_array_equal, values, jax.tree.map(np.asarray, state.trainable))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.optimizer))
    for made, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(program.state), strict=True):
        assert (made.shape, made.dtype, made.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)


def test_settings_reach_the_adapters():
    program = program_of(lora__rank=3, lora__alpha=9.0, lora__targets="query,up", lora__rank_stabilised=True)
    assert program.lora == LoraConfig(3, 9.0, ("query", "up"), 0.0, True)
    assert asdict(program.lora) == asdict(settings_of(lora__rank=3, lora__alpha=9.0).lora) | {
        "targets": ("query", "up"),
        "rank_stabilised": True,
    }
    assert {name.split("/")[3] for name in program.chosen} == {"query", "up"}
