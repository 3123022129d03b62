"""Hugging Face folders: byte for byte what was read, in any sharding, in little memory; configs that say the same."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny_adapters import CONFIG_OF, adapted_logits, adapter_of
from tiny_decoders import (
    CONFIGS,
    SPARSE_GEMMA,
    TOKENS,
    bfloat16_tensors,
    load,
    logits,
    old_layout,
    random_tensors,
    write_folder,
)

from medjax.models.decoder_config import from_hugging_face
from medjax.nn.merging import merge
from medjax.nn.rope import Rope, inverse_frequencies
from medjax.parallel.mesh import make_mesh
from medjax.store.exporting import check_free, hugging_face_config, new_folder, save_hugging_face

LARGE = CONFIGS["llama"] | {  # 87 MB in float32
    **{"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
}
RUNTIME = 2 << 20  # bytes that Python and JAX may take on the side


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_come_out_as_they_went_in(tmp_path, name):
    tensors = random_tensors(CONFIGS[name])
    model = load(write_folder(tmp_path / "in", CONFIGS[name], tensors))
    save_hugging_face(tmp_path / "out", model.config, model.params, dtype="float32")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert again[key].dtype == np.float32
        np.testing.assert_array_equal(again[key], tensor, err_msg=key)


@pytest.mark.parametrize("name", ["llama-biases", "neox-sequential", "gemma3"])
def test_shards_of_a_sharded_model(tmp_path, name):
    """Every file is within the limit, the index is right, and a tensor larger than a shard stands alone."""
    tensors = bfloat16_tensors(random_tensors(CONFIGS[name]))
    folder = write_folder(tmp_path / "in", CONFIGS[name], tensors)
    model, steps = load(folder, dtype="bfloat16", mesh=make_mesh("data=2,fsdp=2,tensor=2")), []
    save_hugging_face(
        tmp_path / "out",
        model.config,
        model.params,
        dtype="bfloat16",
        shard_bytes=8000,
        progress=lambda *step: steps.append(step),
    )
    assert steps == [(i + 1, len(tensors)) for i in range(len(tensors))]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    assert len(files) > 5
    seen = {}
    for file in files:
        held = load_file(file)
        assert sum(tensor.nbytes for tensor in held.values()) <= 8000 or len(held) == 1
        assert all(index["weight_map"][key] == file.name for key in held)
        seen |= held
    assert seen.keys() == index["weight_map"].keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(seen[key].view(np.uint16), tensor.view(np.uint16), err_msg=key)


def test_the_header_is_what_readers_ask_for(tmp_path):
    model = load(write_folder(tmp_path / "in", CONFIGS["llama"], random_tensors(CONFIGS["llama"])))
    save_hugging_face(tmp_path / "out", model.config, model.params, dtype="bfloat16")
    file = tmp_path / "out" / "model.safetensors"
    with safe_open(file, framework="numpy") as reader:
        assert reader.metadata() == {"format": "pt"}
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
    rounded = bfloat16_tensors(random_tensors(CONFIGS["llama"]))
    for key, tensor in load_file(file).items():  # rounded once, to nearest even
        np.testing.assert_array_equal(tensor.view(np.uint16), rounded[key].view(np.uint16))
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (record["torch_dtype"], record["architectures"]) == ("bfloat16", ["LlamaForCausalLM"])


def test_extra_keys_and_tokenizer_files_go_along(tmp_path):
    model = load(write_folder(tmp_path / "in", CONFIGS["llama"], random_tensors(CONFIGS["llama"])))
    (tmp_path / "tokenizer.json").write_text("{}")
    save_hugging_face(
        tmp_path / "out",
        model.config,
        model.params,
        dtype="float32",
        extra={"eos_token_id": [2, 7], "hidden_size": 1},
        tokenizer_files=[tmp_path / "tokenizer.json"],
    )
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (record["eos_token_id"], record["hidden_size"]) == ([2, 7], 48)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_say_the_same(name):
    """Also read in the layout of transformers 4 alone, which is what is written."""
    for config in (CONFIGS[name], old_layout(CONFIGS[name])):
        parsed = from_hugging_face(config)
        written = json.loads(json.dumps(hugging_face_config(parsed)))
        assert from_hugging_face(written) == parsed
        assert "rope_parameters" not in written


@pytest.mark.parametrize("size", SPARSE_GEMMA)
def test_gemma_periods_are_written_for_the_first_releases(size):
    config = from_hugging_face({"model_type": "gemma3_text", **SPARSE_GEMMA[size]})
    written = hugging_face_config(config)
    assert (written["sliding_window_pattern"], written["sliding_window"]) == (6, 1024)
    del written["layer_types"]
    assert from_hugging_face(written) == config


def test_what_gguf_files_fold_is_unfolded(tmp_path):
    """Norms hold 1 + weight, RoPE factors are divisors, Mistral is called llama: the same model under its own name."""
    tensors = random_tensors(CONFIGS["gemma3"])
    model = load(write_folder(tmp_path / "in", CONFIGS["gemma3"], tensors))
    folded = jax.tree.map(lambda x: x, model.params)
    folded["norm"] = {"scale": model.params["norm"]["scale"] + 1}
    for norm in ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm"):
        folded["layers"][norm] = {"scale": model.params["layers"][norm]["scale"] + 1}
    for norm in ("query_norm", "key_norm"):
        folded["layers"]["attention"][norm] = {"scale": model.params["layers"]["attention"][norm]["scale"] + 1}
    save_hugging_face(tmp_path / "out", replace(model.config, norm_offset=0.0), folded, dtype="float32")
    for key, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        np.testing.assert_allclose(tensor, tensors[key], rtol=0, atol=0 if tensor.ndim == 2 else 2e-7, err_msg=key)

    llama = CONFIG_OF["llama"]
    mistral = replace(llama, windows=(21, 21))
    assert from_hugging_face(hugging_face_config(mistral)) == replace(mistral, family="mistral")

    named = Rope(theta=500000.0, dim=10, scaling="llama3", factor=32.0, original_length=8192, low=1.0, high=4.0)
    plain = Rope(theta=500000.0, dim=10)
    divisors = tuple((inverse_frequencies(plain) / inverse_frequencies(named)).astype(np.float32).tolist())
    rope = replace(plain, scaling="divisors", divisors=divisors)
    assert from_hugging_face(hugging_face_config(replace(llama, ropes=(rope,)))).ropes == (named,)


def test_what_a_config_cannot_say_is_refused():
    llama = CONFIG_OF["llama"]

    def error(**change):
        with pytest.raises(ValueError) as caught:
            hugging_face_config(replace(llama, **change))
        return str(caught.value)

    assert error(qkv_bias=True).startswith("llama: got a model with out_bias=False, expected what a Hugging Face")
    assert error(query_scale=0.5).startswith("llama: got a model with query_scale=0.5, expected what")
    assert "got a model with windows=(21, 0)" in error(windows=(21, 0))
    odd = Rope(theta=10000.0, dim=10, scaling="divisors", divisors=(1.0, 1.0, 3.0, 1.0, 8.0))
    assert error(ropes=(odd,)).startswith("rope_freqs.weight: got frequencies that are not those of Llama 3.1 or 3.2")


def test_what_cannot_be_exported_is_named(tmp_path):
    model = load(write_folder(tmp_path / "in", CONFIGS["llama"], random_tensors(CONFIGS["llama"])))
    with pytest.raises(ValueError, match=r"dtype: got 'int8', expected one of float32, bfloat16; choose"):
        save_hugging_face(tmp_path / "out", model.config, model.params, dtype="int8")
    params = jax.tree.map(lambda x: x, model.params)
    params["layers"]["mlp"]["up"]["kernel"] = {"codes": np.zeros(1), "absmax": np.zeros(1)}
    with pytest.raises(ValueError, match=r"layers/mlp/up/kernel: got quantised weights \(codes, absmax\), expected fl"):
        save_hugging_face(tmp_path / "out", model.config, params, dtype="float32")


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama-biases", ("query", "key", "value", "out", "gate", "up", "down")),
        ("gemma3", ("query", "out", "down")),
        ("neox-parallel", ("query_key_value", "out", "up", "down")),
        ("neox-sequential", ("query", "value")),
    ],
)
def test_merged_and_exported_logits_are_those_of_base_and_adapter(tmp_path, name, targets):
    base = load(write_folder(tmp_path / "base", CONFIGS[name], random_tensors(CONFIGS[name])))
    adapter = adapter_of(name, targets)
    merged = merge(base.params, adapter.leaves, adapter.lora.scale)
    save_hugging_face(tmp_path / "out", base.config, merged, dtype="float32")
    got, want = logits(load(tmp_path / "out")), adapted_logits(base, adapter)
    assert np.abs(want - logits(base)).max() > 0.1
    assert got.shape == (len(TOKENS), 97)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "x").read_text() == "1"
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "other") as folder:
        (folder / "x").write_text(str(1 / 0))
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "y").write_text("2")
    assert (tmp_path / "empty" / "y").read_text() == "2"


def test_a_taken_place_is_left_alone(tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.txt").write_text("mine")
    text = f"{tmp_path}/held: got a folder that holds a.txt, expected none or an empty one; name another."
    with pytest.raises(ValueError, match=re.escape(text)):
        check_free(tmp_path / "held")
    with pytest.raises(ValueError, match=r"a\.txt: got a file, expected a folder or nothing; name another"):
        check_free(tmp_path / "held" / "a.txt" / "deeper")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs RssAnon of Linux's /proc")
@pytest.mark.parametrize("mode", ["", "hoard"])
def test_host_memory_while_exporting(tmp_path, mode):
    """Peak above the model in place: the largest tensor and what it is made from; `hoard` shows that a leak is seen."""
    warm_up = write_folder(tmp_path / "small", CONFIGS["llama"], random_tensors(CONFIGS["llama"]))
    large = write_folder(tmp_path / "large", LARGE, random_tensors(LARGE))
    script = Path(__file__).with_name("exporting_memory.py")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # to keep programs takes memory as well
    command = [sys.executable, str(script), str(warm_up), str(large), str(tmp_path / "out"), mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    embedding = 8000 * 512 * 4
    above = found["peak"] - found["before"]
    print(f"{mode}: {above / embedding:.2f} x the largest tensor above the model")
    if mode == "hoard":
        assert above > 3 * embedding
    else:
        assert above <= 2.3 * embedding + RUNTIME
