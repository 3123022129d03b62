"""What a checkpoint says about its decoder, in one frozen dataclass, read from config.json or GGUF metadata.

Families: Llama 2/3, Mistral, Qwen2/2.5, Qwen3, Gemma 3 (text), GPT-NeoX (OpenCALM). Both layouts of config.json are
read: `rope_theta` + `rope_scaling`, and `rope_parameters` of transformers 5. A number that the file must give has no
default here; a field that the format itself leaves out when it has the format's own default (Llama's `head_dim`, most
of Gemma 3) is filled by that rule. What is not supported is refused by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medjax.nn.rope import Rope, yarn_magnitude

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt_neox")

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# What the format leaves out: released image-and-text Gemma 3 files write only what differs from these class defaults.
# Source: huggingface/transformers, models/gemma3/configuration_gemma3.py, Gemma3TextConfig.
_GEMMA3_LEFT_OUT: dict[str, Any] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window_pattern": 6,
}


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and choices of a decoder.

    family             one of FAMILIES
    ropes, rope_index  distinct rotary embeddings, and which one each layer uses
    windows            per layer: how many positions a token sees, 0 for all
    norm               "rms" | "layer"; the scale is norm_offset + parameter
    gated              MLP is act(gate) * up, else act(up)
    qk_norm            RMS norm on each head's query and key
    parallel_residual  attention and MLP read the same residual stream
    post_norms         norms after attention and MLP, before the residual sum
    query_scale        factor on q . k
    max_length         context in tokens that the checkpoint was made for
    """

    family: str
    vocab_size: int
    layers: int
    embed: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    max_length: int
    ropes: tuple[Rope, ...]
    rope_index: tuple[int, ...]
    windows: tuple[int, ...]
    norm: str
    norm_eps: float
    norm_offset: float
    activation: str
    gated: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    parallel_residual: bool
    post_norms: bool
    query_scale: float
    embed_scale: float
    tied: bool

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(
                f"decoder: got {self.heads} heads and {self.kv_heads} kv heads, expected a multiple; "
                "take the config that belongs to the weights."
            )
        for name in ("rope_index", "windows"):
            if len(getattr(self, name)) != self.layers:
                raise ValueError(
                    f"decoder: {name} has {len(getattr(self, name))} entries for {self.layers} layers, expected one "
                    "a layer; take the config that belongs to the weights."
                )
        if any(rope.dim > self.head_dim for rope in self.ropes):
            raise ValueError(
                f"decoder: got {max(rope.dim for rope in self.ropes)} rotated components, expected at most "
                f"head_dim={self.head_dim}; take the config that belongs to the weights."
            )

    @property
    def is_mixed(self) -> bool:
        """Whether layers differ in window or rotary embedding."""
        return len(set(zip(self.windows, self.rope_index, strict=True))) > 1

    @property
    def matmul_params(self) -> int:
        """Weights that every token meets: all kernels of the layers, without embedding and unembedding."""
        attention = self.embed * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + self.embed * self.mlp * (3 if self.gated else 2))


def from_hugging_face(config: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """Read a Hugging Face config.json.

    config  the parsed file
    where   its name, for messages
    Raises ValueError naming the key for anything missing or unsupported.
    """
    family = config.get("model_type")
    if config.get("quantization_config"):
        raise ValueError(
            f"{where}: got a quantization_config, which is not supported in safetensors; "
            "take the unquantised checkpoint, or its GGUF form."
        )
    if family == "gemma3" and "text_config" in config:  # image-and-text checkpoints keep the decoder's part apart
        config, family = config["text_config"], "gemma3_text"
    if family not in FAMILIES:
        raise ValueError(
            f"{where}: got model_type={family!r}, supported are {', '.join(FAMILIES)}; "
            "convert the checkpoint to one of these or add its family in medjax/models/decoder_config.py."
        )
    if family == "gemma3_text":
        config = _GEMMA3_LEFT_OUT | {key: value for key, value in config.items() if value is not None}

    def need(key: str) -> Any:
        if config.get(key) is None:
            raise ValueError(
                f"{where}: key {key!r} is missing; a {family} checkpoint must give it: "
                "take the whole file from where the weights were published."
            )
        return config[key]

    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if config.get(key):
            raise ValueError(
                f"{where}: got {key}={config[key]}, which is not supported, expected null; take another checkpoint, "
                "or add the rule in medjax/models."
            )
    layers, embed, heads = need("num_hidden_layers"), need("hidden_size"), need("num_attention_heads")
    # only these two formats have a head_dim of their own rather than embed // heads
    head_dim = need("head_dim") if family in ("qwen3", "gemma3_text") else config.get("head_dim") or embed // heads
    neox, gemma = family == "gpt_neox", family == "gemma3_text"
    act = need("hidden_activation" if gemma else "hidden_act")
    if act not in _ACTIVATIONS:
        raise ValueError(
            f"{where}: got activation {act!r}, supported are {', '.join(_ACTIVATIONS)}; "
            "take another checkpoint, or add the function in medjax/nn/ops.py."
        )
    windows = _windows(config, family, layers, need, where)
    ropes, index = _ropes(config, where, neox, gemma, head_dim, windows)
    bias = bool(config.get("attention_bias", neox or family == "qwen2"))
    fields: dict[str, Any] = dict(
        family=family,
        vocab_size=need("vocab_size"),
        layers=layers,
        embed=embed,
        mlp=need("intermediate_size"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        max_length=need("max_position_embeddings"),
        ropes=ropes,
        rope_index=index,
        windows=windows,
        norm="layer" if neox else "rms",
        norm_eps=need("layer_norm_eps" if neox else "rms_norm_eps"),
        norm_offset=1.0 if gemma else 0.0,
        activation=_ACTIVATIONS[act],
        gated=not neox,
        qkv_bias=True if family == "qwen2" else bias,
        out_bias=False if family == "qwen2" else bias,
        mlp_bias=neox or bool(config.get("mlp_bias", False)),
        qk_norm=family in ("qwen3", "gemma3_text"),
        parallel_residual=neox and need("use_parallel_residual"),
        post_norms=gemma,
        query_scale=need("query_pre_attn_scalar") ** -0.5 if gemma else head_dim**-0.5,
        embed_scale=embed**0.5 if gemma else 1.0,
        tied=bool(config.get("tie_word_embeddings", gemma)),
    )
    try:
        return DecoderConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _windows(config, family, layers, need, where) -> tuple[int, ...]:
    """Per layer, how many positions a token sees (0: all)."""
    if family in ("llama", "gpt_neox") or (family in ("qwen2", "qwen3") and not config.get("use_sliding_window")):
        return (0,) * layers
    if family == "mistral":  # null is full attention, but a file without the key would mean the format's 4096
        if "sliding_window" not in config:
            raise ValueError(
                f"{where}: key 'sliding_window' is missing; a mistral checkpoint must give it (or null): "
                "take the whole file from where the weights were published."
            )
        return (config["sliding_window"] or 0,) * layers
    size, kinds = need("sliding_window"), config.get("layer_types")
    if kinds:
        unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
        if unknown:
            raise ValueError(
                f"{where}: got layer_types {unknown}, supported are sliding_attention, full_attention; "
                "take another checkpoint, or add the kind in medjax/models/decoder_config.py."
            )
        return tuple(size if kind == "sliding_attention" else 0 for kind in kinds)
    if family == "gemma3_text":
        period = config.get("_sliding_window_pattern") or need("sliding_window_pattern")
        return tuple(0 if (i + 1) % period == 0 else size for i in range(layers))
    return tuple(size if i >= need("max_window_layers") else 0 for i in range(layers))


def _ropes(config, where, neox, gemma, head_dim, windows) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    """The distinct rotary embeddings, and each layer's index into them."""
    new = config.get("rope_parameters") or {}
    share = config.get("rotary_pct", config.get("partial_rotary_factor"))
    length = config.get("max_position_embeddings")

    def one(parameters: Mapping[str, Any], key: str) -> Rope:
        theta = config.get(key)
        if theta is None and _predates_rope_theta(config):
            theta = 10000.0
        part = parameters.get("partial_rotary_factor", share)
        if neox and part is None:
            raise ValueError(
                f"{where}: key 'rotary_pct' is missing; a gpt_neox checkpoint must give it: "
                "take the whole file from where the weights were published."
            )
        dim = int(head_dim * part) if part else head_dim
        return _rope({"rope_theta": theta, **parameters}, dim, length, where, key)

    if gemma:
        unknown = sorted(set(new) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ValueError(
                f"{where}: got rope_parameters {unknown}, expected one table each for full_attention and "
                "sliding_attention; put the keys into these."
            )
        full = one(new.get("full_attention") or config.get("rope_scaling") or {}, "rope_theta")
        near = one(new.get("sliding_attention") or {}, "rope_local_base_freq")
        return (full, near), tuple(1 if window else 0 for window in windows)
    key = "rotary_emb_base" if neox and "rope_theta" not in config else "rope_theta"
    return (one(new or config.get("rope_scaling") or {}, key),), (0,) * len(windows)


def _predates_rope_theta(config: Mapping[str, Any]) -> bool:
    """Whether a Llama config.json was written when the format had no rope_theta: the base was part of the architecture.

    The published Llama 2 files are of this kind. transformers has had the key since 4.33.
    """
    written_by = re.match(r"(\d+)\.(\d+)", str(config.get("transformers_version", "")))
    return (
        config.get("model_type") == "llama"
        and written_by is not None
        and tuple(map(int, written_by.groups())) < (4, 33)
    )


def _rope(parameters: Mapping[str, Any], dim: int, length: int | None, where: str, key: str) -> Rope:
    """One Rope from a `rope_parameters` or `rope_scaling` table with its theta, which the top level calls `key`."""
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = parameters.get("rope_theta")
    if theta is None:
        raise ValueError(
            f"{where}: no {key} at the top level and no rope_theta in rope_parameters; the checkpoint must give one: "
            "add the base that it was trained with (10000 for Llama 1 and 2)."
        )
    if kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        missing = [name for name in keys if parameters.get(name) is None]
        if missing:
            raise ValueError(
                f"{where}: rope_type='llama3' needs {', '.join(missing)}, which the checkpoint does not give; "
                "add what it was trained with (8192 tokens originally for Llama 3.1 to 3.3)."
            )
    # dynamic stretches from max_position_embeddings, whatever else the table says; yarn does where it is silent
    original = (kind != "dynamic" and parameters.get("original_max_position_embeddings")) or length
    factor, magnitude = parameters.get("factor"), 1.0
    low, high = parameters.get("low_freq_factor"), parameters.get("high_freq_factor")
    if kind == "yarn":
        factor = factor or (length / original if length and original else None)
        low, high = parameters.get("beta_slow") or 1.0, parameters.get("beta_fast") or 32.0  # the format's own defaults
        magnitude = parameters.get("attention_factor") or 0.0
        if not magnitude and factor:
            scale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
            magnitude = yarn_magnitude(factor)
            if scale and all_dim:
                magnitude = yarn_magnitude(factor, scale) / yarn_magnitude(factor, all_dim)
    try:
        return Rope(
            theta=float(theta),
            dim=dim,
            scaling=kind,
            factor=None if factor is None else float(factor),
            original_length=original,
            low=low,
            high=high,
            truncate=parameters.get("truncate", True),
            magnitude=float(magnitude),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
