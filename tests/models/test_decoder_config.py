"""What config.json says becomes the config, in both layouts; what is missing or unsupported is refused by name."""

import dataclasses

import pytest
from tiny_decoders import CONFIGS, SPARSE_GEMMA, YARN, old_layout

from medjax.models.decoder_config import from_hugging_face
from medjax.nn.rope import Rope


def changed(name, **values):
    """A config of the table with keys set, or removed where the value is `...`."""
    config = dict(CONFIGS[name])
    for key, value in values.items():
        if value is ...:
            config.pop(key)
        else:
            config[key] = value
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_both_layouts_say_the_same(name):
    assert from_hugging_face(old_layout(CONFIGS[name])) == from_hugging_face(CONFIGS[name])


def test_llama_fields():
    c = from_hugging_face(CONFIGS["llama"])
    assert dataclasses.asdict(c) == {
        "family": "llama",
        "vocab_size": 97,
        "layers": 2,
        "embed": 48,
        "mlp": 80,
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 10,
        "max_length": 256,
        "ropes": (dataclasses.asdict(Rope(theta=10000.0, dim=10)) | {"original_length": 256},),
        "rope_index": (0, 0),
        "windows": (0, 0),
        "norm": "rms",
        "norm_eps": 1e-5,
        "norm_offset": 0.0,
        "activation": "silu",
        "gated": True,
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "parallel_residual": False,
        "post_norms": False,
        "query_scale": 10**-0.5,
        "embed_scale": 1.0,
        "tied": False,
    }


def test_format_defaults():
    """Fields that the format itself leaves out: head_dim, kv heads, attention biases, tying."""
    config = changed("llama", head_dim=..., num_key_value_heads=..., tie_word_embeddings=...)
    c = from_hugging_face(config)
    assert (c.head_dim, c.kv_heads, c.tied, c.qkv_bias) == (8, 6, False, False)
    assert from_hugging_face(changed("gemma3", tie_word_embeddings=...)).tied
    neox = from_hugging_face(CONFIGS["neox-parallel"])
    assert (neox.qkv_bias, neox.out_bias, neox.mlp_bias, neox.gated, neox.norm) == (True, True, True, False, "layer")
    qwen = from_hugging_face(CONFIGS["qwen2"])
    assert (qwen.qkv_bias, qwen.out_bias, qwen.mlp_bias) == (True, False, False)


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("llama", (0, 0)),
        ("mistral", (21, 21)),
        ("qwen2", (0, 0)),
        ("qwen2-window", (0, 33)),
        ("gemma3", (37, 0, 37, 37)),
    ],
)
def test_windows(name, windows):
    assert from_hugging_face(CONFIGS[name]).windows == windows


def test_windows_that_are_switched_off():
    assert from_hugging_face(changed("mistral", sliding_window=None)).windows == (0, 0)
    off = changed("qwen2-window", use_sliding_window=False)
    assert from_hugging_face(off).windows == (0, 0)
    assert from_hugging_face(changed("llama", sliding_window=7)).windows == (0, 0)


def test_gemma_pattern_and_ropes():
    config = old_layout(changed("gemma3", num_hidden_layers=7, layer_types=...)) | {"sliding_window_pattern": 3}
    c = from_hugging_face(config)
    assert c.windows == (37, 37, 0, 37, 37, 0, 37)
    assert c.rope_index == (1, 1, 0, 1, 1, 0, 1)
    assert [(rope.theta, rope.scaling, rope.factor) for rope in c.ropes] == [
        (1e6, "linear", 8.0),
        (1e4, "default", None),
    ]
    assert (c.query_scale, c.embed_scale, c.norm_offset) == (24**-0.5, 48**0.5, 1.0)


def test_image_and_text_gemma_reads_the_text_part():
    text = CONFIGS["gemma3"]
    assert from_hugging_face({"model_type": "gemma3", "text_config": text, "vision_config": {}}) == from_hugging_face(
        text
    )


GEMMA_IN_FULL = {
    "model_type": "gemma3_text",
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
}


@pytest.mark.parametrize("size", SPARSE_GEMMA)
@pytest.mark.parametrize("layout", ["transformers 4", "transformers 5"])
def test_sparse_gemma_equals_the_full_one(size, layout):
    """Released Gemma 3 files leave out what equals the class defaults."""
    stated = SPARSE_GEMMA[size]
    scaling = {"rope_type": "linear", "factor": 8.0}
    text = {"model_type": "gemma3_text", **stated}
    full = {key: value for key, value in (GEMMA_IN_FULL | stated).items() if key != "rope_scaling"}
    if layout == "transformers 4":
        ropes = {"rope_scaling": scaling, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
    else:
        layers = range(stated["num_hidden_layers"])
        tables = {
            "full_attention": {**scaling, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
        kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in layers]
        ropes = {"rope_parameters": tables, "layer_types": kinds}
    found = from_hugging_face({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert found == from_hugging_face(full | ropes)
    assert found.head_dim == {"4b": 256, "12b": 256, "27b": 128}[size]  # not 2560 / 8 = 320
    assert found.query_scale == {"4b": 256, "12b": 256, "27b": 168}[size] ** -0.5
    assert found.windows[:7] == (1024, 1024, 1024, 1024, 1024, 0, 1024)
    assert [(rope.theta, rope.factor) for rope in found.ropes] == [(1e6, 8.0), (1e4, None)]


def test_gemma_local_layers_keep_their_own_base():
    """A table of transformers 5 without thetas: each kind of layer has its own."""
    tables = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    assert [rope.theta for rope in from_hugging_face(changed("gemma3", rope_parameters=tables)).ropes] == [1e6, 1e4]


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "sliding_window"])
def test_gemma_must_give_what_every_release_gives(key):
    text = {"model_type": "gemma3_text", **SPARSE_GEMMA["4b"]}
    del text[key]
    with pytest.raises(ValueError, match=rf"key '{key}' is missing; a gemma3_text checkpoint must give it"):
        from_hugging_face({"model_type": "gemma3", "text_config": text})


def test_neox_rotates_a_part():
    assert from_hugging_face(CONFIGS["neox-parallel"]).ropes[0].dim == 4  # half of head_dim 8


@pytest.mark.parametrize(
    ("stated", "magnitude"),
    [
        ("attention_factor", 1.25),
        ("mscale", (0.07 * 2.0794415416798357 + 1) / (0.11 * 2.0794415416798357 + 1)),
        ("untruncated", 0.1 * 1.3862943611198906 + 1),
    ],
)
def test_yarn_magnitude(stated, magnitude):
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **YARN[stated]}
    assert from_hugging_face(changed("llama", rope_parameters=rope)).ropes[0].magnitude == pytest.approx(
        magnitude, rel=1e-12
    )


def test_yarn_constants():
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    found = from_hugging_face(changed("llama", rope_parameters=rope | {"factor": None})).ropes[0]
    assert (found.factor, found.low, found.high, found.truncate) == (4.0, 1.0, 32.0, True)  # 256 / 64
    found = from_hugging_face(changed("llama", rope_parameters=rope | YARN["attention_factor"])).ropes[0]
    assert (found.low, found.high) == (2.0, 16.0)


def test_yarn_without_its_original_length_means_the_whole():
    """As transformers has it; llama3 is refused instead."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    assert from_hugging_face(changed("llama", rope_parameters=rope)).ropes[0].original_length == 256


def test_dynamic_starts_from_max_position_embeddings():
    """transformers ignores original_max_position_embeddings in a dynamic table."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
    assert from_hugging_face(changed("llama", rope_parameters=rope)).ropes[0].original_length == 256


@pytest.mark.parametrize(
    ("version", "is_old"), [("4.31.0.dev0", True), ("4.32.1", True), ("4.33.0", False), (None, False)]
)
def test_llama_2_files_have_no_rope_theta(version, is_old):
    """Before transformers 4.33 the format had no key for the base, which was 10000; a later file must give it."""
    config = changed("llama", rope_parameters=..., transformers_version=version)
    if is_old:
        assert from_hugging_face(config).ropes[0].theta == 10000.0
    else:
        with pytest.raises(ValueError, match="no rope_theta"):
            from_hugging_face(config)


def default_rope(**values):
    return {"rope_type": "default", "rope_theta": 10000.0, **values}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("llama", model_type="bert"), r"model_type='bert', supported are llama, mistral, qwen2, qwen3"),
        (changed("llama", model_type=...), r"model_type=None, supported are"),
        (
            changed("llama", rope_parameters=default_rope(rope_type="longrope")),
            r"rope_type='longrope', supported are default",
        ),
        (changed("llama", rope_parameters=default_rope(rope_type="linear")), r"rope_type='linear' needs factor"),
        (
            changed("llama", rope_parameters=default_rope(rope_type="llama3", factor=8.0)),
            r"'llama3' needs low_freq_factor, high_freq_factor, original_max_position_embeddings, which .*; add what",
        ),
        (
            changed(
                "llama",
                rope_parameters=default_rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
            ),
            r"'llama3' needs original_max_position_embeddings, which the checkpoint does not give; add what",
        ),
        (changed("llama", rope_parameters=...), r"no rope_theta at the top level and no rope_theta in rope_parameters"),
        (old_layout(CONFIGS["neox-parallel"]) | {"rotary_emb_base": None}, r"no rotary_emb_base at the top level"),
        (
            changed("gemma3", rope_parameters=default_rope()),
            r"got rope_parameters \['rope_theta', 'rope_type'\], expected one table each for full_attention and",
        ),
        (changed("neox-parallel", rope_parameters=default_rope()), r"key 'rotary_pct' is missing"),
        (changed("gemma3", attn_logit_softcapping=50.0), r"attn_logit_softcapping=50.0, which is not supported"),
        (changed("gemma3", final_logit_softcapping=30.0), r"final_logit_softcapping=30.0, which is not supported"),
        (
            changed("gemma3", use_bidirectional_attention=True),
            r"use_bidirectional_attention=True, which is not supported",
        ),
        (
            changed("llama", quantization_config={"quant_method": "gptq"}),
            r"quantization_config, which is not supported",
        ),
        (changed("llama", hidden_act="relu2"), r"activation 'relu2', supported are silu"),
        (
            changed("llama", intermediate_size=...),
            r"key 'intermediate_size' is missing; a llama checkpoint must give it",
        ),
        (changed("llama", rms_norm_eps=...), r"key 'rms_norm_eps' is missing"),
        (changed("neox-parallel", use_parallel_residual=...), r"key 'use_parallel_residual' is missing"),
        (changed("mistral", sliding_window=...), r"key 'sliding_window' is missing"),
        (changed("gemma3", sliding_window=...), r"key 'sliding_window' is missing"),
        (changed("qwen3", head_dim=...), r"key 'head_dim' is missing"),
        (
            changed("gemma3", layer_types=["chunked_attention"] * 4),
            r"layer_types \['chunked_attention'\], supported are sliding_attention, full_attention; take another",
        ),
        (changed("qwen2-window", layer_types=["sliding_attention"]), r"has 1 entries for 2 layers"),
        (changed("llama", num_key_value_heads=4), r"6 heads and 4 kv heads, expected a multiple; take the config"),
        (changed("llama", head_dim=9), r"9 rotated components, expected an even number"),
    ],
)
def test_refused_by_name(config, message):
    with pytest.raises(ValueError, match=r"^folder/config\.json: .*" + message):
        from_hugging_face(config, "folder/config.json")
