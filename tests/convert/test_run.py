"""Conversions there and back, through the command: the same numbers and the same tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_gguf import gguf_tensors, write_gguf
from tiny_adapters import CONFIG_OF, adapted_logits, adapter_of, flat
from tiny_checkpoint import write_checkpoint
from tiny_decoders import CONFIGS, bfloat16_tensors, load, logits, random_tensors, write_folder

from medjax.convert.__main__ import main
from medjax.data.text.tokenizer import load_tokenizer
from medjax.store.adapters import files_digest, open_adapter, write_adapter
from medjax.store.native import NativeSource
from medjax.store.peft import write_peft
from medjax.store.sources import open_source

TARGETS = ("query", "value", "out", "down")


def convert(source, to, out, *more):
    assert main([str(source), "--to", to, "--out", str(out), *map(str, more)]) == 0
    return out


@pytest.fixture
def base(tmp_path):
    """A tiny Llama without a tokenizer, and its adapter."""
    folder = write_folder(tmp_path / "base", CONFIGS["llama"], random_tensors(CONFIGS["llama"]))
    return folder


def of_base(adapter, folder):
    return replace(adapter, base=str(folder), base_digest=files_digest(open_source(folder).files))


def test_hugging_face_to_medjax_and_back(tmp_path, capsys):
    """Every tensor comes back byte for byte, and the tokenizer gives the same ids from all three folders."""
    folder = write_checkpoint(tmp_path / "in", seed=3)
    ours = convert(folder, "medjax", tmp_path / "ours")
    found = capsys.readouterr()
    assert found.out.splitlines()[0] == f"writing to {ours}"
    assert found.out.splitlines()[-1] == f"next: python -m medjax.eval --model {ours}"
    back = convert(ours, "hf", tmp_path / "deep" / "back")
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    assert open_source(back).config == open_source(folder).config == open_source(ours).config
    digests = {load_tokenizer(place).digest for place in (folder, ours, back)}
    assert len(digests) == 1
    assert sorted(place.name for place in tmp_path.iterdir()) == ["deep", "in", "ours"]


def test_dtype_is_that_of_the_source_unless_told(tmp_path):
    config, tensors = CONFIGS["llama-tied"], random_tensors(CONFIGS["llama-tied"])
    narrow = write_folder(tmp_path / "bf16", config, bfloat16_tensors(tensors))
    wide = write_folder(tmp_path / "f32", config, tensors)
    for number, (source, more, dtype) in enumerate(
        [
            (narrow, (), "bfloat16"),
            (wide, (), "float32"),
            (wide, ("--dtype", "bfloat16"), "bfloat16"),
            (narrow, ("--dtype", "float32"), "float32"),
        ]
    ):
        out = convert(source, "hf", tmp_path / f"out{number}", *more)
        assert {str(tensor.dtype) for tensor in load_file(out / "model.safetensors").values()} == {dtype}
        got = load_file(out / "model.safetensors")["model.norm.weight"]
        rounded = bfloat16_tensors(tensors)["model.norm.weight"]
        want = rounded if source is narrow or dtype == "bfloat16" else tensors["model.norm.weight"]
        np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))
    native = convert(narrow, "medjax", tmp_path / "native")
    assert NativeSource(native).dtype == "bfloat16"


def test_shards(tmp_path, base):
    out = convert(base, "hf", tmp_path / "out", "--shard_gb", "0.00006")
    assert len(list(out.glob("model-*.safetensors"))) > 3
    tensors = random_tensors(CONFIGS["llama"])
    for key in tensors:
        np.testing.assert_array_equal(open_source(out).read(key), tensors[key])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_gguf_to_both_forms(tmp_path, name):
    """Interleaved heads and folded norms are undone; the model computes the same in all forms."""
    tensors = random_tensors(CONFIGS[name])
    options = {"attention__sliding_window_pattern": [True, False, True, True]} if name == "gemma3" else {}
    if name == "gemma3":
        options["rope__freq_base_swa"] = 10000.0
    config = CONFIGS[name] | ({"query_pre_attn_scalar": 16} if name == "gemma3" else {})
    file = write_gguf(tmp_path / "model.gguf", config, gguf_tensors(config, tensors), **options)
    with_vocabulary(file, config)
    want = logits(load(file))
    out = convert(file, "hf", tmp_path / "hf")
    for key, tensor in load_file(out / "model.safetensors").items():
        np.testing.assert_allclose(tensor, tensors[key], rtol=0, atol=5e-7, err_msg=key)
    native = convert(file, "medjax", tmp_path / "native")
    np.testing.assert_allclose(logits(load(out)), want, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(logits(load(native)), want)
    assert load_tokenizer(out).encode("ab") == load_tokenizer(native).encode("ab") == [1, 3, 5]


def with_vocabulary(file, config):
    """Give a tiny GGUF file the SentencePiece vocabulary that medjax reads from its metadata."""
    import gguf

    reader = gguf.GGUFReader(file)
    copy = file.with_suffix(".copy")
    writer = gguf.GGUFWriter(copy, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "tokenizer.ggml.tokens"):
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    tokens = ["<unk>", "<s>", "</s>", "▁a", "a", "b", "▁"]
    tokens += [f"<{i}>" for i in range(config["vocab_size"] - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    copy.replace(file)


@pytest.mark.parametrize("to", ["hf", "medjax"])
def test_a_merged_model_is_base_and_adapter(tmp_path, base, to):
    adapter = of_base(adapter_of("llama", TARGETS), base)
    write_adapter(tmp_path / "run" / "adapter", adapter)
    out = convert(base, to, tmp_path / "out", "--adapter", tmp_path / "run")
    np.testing.assert_allclose(logits(load(out)), adapted_logits(load(base), adapter), rtol=0, atol=1e-4)
    same = convert(tmp_path / "run", to, tmp_path / "same")  # the adapter names its model
    np.testing.assert_array_equal(logits(load(same)), logits(load(out)))


def test_adapters_between_the_two_forms(tmp_path, base, capsys):
    adapter = of_base(adapter_of("llama", TARGETS, dropout=0.1), base)
    ours = write_adapter(tmp_path / "ours", adapter)
    peft = convert(base, "peft", tmp_path / "peft", "--adapter", ours)
    assert json.loads((peft / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    back = convert(peft, "adapter", tmp_path / "back")
    assert capsys.readouterr().out.splitlines()[-1] == f"next: python -m medjax.eval --model {base} --adapter {back}"
    again = open_adapter(back, CONFIG_OF["llama"])
    assert (again.lora, again.base_digest) == (adapter.lora, adapter.base_digest)
    for key, leaf in flat(adapter.leaves).items():
        np.testing.assert_array_equal(flat(again.leaves)[key], leaf)


def test_a_fused_projection_is_told(tmp_path, capsys):
    config = CONFIGS["neox-parallel"]
    folder = write_folder(tmp_path / "base", config, random_tensors(config))
    adapter = of_base(adapter_of("neox-parallel", ("query", "value", "out")), folder)
    write_adapter(tmp_path / "ours", adapter)
    convert(folder, "peft", tmp_path / "peft", "--adapter", tmp_path / "ours")
    assert "note: query, value became one query_key_value adapter of rank 10, its alpha" in capsys.readouterr().out


def test_an_adapter_without_digest_is_told_and_gets_one(tmp_path, base, capsys):
    write_peft(tmp_path / "peft", replace(adapter_of("llama", TARGETS), base="org/base"), CONFIG_OF["llama"])
    out = convert(base, "adapter", tmp_path / "out", "--adapter", tmp_path / "peft")
    assert f"was trained on org/base and keeps no digest; taken for an adapter of {base}" in capsys.readouterr().out
    again = open_adapter(out, CONFIG_OF["llama"])
    assert (again.base, again.base_digest) == (str(base), files_digest(open_source(base).files))


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4)])
def test_quantised(tmp_path, kind, bits):
    config = CONFIGS["llama"] | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 64}
    folder = write_folder(tmp_path / "in", config, random_tensors(config))
    out = convert(folder, "medjax", tmp_path / "out", "--quantise", kind)
    source = NativeSource(out)
    assert source.quantisation == kind
    codes = source.record["leaves"]["layers/mlp/up/kernel/codes"]
    assert np.prod(codes["shape"]) == 2 * 128 * 64 * bits / 8
    assert main([str(out), "--to", "hf", "--out", str(tmp_path / "back")]) == 2
    assert sorted(place.name for place in tmp_path.iterdir()) == ["in", "out"]
    again = NativeSource(convert(out, "medjax", tmp_path / "again"))  # stays as it is stored
    np.testing.assert_array_equal(
        again.read("layers/mlp/up/kernel/codes/1"), source.read("layers/mlp/up/kernel/codes/1")
    )
