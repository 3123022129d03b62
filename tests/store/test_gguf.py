"""GGUF files written as llama.cpp's converter writes them, against the same weights in a Hugging Face folder."""

import math
import re
import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy_decoder import forward
from tiny_decoders import CONFIGS, TOKENS, load, logits, random_tensors, write_folder

from medjax.nn.rope import inverse_frequencies
from medjax.store.gguf import GgufSource, unpermute
from medjax.store.sources import open_source

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_PARTS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA = {
    **CONFIGS["gemma3"],
    "num_hidden_layers": 7,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 16,  # the file does not say it; llama.cpp takes head_dim
}


def permute(rows, heads):
    """What the converter does to Q and K of a llama: the two halves of each head become pairs."""
    size = rows.shape[0] // heads
    out = np.empty_like(rows)
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = rows[head * size + i]
            out[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
    return out


def gguf_tensors(config, tensors, interleave=True):
    """GGUF names and values of Hugging Face tensors."""
    family = config["model_type"]
    parts = PARTS | GEMMA_PARTS if family == "gemma3_text" else PARTS
    found = {}
    for name, tensor in tensors.items():
        base, kind = name.rsplit(".", 1)
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", base)
        base = f"blk.{layer[1]}.{parts[layer[2]]}" if layer else parts[base]
        if ARCHITECTURES[family] == "llama" and interleave and base.endswith(("attn_q", "attn_k")):
            tensor = permute(tensor, config["num_attention_heads" if base.endswith("q") else "num_key_value_heads"])
        if family == "gemma3_text" and "norm" in base:
            tensor = tensor + 1
        found[f"{base}.{kind}"] = tensor
    return found


def write_gguf(path, config, tensors, quantise=None, split_count=None, **extra):
    """extra: metadata keys without the architecture, dots written as two underscores; None leaves a key out."""
    arch = ARCHITECTURES[config["model_type"]]
    rope = config["rope_parameters"]
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.sliding_window": config.get("sliding_window"),
        "rope.dimension_count": config["head_dim"],
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
    }
    if "full_attention" in rope:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["full_attention"]["factor"]}
    keys |= {key.replace("__", "."): value for key, value in extra.items()}
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        if value is not None:
            add[type(value)](f"{arch}.{key}", value)
    if split_count is not None:
        writer.add_uint16("split.count", split_count)
    writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])
    for name, tensor in tensors.items():
        if quantise and tensor.ndim == 2:
            writer.add_tensor(name, quants.quantize(tensor, quantise), raw_dtype=quantise)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same_model(tmp_path, config, extra_tensors=None):
    """Models of one checkpoint from both kinds of file, and its tensors."""
    tensors = random_tensors(config)
    written = gguf_tensors(config, tensors) | (extra_tensors or {})
    file = write_gguf(tmp_path / "model.gguf", config, written)
    return load(file), load(write_folder(tmp_path / "folder", config, tensors)), tensors


@pytest.mark.parametrize("name", ["llama-tied", "llama-biases", "mistral", "qwen2", "qwen3"])
def test_equals_the_folder(tmp_path, name):
    """Parameters are the same bits (Q and K un-permuted, biases too), and so is every field of the config."""
    from_gguf, from_folder, _ = same_model(tmp_path, CONFIGS[name])
    ours, theirs = (dict(_flat(model.params)) for model in (from_gguf, from_folder))
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    same = [f for f in vars(from_gguf.config) if f not in ("family", "ropes", "norm_eps")]
    assert [getattr(from_gguf.config, f) for f in same] == [getattr(from_folder.config, f) for f in same]
    assert from_gguf.config.norm_eps == pytest.approx(from_folder.config.norm_eps, rel=1e-7)
    assert from_gguf.config.ropes[0].theta == 10000.0
    assert from_gguf.config.ropes[0].dim == from_folder.config.ropes[0].dim


def _flat(tree, path=""):
    for key, value in tree.items():
        yield from _flat(value, f"{path}/{key}") if isinstance(value, dict) else [(f"{path}/{key}", value)]


def test_llama_logits_and_what_unpermuting_is_worth(tmp_path):
    config = CONFIGS["llama"]
    model, _, tensors = same_model(tmp_path, config)
    want = forward(config, tensors, TOKENS)
    np.testing.assert_allclose(logits(model), want, rtol=0, atol=2e-5)
    plain = load(write_gguf(tmp_path / "plain.gguf", config, gguf_tensors(config, tensors, interleave=False)))
    assert np.abs(logits(plain) - want).max() > 1e-2


def test_gemma_norms_windows_and_ropes(tmp_path):
    """Norm scales are stored + 1; every sixth layer is global; local layers turn by base 10000, unscaled."""
    model, folder, tensors = same_model(tmp_path, GEMMA)
    assert model.config.windows == folder.config.windows == (37, 37, 37, 37, 37, 0, 37)
    assert model.config.rope_index == folder.config.rope_index
    np.testing.assert_allclose(logits(model), forward(GEMMA, tensors, TOKENS), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("pattern", "windows"),
    [(3, (37, 37, 0, 37, 37, 0, 37)), ([True, False, True, True, True, False, False], (37, 0, 37, 37, 37, 0, 0))],
)
def test_gemma_states_its_pattern_and_local_base(tmp_path, pattern, windows):
    tensors = gguf_tensors(GEMMA, random_tensors(GEMMA))
    extra = {"attention__sliding_window_pattern": pattern, "rope__freq_base_swa": 5000.0}
    config = GgufSource(write_gguf(tmp_path / "g.gguf", GEMMA, tensors, **extra)).config
    assert config.windows == windows
    assert (config.ropes[0].theta, config.ropes[1].theta) == (1e6, 5000.0)


def test_gemma_27b_has_its_own_query_scale(tmp_path):
    """Known by its 62 layers; 5376 / 32 = 168 there, here 48 / 6."""
    tensors = gguf_tensors(GEMMA, random_tensors(GEMMA))
    file = write_gguf(tmp_path / "g.gguf", GEMMA | {"num_hidden_layers": 62}, tensors)
    assert GgufSource(file).config.query_scale == 8**-0.5


def test_rope_freqs_are_llama3_scaling(tmp_path):
    """Llama 3 files carry the scaling as one divisor a frequency; the config keys say nothing of it."""
    config = CONFIGS["llama-llama3"]
    rope, plain = config["rope_parameters"], [10000.0 ** (-2 * i / 10) for i in range(5)]
    divisors = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        smooth = (64 / wavelength - 1) / (4 - 1)
        divisors.append(1.0 if wavelength < 64 / 4 else 8.0 if wavelength > 64 else 1 / ((1 - smooth) / 8 + smooth))
    assert len({round(d, 6) for d in divisors}) >= 3  # a kept, a blended and a stretched frequency
    assert (rope["factor"], rope["original_max_position_embeddings"]) == (8.0, 64)
    extra = {"rope_freqs.weight": np.array(divisors, np.float32)}
    model, _, tensors = same_model(tmp_path, config, extra_tensors=extra)
    want = forward(config, tensors, TOKENS)
    np.testing.assert_allclose(logits(model), want, rtol=0, atol=2e-5)
    without = load(write_gguf(tmp_path / "without.gguf", config, gguf_tensors(config, tensors)))
    assert np.abs(logits(without) - want).max() > 1e-2


def test_linear_and_yarn_scaling(tmp_path):
    tensors = gguf_tensors(CONFIGS["llama"], random_tensors(CONFIGS["llama"]))

    def rope(**extra):
        return GgufSource(write_gguf(tmp_path / "r.gguf", CONFIGS["llama"], tensors, **extra)).config.ropes[0]

    linear = rope(rope__scaling__type="linear", rope__scaling__factor=3.0)
    np.testing.assert_allclose(inverse_frequencies(linear), inverse_frequencies(rope()) / 3)
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64}
    yarn = rope(**keys)
    assert (yarn.scaling, yarn.factor, yarn.original_length, yarn.low, yarn.high) == ("yarn", 4.0, 64, 1.0, 32.0)
    assert yarn.magnitude == pytest.approx(0.1 * math.log(4) + 1)
    # llama.cpp multiplies attn_factor onto YaRN's own magnitude
    assert rope(**keys, rope__scaling__attn_factor=0.5).magnitude == pytest.approx((0.1 * math.log(4) + 1) / 2)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16", "F16"])
def test_quantised_tensors_are_what_gguf_says(tmp_path, kind):
    """Rows of 64 and 96, two and three blocks of 32, dequantised and put in place; Q and K un-permuted afterwards."""
    config = CONFIGS["llama-tied"] | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 70}
    tensors = random_tensors(config)
    kind = GGMLQuantizationType[kind]
    model = load(write_gguf(tmp_path / "q.gguf", config, gguf_tensors(config, tensors), kind))
    rounded = {
        name: quants.dequantize(quants.quantize(tensor, kind), kind).reshape(tensor.shape)
        if tensor.ndim == 2
        else tensor
        for name, tensor in tensors.items()
    }
    assert 0 < max(np.abs(rounded[name] - tensors[name]).max() for name in tensors) < 0.3
    folder = load(write_folder(tmp_path / "folder", config, rounded))
    for (key, ours), (_, theirs) in zip(_flat(model.params), _flat(folder.params), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=key)


def test_unpermute_undoes_the_converter():
    rows = np.arange(24 * 3).reshape(24, 3)
    np.testing.assert_array_equal(unpermute(permute(rows, 4), 4), rows)
    np.testing.assert_array_equal(unpermute(permute(rows[:, 0], 2), 2), rows[:, 0])
    assert permute(np.arange(6), 1).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.fixture
def whole(tmp_path):
    return write_gguf(
        tmp_path / "m.gguf", CONFIGS["llama"], gguf_tensors(CONFIGS["llama"], random_tensors(CONFIGS["llama"]))
    )


def test_cut_data_names_the_tensor(whole):
    reader = gguf.GGUFReader(whole)
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    middle = int(tensor.data_offset) + int(tensor.n_bytes) // 2
    data = whole.read_bytes()
    del reader, tensor
    for size in (middle, middle + 1):  # also at a place that is no multiple of a float
        whole.write_bytes(data[:size])
        with pytest.raises(
            ValueError, match=r"m\.gguf: not a whole GGUF file \(the file ends inside tensor blk\.1\.ffn_up\.weight"
        ):
            GgufSource(whole)


@pytest.mark.parametrize("size", [0, 3, 20, 500, 3000])
def test_cut_header(whole, size):
    whole.write_bytes(whole.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"m\.gguf: not a whole GGUF file .*download it again"):
        GgufSource(whole)


def test_other_kinds_of_file(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(struct.pack("<4sI", b"GGML", 3) + bytes(100))
    with pytest.raises(ValueError, match=r"m\.gguf: not a whole GGUF file"):
        GgufSource(file)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"rope__scaling__type": "longrope"},
            r"got rope\.scaling\.type='longrope', supported are none, linear, yarn; use",
        ),
        ({"rope__scaling__type": "linear"}, r"rope_type='linear' needs factor"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0}, r"'yarn' needs original_length"),
        ({"expert_count": 8}, r"got llama\.expert_count=8, which is not supported, expected none or 0; take"),
        ({"final_logit_softcapping": 30.0}, r"got llama\.final_logit_softcapping=30\.0, which is not supported"),
        ({"block_count": None}, r"metadata key llama\.block_count is missing"),
        ({"attention__layer_norm_rms_epsilon": None}, r"llama\.attention\.layer_norm_rms_epsilon is missing"),
    ],
)
def test_refused_by_name(tmp_path, extra, message):
    tensors = gguf_tensors(CONFIGS["llama"], random_tensors(CONFIGS["llama"]))
    with pytest.raises(ValueError, match=r"m\.gguf: .*" + message):
        GgufSource(write_gguf(tmp_path / "m.gguf", CONFIGS["llama"], tensors, **extra))


def test_base_frequency_is_optional_for_llama_alone(tmp_path):
    """Files of Llama 1 and 2 written in 2023 lack the key; 10000 is the format's own default."""
    tensors = gguf_tensors(CONFIGS["llama"], random_tensors(CONFIGS["llama"]))
    file = write_gguf(tmp_path / "m.gguf", CONFIGS["llama"], tensors, rope__freq_base=None)
    assert GgufSource(file).config.ropes[0].theta == 10000.0
    tensors = gguf_tensors(CONFIGS["qwen2"], random_tensors(CONFIGS["qwen2"]))
    file = write_gguf(tmp_path / "q.gguf", CONFIGS["qwen2"], tensors, rope__freq_base=None)
    with pytest.raises(ValueError, match=r"q\.gguf: metadata key qwen2\.rope\.freq_base is missing, .*; convert"):
        GgufSource(file)


def write_shard(path, count):
    """A shard as llama-gguf-split writes it, but for the tensors; count None: without split.count."""
    writer = gguf.GGUFWriter(path, "llama")
    if count is not None:
        writer.add_uint16("split.count", count)
    writer.add_tensor("blk.0.attn_norm.weight", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "count", "command"),
    [
        ("m-00001-of-00003.gguf", 3, "m-00001-of-00003.gguf {}/m-whole.gguf"),
        ("m-00003-of-00003.gguf", 3, "m-00001-of-00003.gguf {}/m-whole.gguf"),
        ("m-00002-of-00003.gguf", None, "m-00001-of-00003.gguf {}/m-whole.gguf"),
        ("renamed.gguf", 2, "renamed.gguf {}/renamed-whole.gguf"),
    ],
)
def test_shards_are_refused_with_the_way_out(tmp_path, name, count, command):
    file = write_shard(tmp_path / name, count)
    for path in (file, tmp_path):
        with pytest.raises(ValueError) as error:
            open_source(path)
        assert str(error.value).startswith(f"{file}: got one shard of a split GGUF checkpoint, expected a single file;")
        assert str(error.value).endswith(f"llama-gguf-split --merge {tmp_path}/{command.format(tmp_path)}")


def test_a_folder_of_shards(tmp_path):
    for i in (1, 2, 3):
        write_shard(tmp_path / f"m-{i:05}-of-00003.gguf", 3)
    with pytest.raises(ValueError, match=r"m-00001-of-00003\.gguf: got one shard .*llama-gguf-split --merge"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["m-00001-of-00001.gguf", "m-00001-of-00003.gguf"])
def test_a_merged_file_is_none_whatever_its_name(tmp_path, name, whole):
    """llama-gguf-split sets split.count to 0 when it merges."""
    config = CONFIGS["llama"]
    tensors = gguf_tensors(config, random_tensors(config))
    merged = write_gguf(tmp_path / name, config, tensors, split_count=0)
    assert GgufSource(merged).config == GgufSource(whole).config


def test_types_that_the_package_cannot_read(tmp_path, whole, monkeypatch):
    def refuse(data, kind):
        raise NotImplementedError("no rule")

    source = GgufSource(whole)
    monkeypatch.setattr(quants, "dequantize", refuse)
    with pytest.raises(
        ValueError, match=r"m\.gguf: tensor output_norm\.weight: got type F32, which .*\(no rule\); update .* Q8_0"
    ):
        source.read("output_norm.weight")


def test_unknown_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "falcon")
    writer.add_tensor("token_embd.weight", np.zeros((3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"general\.architecture='falcon', supported are llama, qwen2, qwen3, gemma3"):
        GgufSource(tmp_path / "m.gguf")


def test_missing_and_misshapen_tensors(tmp_path):
    config = CONFIGS["llama"]
    tensors = gguf_tensors(config, random_tensors(config))
    without = {name: tensor for name, tensor in tensors.items() if name != "blk.1.ffn_up.weight"}
    with pytest.raises(ValueError, match=r"m\.gguf: tensor blk\.1\.ffn_up\.weight is missing"):
        load(write_gguf(tmp_path / "m.gguf", config, without))
    other = tensors | {"blk.1.attn_k.weight": tensors["blk.1.attn_k.weight"][:10]}
    with pytest.raises(ValueError, match=r"attn_k\.weight has shape \(10, 48\), expected \(20, 48\)"):
        load(write_gguf(tmp_path / "m.gguf", config, other))
    with pytest.raises(ValueError, match=r"tensor token_embd\.weight is missing"):
        load(write_gguf(tmp_path / "m.gguf", config, {k: v for k, v in tensors.items() if k != "token_embd.weight"}))
