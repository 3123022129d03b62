"""Shapes of published decoders by hub id, so that a plan for one of them needs no download.

Only what is needed to lay a model out is here, as in each repository's config.json; a run reads the file itself. Facts
as of 2025, from the repositories named; a name that is missing is no error of a checkpoint: give its folder.
"""

from collections.abc import Mapping
from typing import Any

from medjax.models.decoder_config import DecoderConfig, from_hugging_face

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_LLAMA2 = _LLAMA | {"vocab_size": 32_000, "max_position_embeddings": 4096, "rope_theta": 10_000.0}
_LLAMA3 = _LLAMA | {"vocab_size": 128_256, "max_position_embeddings": 8192, "rope_theta": 500_000.0}
_LLAMA31 = _LLAMA3 | {
    "max_position_embeddings": 131_072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_QWEN25 = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}


def _sizes(layers: int, embed: int, mlp: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": embed,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


_7B, _13B = _sizes(32, 4096, 11_008, 32, 32), _sizes(40, 5120, 13_824, 40, 40)
_8B, _70B = _sizes(32, 4096, 14_336, 32, 8), _sizes(80, 8192, 28_672, 64, 8)
_SWALLOW_VOCABULARY = {"vocab_size": 43_176}

_CONFIGS: Mapping[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _LLAMA2 | _7B,
    "meta-llama/Llama-2-13b-hf": _LLAMA2 | _13B,
    "meta-llama/Llama-2-70b-hf": _LLAMA2 | _70B,
    "meta-llama/Meta-Llama-3-8B": _LLAMA3 | _8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3 | _8B,
    "meta-llama/Meta-Llama-3-70B": _LLAMA3 | _70B,
    "meta-llama/Meta-Llama-3-70B-Instruct": _LLAMA3 | _70B,
    "meta-llama/Llama-3.1-8B": _LLAMA31 | _8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA31 | _8B,
    "meta-llama/Llama-3.1-70B": _LLAMA31 | _70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA31 | _70B,
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA31 | _70B,
    "tokyotech-llm/Swallow-7b-instruct-hf": _LLAMA2 | _SWALLOW_VOCABULARY | _7B,
    "tokyotech-llm/Swallow-13b-instruct-hf": _LLAMA2 | _SWALLOW_VOCABULARY | _13B,
    "tokyotech-llm/Swallow-70b-hf": _LLAMA2 | _SWALLOW_VOCABULARY | _70B,
    "tokyotech-llm/Swallow-70b-instruct-hf": _LLAMA2 | _SWALLOW_VOCABULARY | _70B,
    "tokyotech-llm/Llama-3-Swallow-8B-Instruct-v0.1": _LLAMA3 | _8B,
    "tokyotech-llm/Llama-3-Swallow-70B-Instruct-v0.1": _LLAMA3 | _70B,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN25 | {"vocab_size": 152_064} | _sizes(28, 3584, 18_944, 28, 4),
    "Qwen/Qwen2.5-72B-Instruct": _QWEN25 | {"vocab_size": 152_064} | _sizes(80, 8192, 29_568, 64, 8),
    "cyberagent/open-calm-7b": {
        "model_type": "gpt_neox",
        "vocab_size": 52_224,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 16_384,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rotary_pct": 1.0,
        "rotary_emb_base": 10_000,
        "use_parallel_residual": False,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
    },
}

NAMES = tuple(_CONFIGS)


def published(name: str) -> DecoderConfig | None:
    """The decoder of a hub id; None for one that is not listed. Upper and lower case are the same, as on the hub."""
    found = next((config for known, config in _CONFIGS.items() if known.lower() == name.lower()), None)
    return from_hugging_face(found, where=name) if found else None
