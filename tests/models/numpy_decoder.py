"""A slow, plain decoder forward in NumPy float64: the definition that medjax is checked against.

One token sequence, one layer after the other, one head after the other. Weights are Hugging Face tensors by name, each
[out, in]; the config is a config.json in the layout of transformers 5 (`rope_parameters`). Written from the papers
(Llama 2 arXiv 2307.09288, Mistral 2310.06825, Qwen2 2407.10671, Qwen3 2505.09388, Gemma 3 2503.19786, GPT-NeoX
2204.06745; RoPE 2104.09864, linear scaling 2306.15595, YaRN 2309.00071) and shares no code with medjax.
"""

import math

import numpy as np


def forward(config: dict, tensors: dict[str, np.ndarray], tokens: list[int], length: int | None = None) -> np.ndarray:
    """Logits [tokens, vocab] float64; length is what dynamic RoPE takes for the whole sequence."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    if config["model_type"] == "gpt_neox":
        return _gpt_neox(config, w, tokens)
    gemma = config["model_type"] == "gemma3_text"
    eps, heads, kv_heads = config["rms_norm_eps"], config["num_attention_heads"], config["num_key_value_heads"]
    size = config["head_dim"]
    scale = (config["query_pre_attn_scalar"] if gemma else size) ** -0.5

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * (w[name] + 1 if gemma else w[name])

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    x = w["model.embed_tokens.weight"][tokens]
    if gemma:
        x = x * np.sqrt(config["hidden_size"])
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        window = layer_window(config, layer)
        rope = config["rope_parameters"]
        if gemma:
            rope = rope["sliding_attention" if window else "full_attention"]
        frequencies, magnitude = inverse_frequencies(rope, size, config["max_position_embeddings"], length)

        h = norm(x, base + "input_layernorm.weight")
        q, k, v = (linear(h, f"{base}self_attn.{name}_proj").reshape(len(tokens), -1, size) for name in "qkv")
        if base + "self_attn.q_norm.weight" in w:
            q, k = norm(q, base + "self_attn.q_norm.weight"), norm(k, base + "self_attn.k_norm.weight")
        q, k = rotate(q, frequencies, magnitude), rotate(k, frequencies, magnitude)
        out = [
            attend(q[:, n], k[:, n * kv_heads // heads], v[:, n * kv_heads // heads], scale, window)
            for n in range(heads)
        ]
        y = linear(np.concatenate(out, axis=-1), base + "self_attn.o_proj")
        x = x + (norm(y, base + "post_attention_layernorm.weight") if gemma else y)

        h = norm(x, base + ("pre_feedforward_layernorm.weight" if gemma else "post_attention_layernorm.weight"))
        act = gelu_tanh if gemma else silu
        y = linear(act(linear(h, base + "mlp.gate_proj")) * linear(h, base + "mlp.up_proj"), base + "mlp.down_proj")
        x = x + (norm(y, base + "post_feedforward_layernorm.weight") if gemma else y)
    table = w["model.embed_tokens.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"]
    return norm(x, "model.norm.weight") @ table.T


def _gpt_neox(config, w, tokens):
    heads, size = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    rope = config["rope_parameters"]
    frequencies, magnitude = inverse_frequencies(
        rope, int(size * rope["partial_rotary_factor"]), config["max_position_embeddings"], None
    )

    def norm(x, name):
        x = x - np.mean(x, -1, keepdims=True)
        x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config["layer_norm_eps"])
        return x * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    x = w["gpt_neox.embed_in.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        base = f"gpt_neox.layers.{layer}."
        fused = linear(norm(x, base + "input_layernorm"), base + "attention.query_key_value")
        out = []
        for n in range(heads):
            q, k, v = np.split(fused[:, n * 3 * size : (n + 1) * 3 * size], 3, axis=1)
            q, k = (rotate(part[:, None], frequencies, magnitude)[:, 0] for part in (q, k))
            out.append(attend(q, k, v, size**-0.5, 0))
        y = linear(np.concatenate(out, axis=-1), base + "attention.dense")
        stream = x if config["use_parallel_residual"] else x + y
        h = linear(norm(stream, base + "post_attention_layernorm"), base + "mlp.dense_h_to_4h")
        x = x + y + linear(gelu(h), base + "mlp.dense_4h_to_h")
    table = w["gpt_neox.embed_in.weight"] if config["tie_word_embeddings"] else w["embed_out.weight"]
    return norm(x, "gpt_neox.final_layer_norm") @ table.T


def layer_window(config: dict, layer: int) -> int:
    """How many positions a token of this layer sees, itself included; 0 is all."""
    window = config.get("sliding_window") or 0
    kind = config["model_type"]
    if kind in ("qwen2", "qwen3"):
        return window if config.get("use_sliding_window") and layer >= config["max_window_layers"] else 0
    if kind == "gemma3_text":
        return window if config["layer_types"][layer] == "sliding_attention" else 0
    return window if kind == "mistral" else 0


def attend(q, k, v, scale, window):
    """One head: q, k, v [tokens, size] -> [tokens, size]; every row is normalised over what it may see."""
    out = np.empty_like(v)
    for t in range(len(q)):
        first = max(0, t - window + 1) if window else 0
        scores = k[first : t + 1] @ q[t] * scale
        weights = np.exp(scores - scores.max())
        out[t] = weights @ v[first : t + 1] / weights.sum()
    return out


def rotate(x, frequencies, magnitude):
    """x [tokens, heads, size]: component i and i + dim/2 turn together by position * frequency i."""
    half = len(frequencies)
    angle = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = np.cos(angle) * magnitude, np.sin(angle) * magnitude
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos, x[..., 2 * half :]], axis=-1)


def inverse_frequencies(rope: dict, dim: int, max_length: int, length: int | None) -> tuple[np.ndarray, float]:
    """Radians a token for each rotated pair, and the factor on cos and sin."""
    kind, theta, factor = rope["rope_type"], rope["rope_theta"], rope.get("factor")
    if kind == "dynamic":
        seen = max(length or 0, max_length)
        theta = theta * (factor * seen / max_length - (factor - 1)) ** (dim / (dim - 2))
    plain = np.array([theta ** (-2 * i / dim) for i in range(dim // 2)])
    if kind in ("default", "dynamic"):
        return plain, 1.0
    if kind == "linear":
        return plain / factor, 1.0
    original = rope["original_max_position_embeddings"]
    if kind == "llama3":
        found = []
        for frequency in plain:
            wavelength = 2 * math.pi / frequency
            if wavelength < original / rope["high_freq_factor"]:
                found.append(frequency)
            elif wavelength > original / rope["low_freq_factor"]:
                found.append(frequency / factor)
            else:
                smooth = original / wavelength - rope["low_freq_factor"]
                smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
                found.append((1 - smooth) * frequency / factor + smooth * frequency)
        return np.array(found), 1.0
    assert kind == "yarn", kind
    fast, slow = rope.get("beta_fast", 32), rope.get("beta_slow", 1)
    # the index at which a component turns r times over the original context: theta^(-2i/dim) * original = 2 pi r
    bounds = [dim / 2 * math.log(original / (2 * math.pi * r), theta) for r in (fast, slow)]
    low, high = (math.floor(bounds[0]), math.ceil(bounds[1])) if rope.get("truncate", True) else bounds
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    keep = 1 - np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    magnitude = rope.get("attention_factor")
    if magnitude is None:
        if rope.get("mscale") and rope.get("mscale_all_dim"):
            magnitude = (0.1 * rope["mscale"] * math.log(factor) + 1) / (
                0.1 * rope["mscale_all_dim"] * math.log(factor) + 1
            )
        else:
            magnitude = 0.1 * math.log(factor) + 1
    return plain * keep + plain / factor * (1 - keep), magnitude


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
