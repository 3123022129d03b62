"""The PartitionSpec of every parameter of every preset, and the same logits on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_decoders import CONFIGS, TOKENS, load, logits, random_tensors, write_folder

from medjax.models.decoder import Decoder, abstract_params, unembedding
from medjax.models.decoder_config import from_hugging_face
from medjax.nn.attention import forest
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint, Rules, partition_spec, shardings, table, ways

LLAMA = CONFIGS["llama-biases"] | {"vocab_size": 98}  # 6 heads, 2 kv heads, 80 and 98: all even

# parameter: its spec by the preset `default` on data=2,fsdp=2,tensor=2
SHARDED = {
    "embedding": ("tensor", "fsdp"),
    "layers/attention/key/bias": (None, "tensor", None),
    "layers/attention/key/kernel": (None, "fsdp", "tensor", None),
    "layers/attention/out/bias": (None, "fsdp"),
    "layers/attention/out/kernel": (None, "tensor", None, "fsdp"),
    "layers/attention/query/bias": (None, "tensor", None),
    "layers/attention/query/kernel": (None, "fsdp", "tensor", None),
    "layers/attention/value/bias": (None, "tensor", None),
    "layers/attention/value/kernel": (None, "fsdp", "tensor", None),
    "layers/attention_norm/scale": (None, "fsdp"),
    "layers/mlp/down/bias": (None, "fsdp"),
    "layers/mlp/down/kernel": (None, "tensor", "fsdp"),
    "layers/mlp/gate/bias": (None, "tensor"),
    "layers/mlp/gate/kernel": (None, "fsdp", "tensor"),
    "layers/mlp/up/bias": (None, "tensor"),
    "layers/mlp/up/kernel": (None, "fsdp", "tensor"),
    "layers/mlp_norm/scale": (None, "fsdp"),
    "norm/scale": ("fsdp",),
    "unembedding": ("tensor", "fsdp"),
}


def without(axis):
    return {name: tuple(None if entry == axis else entry for entry in spec) for name, spec in SHARDED.items()}


def specs(config, mesh, preset):
    tree = shardings(abstract_params(from_hugging_face(config)), make_mesh(mesh), PRESETS[preset])
    return {
        "/".join(key.key for key in path): tuple(sharding.spec)
        for path, sharding in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_every_preset_has_its_table():
    assert set(PRESETS) == {"default", "replicated"}


@pytest.mark.parametrize(
    ("mesh", "preset", "expected"),
    [
        ("data=2,fsdp=2,tensor=2", "default", SHARDED),
        ("data=4,tensor=2", "default", without("fsdp")),
        ("fsdp=8", "default", without("tensor")),
        ("data=8", "default", {name: (None,) * len(spec) for name, spec in SHARDED.items()}),
        ("data=2,fsdp=2,tensor=2", "replicated", {name: (None,) * len(spec) for name, spec in SHARDED.items()}),
    ],
)
def test_specs_of_every_parameter(mesh, preset, expected):
    assert specs(LLAMA, mesh, preset) == expected


def test_what_an_axis_does_not_divide_stays_whole():
    """tensor=4 divides neither 6 heads nor 2 kv heads nor a vocabulary of 98; it divides the MLP's 80."""
    found = specs(LLAMA, "data=2,tensor=4", "default")
    split = {name for name, spec in found.items() if "tensor" in spec}
    assert split == {
        f"layers/mlp/{name}" for name in ("up/kernel", "gate/kernel", "down/kernel", "up/bias", "gate/bias")
    }
    assert specs(LLAMA | {"vocab_size": 97}, "data=4,tensor=2", "default")["embedding"] == (None, None)


def test_partition_spec_rules():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    assert partition_spec(("batch", "seq"), (8, 3), mesh, Rules()) == PartitionSpec(("data", "fsdp"), None)
    # 2 * 2 does not divide 6, data=2 alone does; nothing divides 5
    assert partition_spec(("batch", "seq"), (6, 3), mesh, Rules()) == PartitionSpec("data", None)
    assert partition_spec(("batch", "seq"), (5, 3), mesh, Rules()) == PartitionSpec(None, None)
    assert partition_spec(("heads", "mlp"), (4, 4), mesh, Rules()) == PartitionSpec("tensor", None)  # an axis only once
    assert partition_spec(("batch", "embed"), (8, 4), mesh, Rules()) == PartitionSpec(("data", "fsdp"), None)
    assert partition_spec((None, "embed"), (8, 4), mesh, Rules()) == PartitionSpec(None, "fsdp")


def test_several_mesh_axes_drop_the_last_ones_until_they_divide():
    """Heads inside attention over tensor=2 and sequence=2: 8 heads by both, 2 kv heads by tensor, 3 by none."""
    mesh = make_mesh("fsdp=2,tensor=2,sequence=2")
    axes = ("batch", None, "attention_heads", None)
    for heads, entry in ((8, ("tensor", "sequence")), (2, "tensor"), (3, None)):
        assert partition_spec(axes, (4, 256, heads, 8), mesh, Rules()) == PartitionSpec(
            ("data", "fsdp"), None, entry, None
        )
    # an axis that an earlier dimension has taken ends the tuple
    assert partition_spec(("seq", "attention_heads"), (4, 8), mesh, Rules()) == PartitionSpec("sequence", "tensor")


def test_the_factor_without_an_embed_axis_is_split_by_its_rank():
    mesh = make_mesh("fsdp=4,tensor=2")
    assert partition_spec(("layers", "embed", "rank"), (2, 64, 8), mesh, Rules()) == PartitionSpec(None, "fsdp", None)
    assert partition_spec(("layers", "rank", "mlp"), (2, 8, 96), mesh, Rules()) == PartitionSpec(None, "fsdp", "tensor")
    # rank 6 is not divided by 4: then embed is split where there is one
    assert partition_spec(("layers", "rank", "embed"), (2, 6, 64), mesh, Rules()) == PartitionSpec(None, None, "fsdp")
    assert partition_spec(("rank", "mlp"), (8, 96), mesh, PRESETS["replicated"]) == PartitionSpec(None, None)


def test_ways():
    mesh = make_mesh("data=2,tensor=4")
    assert [ways(mesh, axes) for axes in (None, "tensor", ("data", "tensor"), ("fsdp",))] == [1, 4, 8, 1]


def test_constraint_holds_an_array_inside_jit():
    """Rows over the data axes, tokens over `sequence`; on one device the array is left alone."""
    mesh = make_mesh("data=2,fsdp=2,sequence=2")
    hold = Constraint(mesh, Rules())
    x = jnp.arange(8 * 6 * 3, dtype=jnp.float32).reshape(8, 6, 3)
    y = jax.jit(lambda x: hold(x * 2, "batch", "seq", None))(x)
    np.testing.assert_array_equal(y, x * 2)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence", None)), 3)
    assert hold.sharding((8, 5, 3), "batch", "seq", None).spec == PartitionSpec(("data", "fsdp"), None, None)
    alone = Constraint(make_mesh("data=1", jax.devices()[:1]), Rules())
    assert alone(x, "batch", "seq", None) is x
    assert alone.sharding(x.shape, "batch", "seq", None) is None


def test_neox_and_gemma_are_sharded_by_the_same_axes():
    neox = specs(CONFIGS["neox-parallel"] | {"vocab_size": 98}, "data=2,fsdp=2,tensor=2", "default")
    assert neox["layers/attention/query/kernel"] == (None, "fsdp", "tensor", None)
    assert neox["layers/attention/key/bias"] == (None, "tensor", None)
    assert neox["layers/mlp_norm/bias"] == (None, "fsdp")
    gemma = specs(CONFIGS["gemma3"], "data=2,fsdp=2,tensor=2", "default")
    assert gemma["layers/attention/query_norm/scale"] == (None, None)
    assert gemma["layers/mlp_post_norm/scale"] == (None, "fsdp")


def test_table_shows_who_is_sharded_how():
    lines = table(
        abstract_params(from_hugging_face(LLAMA)), make_mesh("data=4,tensor=2"), PRESETS["default"]
    ).splitlines()
    assert len(lines) == len(SHARDED)
    (line,) = [line for line in lines if line.startswith("layers/mlp/down/kernel")]
    assert " ".join(line.split()) == "layers/mlp/down/kernel (2, 80, 48) layers mlp embed (None, 'tensor', None)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("llama"), LLAMA, random_tensors(LLAMA))


@pytest.fixture(scope="module")
def single(folder):
    return logits(load(folder))


@pytest.mark.parametrize("mesh", ["data=4,tensor=2", "data=2,fsdp=2,tensor=2", "tensor=8"])
def test_logits_equal_on_every_mesh(folder, single, mesh):
    """Loaded straight into shards, run with rows over the data axes; four rows, the same tokens started elsewhere."""
    model = load(folder, mesh=make_mesh(mesh))
    for path, array in jax.tree_util.tree_leaves_with_path(model.params):
        box = abstract_params(model.config)
        for key in path:
            box = box[key.key]
        assert array.sharding.spec == partition_spec(box.names, array.shape, model.mesh, model.rules)
    rows = np.stack([np.roll(np.resize(TOKENS, 256), -shift) for shift in (0, 3, 50, 100)]).astype(np.int32)
    rows[0, len(TOKENS) :] = 0
    spec = partition_spec(("batch", "seq"), rows.shape, model.mesh, model.rules)
    decoder = Decoder(model.config)

    @jax.jit
    def run(params, rows):
        index = jnp.broadcast_to(jnp.arange(256), rows.shape)
        hidden, _ = decoder.apply({"params": params}, rows, index, forest(index, jnp.full_like(index, 256)))
        return hidden @ unembedding(params).T

    got = run(model.params, jax.device_put(rows, NamedSharding(model.mesh, spec)))
    np.testing.assert_allclose(got[0, : len(TOKENS)], single, rtol=0, atol=1e-5)


def test_shards_hold_the_right_slices(folder):
    """Every device's piece is the slice of the whole array that its place in the mesh says."""
    whole = load(folder).params
    split = load(folder, mesh=make_mesh("data=2,fsdp=2,tensor=2")).params
    compared = 0
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        for shard in other.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(one)[shard.index])
            compared += shard.data.size < one.size
    assert compared > 100  # pieces that are really smaller than the whole
