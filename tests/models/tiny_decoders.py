"""Tiny decoders of every family: configs, random weights under Hugging Face names, checkpoint folders, medjax logits.

Nothing is square and nothing is equal by chance: embed 48, 6 heads, 2 kv heads, head_dim 10 or 16, MLP 80, vocabulary
97. Configs are in the layout of transformers 5; `old_layout` turns one into that of transformers 4.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from medjax.models.decoder import Decoder, unembedding
from medjax.nn.attention import BLOCK, forest
from medjax.parallel.mesh import make_mesh
from medjax.store.loading import LoadedDecoder, load_decoder

TOKENS = np.random.default_rng(5).integers(0, 97, 150).tolist()  # more than one attention block, not a multiple of it

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_LLAMA = {
    **_SIZES,
    "model_type": "llama",
    "num_key_value_heads": 2,
    "head_dim": 10,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_NEOX = {
    **_SIZES,
    "model_type": "gpt_neox",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
_GEMMA = {
    **_LLAMA,
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "sliding_window": 37,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


def _rope(kind: str, **values) -> dict:
    return {**_LLAMA, "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


CONFIGS: dict[str, dict] = {
    "llama": _LLAMA,
    "llama-tied": {**_LLAMA, "tie_word_embeddings": True},
    "llama-biases": {**_LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "llama-linear": _rope("linear", factor=3.0),
    "llama-dynamic": {**_rope("dynamic", factor=2.0), "max_position_embeddings": 64},
    "llama-llama3": _rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "llama-yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=64),
    "mistral": {**_LLAMA, "model_type": "mistral", "sliding_window": 21},
    "qwen2": {**_LLAMA, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": {
        **_LLAMA,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 33,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "qwen3": {**_LLAMA, "model_type": "qwen3", "head_dim": 16, "rms_norm_eps": 1e-6},
    "gemma3": _GEMMA,
    "neox-parallel": _NEOX,
    "neox-sequential": {**_NEOX, "use_parallel_residual": False, "tie_word_embeddings": True},
}
YARN = {  # the other ways in which YaRN checkpoints state their constants
    "attention_factor": {"factor": 4.0, "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0},
    "mscale": {"factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.1},
    "untruncated": {"factor": 4.0, "truncate": False},
}


_RELEASED = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 1024}
SPARSE_GEMMA = {  # what the released image-and-text checkpoints state of their decoders
    "4b": {**_RELEASED, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
    "12b": {
        **_RELEASED,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
    },
    "27b": {
        **_RELEASED,
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
    },
}


def old_layout(config: dict) -> dict:
    """The same checkpoint as transformers 4 wrote it: rope_theta and rope_scaling at the top level."""
    config = dict(config)
    rope = config.pop("rope_parameters")
    if config["model_type"] == "gemma3_text":
        full, local = rope["full_attention"], rope["sliding_attention"]
        config |= {"rope_theta": full["rope_theta"], "rope_local_base_freq": local["rope_theta"]}
        config["rope_scaling"] = {key: value for key, value in full.items() if key != "rope_theta"}
        return config
    if config["model_type"] == "gpt_neox":
        return config | {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope["partial_rotary_factor"]}
    config.pop("layer_types", None)  # Qwen2 files said max_window_layers only
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    scaling["type"] = scaling.pop("rope_type")
    return config | {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if scaling["type"] == "default" else scaling,
    }


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Hugging Face tensor names and shapes of a config."""
    d, f, v, heads = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"))
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int, bias: bool) -> None:
        shapes[name + ".weight"] = (out, into)
        if bias:
            shapes[name + ".bias"] = (out,)

    if config["model_type"] == "gpt_neox":
        shapes["gpt_neox.embed_in.weight"] = (v, d)
        norms = ["gpt_neox.final_layer_norm"]
        for i in range(config["num_hidden_layers"]):
            layer = f"gpt_neox.layers.{i}."
            linear(layer + "attention.query_key_value", 3 * d, d, True)
            linear(layer + "attention.dense", d, d, True)
            linear(layer + "mlp.dense_h_to_4h", f, d, True)
            linear(layer + "mlp.dense_4h_to_h", d, f, True)
            norms += [layer + "input_layernorm", layer + "post_attention_layernorm"]
        for name in norms:
            shapes |= {name + ".weight": (d,), name + ".bias": (d,)}
        if not config["tie_word_embeddings"]:
            shapes["embed_out.weight"] = (v, d)
        return shapes

    family, h, kv = config["model_type"], config["head_dim"], config["num_key_value_heads"]
    bias = bool(config.get("attention_bias"))
    shapes |= {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        linear(layer + "self_attn.q_proj", heads * h, d, bias or family == "qwen2")
        linear(layer + "self_attn.k_proj", kv * h, d, bias or family == "qwen2")
        linear(layer + "self_attn.v_proj", kv * h, d, bias or family == "qwen2")
        linear(layer + "self_attn.o_proj", d, heads * h, bias)
        for name, out, into in (("gate", f, d), ("up", f, d), ("down", d, f)):
            linear(f"{layer}mlp.{name}_proj", out, into, bool(config.get("mlp_bias")))
        norms = ["input_layernorm", "post_attention_layernorm"]
        if family == "gemma3_text":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{layer}{name}.weight": (d,) for name in norms}
        if family in ("qwen3", "gemma3_text"):
            shapes |= {f"{layer}self_attn.{name}_norm.weight": (h,) for name in "qk"}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    return shapes


def random_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep activations near 1, and norm scales and biases far enough from 1 and 0 to matter."""
    rng = np.random.default_rng(seed)
    centre = 0.0 if config["model_type"] == "gemma3_text" else 1.0
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        noise = rng.normal(size=shape)
        if len(shape) == 2:
            noise = noise * (0.5 if "embed" in name else shape[1] ** -0.5)
        elif name.endswith(".bias"):
            noise = 0.3 * noise
        else:
            noise = centre + 0.3 * noise
        tensors[name] = noise.astype(np.float32)
    return tensors


def bfloat16_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}


def write_folder(folder: Path, config: dict, tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    """A Hugging Face checkpoint folder: config.json and model.safetensors, or an index and its shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(path: Path, **options) -> LoadedDecoder:
    """load_decoder on one device, unless a mesh is given."""
    options.setdefault("mesh", make_mesh("data=1", jax.devices()[:1]))
    return load_decoder(path, **options)


def logits(model: LoadedDecoder, tokens: list[int] = TOKENS, **options) -> np.ndarray:
    """medjax's logits [tokens, vocab] of one sequence; options of Decoder. Models of one config share programs."""
    padded = -(-len(tokens) // BLOCK) * BLOCK
    row = np.zeros((1, padded), np.int32)
    row[0, : len(tokens)] = tokens
    return np.asarray(_run(Decoder(model.config, **options), model.params, row, len(tokens)))[: len(tokens)]


def _logits(decoder, params, row, count):
    index = jnp.arange(row.shape[1])[None]
    ends = jnp.where(index < count, count, index + 1)
    hidden, _ = decoder.apply({"params": params}, row, index, forest(index, ends))
    return hidden[0].astype(jnp.float32) @ unembedding(params).T


_run = jax.jit(_logits, static_argnums=0)
