"""Tensors into place: once each, in the target dtype, in little memory, and with errors that name tensor and file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_decoders import CONFIGS, bfloat16_tensors, load, random_tensors, tensor_shapes, write_folder

from medjax.parallel.mesh import make_mesh
from medjax.store import sources

CONFIG = CONFIGS["llama-biases"]
TENSORS = random_tensors(CONFIG)
LARGE = CONFIGS["llama"] | {  # 87 MB in float32
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
RUNTIME = 2 << 20  # bytes that Python and JAX may take on the side while a dozen arrays are made


def expected(name):
    """The parameter that a tensor becomes, head by head."""
    tensor, heads = TENSORS[name], {"q": 6, "k": 2, "v": 2, "o": 6}
    part = name.split(".")[-2]
    if name.endswith("weight") and part[:1] in heads and part.endswith("_proj") and "self_attn" in name:
        n = heads[part[0]]
        if part == "o_proj":
            return np.stack([tensor[:, i * 16 : (i + 1) * 16].T for i in range(n)])
        return np.stack([tensor[i * 16 : (i + 1) * 16].T for i in range(n)], axis=1)
    if name.endswith("bias") and part in ("q_proj", "k_proj", "v_proj"):
        return np.stack([tensor[i * 16 : (i + 1) * 16] for i in range(heads[part[0]])])
    return tensor.T if tensor.ndim == 2 and "layers" in name else tensor


PLACES = {
    "self_attn.q_proj.weight": ("attention", "query", "kernel"),
    "self_attn.k_proj.bias": ("attention", "key", "bias"),
    "self_attn.v_proj.weight": ("attention", "value", "kernel"),
    "self_attn.o_proj.weight": ("attention", "out", "kernel"),
    "self_attn.o_proj.bias": ("attention", "out", "bias"),
    "mlp.gate_proj.weight": ("mlp", "gate", "kernel"),
    "mlp.up_proj.bias": ("mlp", "up", "bias"),
    "mlp.down_proj.weight": ("mlp", "down", "kernel"),
    "input_layernorm.weight": ("attention_norm", "scale"),
    "post_attention_layernorm.weight": ("mlp_norm", "scale"),
}


@pytest.mark.parametrize("mesh", [None, "data=2,fsdp=2,tensor=2"])
def test_where_every_tensor_goes(tmp_path, mesh):
    folder = write_folder(tmp_path, CONFIG, TENSORS)
    params = load(folder, **({"mesh": make_mesh(mesh)} if mesh else {})).params
    for part, path in PLACES.items():
        found = params["layers"]
        for key in path:
            found = found[key]
        for layer in range(2):
            np.testing.assert_array_equal(found[layer], expected(f"model.layers.{layer}.{part}"), err_msg=part)
    np.testing.assert_array_equal(params["embedding"], TENSORS["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["unembedding"], TENSORS["lm_head.weight"])


def test_dtypes(tmp_path):
    """Into bfloat16 weights are rounded once, to nearest even; what is narrower than float32 widens exactly."""
    folder = write_folder(tmp_path / "f32", CONFIG, TENSORS)
    rounded = bfloat16_tensors(TENSORS)
    narrow = write_folder(tmp_path / "bf16", CONFIG, rounded)
    for model in (load(folder, dtype="bfloat16"), load(narrow, dtype="bfloat16"), load(narrow)):
        table = model.params["embedding"]
        assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {table.dtype}
        np.testing.assert_array_equal(
            np.asarray(table, np.float32), rounded["model.embed_tokens.weight"].astype(np.float32)
        )
    assert load(folder, dtype="bfloat16").params["embedding"].dtype == jnp.bfloat16
    half = {name: tensor.astype(np.float16) for name, tensor in TENSORS.items()}
    model = load(write_folder(tmp_path / "f16", CONFIG, half))
    np.testing.assert_array_equal(model.params["embedding"], half["model.embed_tokens.weight"].astype(np.float32))
    with pytest.raises(ValueError, match=r"dtype: got 'int8', expected one of float32, bfloat16"):
        load(folder, dtype="int8")


def test_every_tensor_is_read_once(tmp_path, monkeypatch):
    """Also where eight devices hold four different shards, each twice."""
    folder, names, steps = write_folder(tmp_path, CONFIG, TENSORS), [], []
    read = sources.HuggingFaceSource.read
    monkeypatch.setattr(sources.HuggingFaceSource, "read", lambda self, name: names.append(name) or read(self, name))
    model = load(folder, mesh=make_mesh("data=2,fsdp=2,tensor=2"), progress=lambda *step: steps.append(step))
    assert sorted(names) == sorted(TENSORS)
    count = len(jax.tree.leaves(model.params))
    assert steps == [(i + 1, count) for i in range(count)]


def test_a_fused_tensor_is_read_once_a_parameter(tmp_path, monkeypatch):
    config, names = CONFIGS["neox-parallel"], []
    tensors = random_tensors(config)
    folder = write_folder(tmp_path, config, tensors)
    read = sources.HuggingFaceSource.read
    monkeypatch.setattr(sources.HuggingFaceSource, "read", lambda self, name: names.append(name) or read(self, name))
    load(folder)
    assert {name: names.count(name) for name in tensors} == {n: 3 if "query_key_value" in n else 1 for n in tensors}
    assert len(names) == len(tensors) + 2 * 2 * config["num_hidden_layers"]  # weight and bias, twice more in each layer


def test_missing_tensor_names_tensor_and_file(tmp_path):
    name = "model.layers.1.mlp.up_proj.bias"
    partial = {key: tensor for key, tensor in TENSORS.items() if key != name}
    with pytest.raises(ValueError, match=rf"one: tensor {name} is missing; the checkpoint is incomplete"):
        load(write_folder(tmp_path / "one", CONFIG, partial))
    folder = write_folder(tmp_path / "many", CONFIG, TENSORS, shards=2)  # the index names it, its shard lacks it
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    held = sources.open_source(folder)
    save_file({key: held.read(key) for key in partial if held.location(key) == str(file)}, file)
    with pytest.raises(ValueError, match=rf"{file.name}: tensor {name} is missing"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.1.self_attn.k_proj.weight", (48, 32)),  # transposed
        ("model.layers.0.self_attn.q_proj.bias", (90,)),
        ("model.embed_tokens.weight", (96, 48)),
        ("model.norm.weight", (48, 1)),
    ],
)
def test_wrong_shape_names_tensor_file_got_expected(tmp_path, name, shape):
    folder = write_folder(tmp_path, CONFIG, TENSORS | {name: np.zeros(shape, np.float32)})
    got, want = (str(s).replace("(", r"\(").replace(")", r"\)") for s in (shape, tensor_shapes(CONFIG)[name]))
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: tensor {name} has shape {got}, expected {want} by the config; take"
    ):
        load(folder)


def test_integer_weights_are_refused(tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = write_folder(tmp_path, CONFIG, TENSORS | {name: TENSORS[name].astype(np.int8)})
    with pytest.raises(ValueError, match=rf"model\.safetensors: tensor {name} has type int8, expected float32"):
        load(folder)


def test_cut_shard_names_tensor_and_file(tmp_path):
    folder = write_folder(tmp_path, CONFIG, TENSORS, shards=2)
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=r"model-00002-of-00002\.safetensors: not a whole .*ends inside tensor (model\.|lm_)"
    ):
        load(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("large"), LARGE, random_tensors(LARGE), shards=2)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs RssAnon of Linux's /proc")
@pytest.mark.parametrize(("mesh", "mode"), [("", ""), ("data=4,tensor=2", ""), ("", "hoard")])
def test_host_memory_while_loading(large, tmp_path, mesh, mode):
    """Peak above the finished model: at most 1.3 x the largest stacked parameter; `hoard` shows that a leak is seen."""
    warm_up = write_folder(tmp_path, CONFIG, TENSORS)
    script = Path(__file__).with_name("loading_memory.py")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # to keep programs takes memory as well
    command = [sys.executable, str(script), str(warm_up), str(large), mesh, mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"] == sum(4 * int(np.prod(shape)) for shape in tensor_shapes(LARGE).values())
    assert found["largest"] == 8 * 512 * 1024 * 4
    assert found["after"] - found["before"] > 0.98 * found["whole"]  # the model is really there
    # once only: the replicas of eight fake devices share the host's memory
    above = found["peak"] - found["before"] - found["whole"]
    print(f"mesh={mesh!r} {mode}: {above / found['largest']:.2f} x the largest parameter above the model")
    if mode == "hoard":
        assert above > 3 * found["largest"]
    else:
        assert above <= 1.3 * found["largest"] + RUNTIME
