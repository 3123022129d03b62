"""Which tensor of a foreign file is which parameter: one table a family, the same table for every file kind.

A `Leaf` says how one parameter of one layer comes out of one file tensor, always in the same four steps:

    file tensor [out, in] --split--> reshaped --pick--> one slice of a fused tensor --order--> transposed = parameter

The steps can be undone, so the same table writes files. Layer tensors have `{}` where the layer number stands; the
parameters are stacked over layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medjax.models.decoder_config import DecoderConfig

Path = tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """Where a parameter lies in a file.

    name   tensor name, `{}` for the layer number
    shape  of the file tensor
    split  shape to read it as
    pick   (axis, index) of the slice that is this parameter, for fused tensors
    order  axes of the (picked) split tensor in the parameter's order
    """

    name: str
    shape: tuple[int, ...]
    split: tuple[int, ...] | None = None
    pick: tuple[int, int] | None = None
    order: tuple[int, ...] | None = None

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """File tensor -> parameter (a view where possible)."""
        if self.split:
            tensor = tensor.reshape(self.split)
        if self.pick:
            tensor = tensor.take(self.pick[1], axis=self.pick[0])
        return tensor.transpose(self.order) if self.order else tensor

    def to_file(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        """Parameter -> its part of the file tensor, a contiguous array of `shape` that is written in place."""
        view = tensor.reshape(self.split) if self.split else tensor
        if self.pick:
            axis, index = self.pick
            view = view[(slice(None),) * axis + (index,)]
        if self.order:
            view = view.transpose(self.order)
        view[...] = parameter

    @property
    def is_stacked(self) -> bool:
        return "{}" in self.name


def hugging_face_leaves(c: DecoderConfig) -> Mapping[Path, Leaf]:
    """Parameter path -> Leaf, for safetensors files written by transformers."""
    if c.family == "gpt_neox":
        return _gpt_neox(c)
    gemma = c.family == "gemma3_text"
    layer = "model.layers.{}."
    names = {
        "embedding": "model.embed_tokens.weight",
        "norm": "model.norm",
        "unembedding": "lm_head.weight",
        "attention_norm": layer + "input_layernorm",
        "mlp_norm": layer + ("pre_feedforward_layernorm" if gemma else "post_attention_layernorm"),
        "attention_post_norm": layer + "post_attention_layernorm",
        "mlp_post_norm": layer + "post_feedforward_layernorm",
        "query": layer + "self_attn.q_proj",
        "key": layer + "self_attn.k_proj",
        "value": layer + "self_attn.v_proj",
        "out": layer + "self_attn.o_proj",
        "query_norm": layer + "self_attn.q_norm",
        "key_norm": layer + "self_attn.k_norm",
        "gate": layer + "mlp.gate_proj",
        "up": layer + "mlp.up_proj",
        "down": layer + "mlp.down_proj",
    }
    return _leaves(c, names)


def gguf_leaves(c: DecoderConfig) -> Mapping[Path, Leaf]:
    """Parameter path -> Leaf, for GGUF files (Q and K rows already back in rotate-half order)."""
    layer = "blk.{}."
    gemma = c.family == "gemma3_text"
    names = {
        "embedding": "token_embd.weight",
        "norm": "output_norm",
        "unembedding": "output.weight",
        "attention_norm": layer + "attn_norm",
        "mlp_norm": layer + "ffn_norm",
        "attention_post_norm": layer + ("post_attention_norm" if gemma else ""),
        "mlp_post_norm": layer + ("post_ffw_norm" if gemma else ""),
        "query": layer + "attn_q",
        "key": layer + "attn_k",
        "value": layer + "attn_v",
        "out": layer + "attn_output",
        "query_norm": layer + "attn_q_norm",
        "key_norm": layer + "attn_k_norm",
        "gate": layer + "ffn_gate",
        "up": layer + "ffn_up",
        "down": layer + "ffn_down",
    }
    return _leaves(c, names)


def _leaves(c: DecoderConfig, names: Mapping[str, str]) -> Mapping[Path, Leaf]:
    d, f, n, k, h = c.embed, c.mlp, c.heads, c.kv_heads, c.head_dim
    leaves: dict[Path, Leaf] = {
        ("embedding",): Leaf(names["embedding"], (c.vocab_size, d)),
        ("norm", "scale"): Leaf(names["norm"] + ".weight", (d,)),
    }
    if not c.tied:
        leaves["unembedding",] = Leaf(names["unembedding"], (c.vocab_size, d))

    def projection(path: Path, out: tuple[int, ...], into: tuple[int, ...], bias: bool) -> None:
        name = names[path[-1]]
        shape = (int(np.prod(out)), int(np.prod(into)))
        axes = range(len(out) + len(into))
        order = (*axes[len(out) :], *axes[: len(out)])
        leaves["layers", *path, "kernel"] = Leaf(name + ".weight", shape, (*out, *into), order=order)
        if bias:
            leaves["layers", *path, "bias"] = Leaf(name + ".bias", shape[:1], out)

    projection(("attention", "query"), (n, h), (d,), c.qkv_bias)
    projection(("attention", "key"), (k, h), (d,), c.qkv_bias)
    projection(("attention", "value"), (k, h), (d,), c.qkv_bias)
    projection(("attention", "out"), (d,), (n, h), c.out_bias)
    for name in ("gate", "up") if c.gated else ("up",):
        projection(("mlp", name), (f,), (d,), c.mlp_bias)
    projection(("mlp", "down"), (d,), (f,), c.mlp_bias)
    norms: list[tuple[Path, int]] = [(("attention_norm",), d), (("mlp_norm",), d)]
    if c.post_norms:
        norms += [(("attention_post_norm",), d), (("mlp_post_norm",), d)]
    if c.qk_norm:
        norms += [(("attention", "query_norm"), h), (("attention", "key_norm"), h)]
    for path, size in norms:
        leaves["layers", *path, "scale"] = Leaf(names[path[-1]] + ".weight", (size,))
    return leaves


def _gpt_neox(c: DecoderConfig) -> Mapping[Path, Leaf]:
    """GPT-NeoX fuses query, key and value head by head: [heads, 3, head_dim, embed]."""
    d, f, n, h = c.embed, c.mlp, c.heads, c.head_dim
    layer = "gpt_neox.layers.{}."
    leaves: dict[Path, Leaf] = {
        ("embedding",): Leaf("gpt_neox.embed_in.weight", (c.vocab_size, d)),
        ("norm", "scale"): Leaf("gpt_neox.final_layer_norm.weight", (d,)),
        ("norm", "bias"): Leaf("gpt_neox.final_layer_norm.bias", (d,)),
    }
    if not c.tied:
        leaves["unembedding",] = Leaf("embed_out.weight", (c.vocab_size, d))
    for index, name in enumerate(("query", "key", "value")):
        fused = layer + "attention.query_key_value"
        place = ("layers", "attention", name)
        leaves[*place, "kernel"] = Leaf(fused + ".weight", (3 * n * h, d), (n, 3, h, d), (1, index), (2, 0, 1))
        if c.qkv_bias:
            leaves[*place, "bias"] = Leaf(fused + ".bias", (3 * n * h,), (n, 3, h), (1, index))
    plain: dict[Path, tuple] = {
        ("attention", "out"): ("attention.dense", (d, n * h), (d, n, h), (1, 2, 0), c.out_bias),
        ("mlp", "up"): ("mlp.dense_h_to_4h", (f, d), (f, d), (1, 0), c.mlp_bias),
        ("mlp", "down"): ("mlp.dense_4h_to_h", (d, f), (d, f), (1, 0), c.mlp_bias),
    }
    for path, (name, shape, split, order, bias) in plain.items():
        leaves["layers", *path, "kernel"] = Leaf(layer + name + ".weight", shape, split, order=order)
        if bias:
            leaves["layers", *path, "bias"] = Leaf(layer + name + ".bias", shape[:1])
    for norm, name in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
        leaves["layers", norm, "scale"] = Leaf(layer + name + ".weight", (d,))
        leaves["layers", norm, "bias"] = Leaf(layer + name + ".bias", (d,))
    return leaves
