"""medjax's own model folder: what was saved comes back as it was, on any mesh, whole or not at all."""

import dataclasses
import errno
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_trees import same_bits
from tiny_decoders import CONFIGS, YARN, load, random_tensors, write_folder

from medjax.models.decoder import abstract_params
from medjax.models.decoder_config import from_hugging_face
from medjax.nn.rope import Rope
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, is_box, shardings
from medjax.store import arrays
from medjax.store.adapters import files_digest
from medjax.store.native import NativeSource, config_from_json, save_native
from medjax.store.sources import open_source

RULES = PRESETS["default"]
FAMILIES = ("llama-biases", "gemma3", "neox-parallel")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> the model from its Hugging Face folder, that folder, and the native folder made from it."""
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        write_folder(folder / "hf", CONFIGS[family], random_tensors(CONFIGS[family]))
        model = load(folder / "hf", mesh=make_mesh("data=2,fsdp=2,tensor=2"))
        made[family] = model, folder / "hf", save_native(folder / "native", model.config, model.params)
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mesh", "devices"), [("fsdp=2,tensor=2", 4), ("", 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_model_as_from_hugging_face(models, family, mesh, devices, dtype):
    """Saved on 8 devices, loaded on fewer: values (rounded once for bfloat16) and shardings of the usual way."""
    _, source, native = models[family]
    mesh = make_mesh(mesh, jax.devices()[:devices])
    expected, steps = load(source, mesh=mesh, dtype=dtype), []
    found = load(native, mesh=mesh, dtype=dtype, progress=lambda *step: steps.append(step))
    assert found.config == expected.config
    assert same_bits(found.params, expected.params)
    places = [jax.tree.map(lambda leaf: leaf.sharding, model.params) for model in (found, expected)]
    assert places[0] == places[1]
    count = len(jax.tree.leaves(expected.params))
    assert steps == [(i + 1, count) for i in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_read_layer_by_layer(models, family):
    """As any other source, which is how a model is quantised or exported while it is read."""
    model, _, native = models[family]
    source = open_source(native)
    assert isinstance(source, NativeSource)
    for path, leaf in source.leaves.items():
        whole = model.params
        for key in path:
            whole = whole[key]
        if leaf.is_stacked:
            for layer in range(model.config.layers):
                np.testing.assert_array_equal(leaf.from_file(source.read(leaf.name.format(layer))), whole[layer])
        else:
            np.testing.assert_array_equal(source.read(leaf.name), whole)
        assert leaf.shape == whole.shape[leaf.is_stacked :]
    assert len(source.leaves) == len(jax.tree.leaves(model.params))
    with pytest.raises(KeyError, match="layers/mlp/nothing/0"):
        source.read("layers/mlp/nothing/0")


def test_bfloat16_is_kept_and_widens_exactly(models, tmp_path):
    model, *_ = models["llama-biases"]
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    source = NativeSource(save_native(tmp_path / "n", model.config, narrow))
    assert source.dtype == "bfloat16"
    mesh = make_mesh("fsdp=4,tensor=2")
    assert same_bits(source.load(mesh, RULES), narrow)
    assert same_bits(source.load(mesh, RULES, "float32"), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_kernels_stay_quantised(tmp_path, kind):
    """Codes and scales keep bits and dtypes whatever float is asked for; embedding and norms follow it."""
    config = from_hugging_face(CONFIGS["llama"] | {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128})
    boxes = abstract_params(config, kind)
    rng, mesh = np.random.default_rng(0), make_mesh("data=2,fsdp=2,tensor=2")

    def drawn(box):
        shape, dtype = box.value.shape, box.value.dtype
        return (
            rng.normal(size=shape).astype(dtype) if dtype == jnp.float32 else rng.integers(0, 99, shape).astype(dtype)
        )

    host = jax.tree.map(drawn, boxes, is_leaf=is_box)
    params = jax.tree.map(jax.device_put, host, shardings(boxes, mesh, RULES))
    source = NativeSource(save_native(tmp_path / "n", config, params, quantisation=kind))
    assert source.quantisation == kind
    other = make_mesh("fsdp=2,tensor=2", jax.devices()[:4])
    found = source.load(other, RULES)
    assert same_bits(found, host)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shardings(boxes, other, RULES)
    with pytest.raises(
        ValueError, match=rf"got kernels that are stored as {kind}, expected floats to quantise to int4"
    ):
        load(tmp_path / "n", quantisation="int4")
    narrow = source.load(other, RULES, "bfloat16")
    assert same_bits(narrow["layers"]["mlp"], host["layers"]["mlp"])
    assert same_bits(narrow["embedding"], host["embedding"].astype(jnp.bfloat16))
    mixed = source.load(other, RULES, "bfloat16", float32={"layers/mlp_norm/scale"})
    assert same_bits(mixed["layers"]["mlp_norm"], host["layers"]["mlp_norm"])
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed["layers"]["attention_norm"])} == {jnp.dtype("bfloat16")}
    with pytest.raises(ValueError, match=r"params: layers/attention/key/kernel: got no such leaf, expected float32\["):
        save_native(tmp_path / "plain", config, params)


CONFIGS_READ = {
    **{name: from_hugging_face(config) for name, config in CONFIGS.items()},
    **{
        f"yarn {name}": from_hugging_face(
            CONFIGS["llama-yarn"] | {"rope_parameters": CONFIGS["llama-yarn"]["rope_parameters"] | parameters}
        )
        for name, parameters in YARN.items()
    },
    "divisors": dataclasses.replace(
        from_hugging_face(CONFIGS["llama"]),
        ropes=(Rope(1e4 / 3, 10, "divisors", divisors=(1.0, 1.1, 4 / 3, 7.0, 1e-7)),),
    ),
}


@pytest.mark.parametrize("name", CONFIGS_READ)
def test_config_through_json(name):
    config = CONFIGS_READ[name]
    assert config_from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_large_arrays_are_cut(models, tmp_path, monkeypatch):
    """Another mesh, and a single layer, then read pieces; every piece is needed for the whole."""
    import tensorstore

    monkeypatch.setattr(arrays, "_CHUNK", 1000)
    model, *_ = models["llama-biases"]
    one = jax.device_put(model.params, jax.devices()[0])
    native = save_native(tmp_path / "n", model.config, one)
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{native}/weights/"}).result()
    name, largest = "layers/mlp/gate/kernel", 0
    pieces = [key.decode() for key in store.list().result() if key.startswith(name.encode()) and b".z" not in key]
    for key in pieces:
        largest = max(largest, len(store[key]))
    assert largest <= 1000
    assert len(pieces) >= one["layers"]["mlp"]["gate"]["kernel"].nbytes / 1000
    layers = {key.rpartition("/")[2].split(".")[0] for key in pieces}
    assert layers == {"0", "1"}  # no piece spans layers
    assert same_bits(NativeSource(native).load(make_mesh("fsdp=2,tensor=4"), RULES), model.params)


def test_tokenizer_files_and_origin(models, tmp_path):
    model, *_ = models["gemma3"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(name.encode() * 3)
    files = [tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"]
    native = save_native(tmp_path / "n", model.config, model.params, files, origin={"name": "hub/model"})
    for file in files:
        assert (native / file.name).read_bytes() == file.read_bytes()
    record = NativeSource(native).record
    assert record["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert record["origin"] == {"name": "hub/model"}
    assert (record["dtype"], record["quantisation"], record["kind"]) == ("float32", None, "decoder")


def test_digest_covers_every_weight(models, tmp_path):
    _, _, native = models["gemma3"]
    copy = shutil.copytree(native, tmp_path / "copy")
    files = NativeSource(native).files
    data = [file for file in native.rglob("*") if file.parent.name == "d" or file.name == "manifest.ocdbt"]
    top = {native / "weights" / "manifest.ocdbt", *(file for file in data if file.parent.name == "d")}
    assert set(files) == top | {native / "medjax.json"}
    same = files_digest(NativeSource(copy).files)
    assert same == files_digest(files)
    largest = max(NativeSource(copy).files, key=lambda file: file.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    assert files_digest(NativeSource(copy).files) != same


def test_what_cannot_be_saved(models, tmp_path):
    model, _, native = models["llama-biases"]
    with pytest.raises(ValueError, match=r"native: is there already, expected a new folder; choose another"):
        save_native(native, model.config, model.params)
    with pytest.raises(ValueError, match=r"tokenizer\.model: got no such file or a taken name"):
        save_native(tmp_path / "n", model.config, model.params, [tmp_path / "tokenizer.model"])
    deeper = dataclasses.replace(model.config, layers=3, rope_index=(0,) * 3, windows=(0,) * 3)
    with pytest.raises(ValueError, match=r"^params: .*: got float32\[2, .*\], expected float32\[3, .*take config"):
        save_native(tmp_path / "n", deeper, model.params)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_nothing(models, tmp_path, monkeypatch):
    """Nor is a folder that a killed save left in the way."""
    model, *_ = models["llama-biases"]
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / ".n.partial").mkdir()
    (tmp_path / ".n.partial" / "medjax.json").touch()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    save = (tmp_path / "n", model.config, model.params, [tmp_path / "tokenizer.json"])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(
            OSError, match=r"/n: the model could not be written: the disk is full \(No space .*it takes 0"
        ):
            save_native(*save)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]
    assert same_bits(NativeSource(save_native(*save)).load(make_mesh(""), RULES), model.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"got format 2 of kind 'decoder', expected format 1 of kind 'decoder'; use the medjax version"),
        ({"leaves": None}, r"medjax\.json: no leaves, expected a whole record; copy the folder again"),
        ({"config.mlp": None}, r"medjax\.json: config lacks mlp and has unknown nothing, expected every field of Dec"),
        ({"config.colour": 1}, r"medjax\.json: config lacks nothing and has unknown colour"),
        ({"config.kv_heads": 4}, r"medjax\.json: decoder: got 6 heads and 4 kv heads, expected a multiple"),
        (
            {"config.mlp": 96},
            r"medjax\.json: layers/mlp/down/kernel: got float32\[2, 80, 48\], expected float32\[2, 96,",
        ),
        ({"config.ropes": [{"theta": 1e4}]}, r"medjax\.json: config\.ropes lacks dim, divisors, factor"),
    ],
)
def test_records_that_are_wrong(models, tmp_path, change, message):
    folder = tmp_path / "copy"
    shutil.copytree(models["llama-biases"][2], folder, ignore=lambda *_: ["weights"])
    record = json.loads((folder / "medjax.json").read_text())
    for key, value in change.items():
        place = record
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        place.pop(last, None)
        if value is not None:
            place[last] = value
    (folder / "medjax.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        open_source(folder)


def test_lost_weights_are_named(models, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(models["gemma3"][2], folder, ignore=lambda *_: ["ocdbt.process_0"])
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(folder))}/weights: the arrays cannot be read \(.*copy the fol"
    ):
        load(folder)
    with pytest.raises(ValueError, match=r"copy/weights: layers/mlp/up/kernel cannot be read \(.*: copy the folder"):
        open_source(folder).read("layers/mlp/up/kernel/1")


def test_floats_are_quantised_while_reading(models):
    """As they are from a Hugging Face folder."""
    _, source, native = models["llama-biases"]
    options = {"mesh": make_mesh("fsdp=2,tensor=2", jax.devices()[:4]), "quantisation": "int8"}
    found, expected = load(native, **options), load(source, **options)
    assert found.quantisation == "int8"
    assert same_bits(found.params, expected.params)
