"""llama2.c version-0 files (stories260K): a 7-int header, then float32 tensors in a fixed order.

Layout: dim, hidden, layers, heads, kv heads, vocabulary (positive: tied embeddings), context; then embedding, attention
norms, wq, wk, wv, wo, feed-forward norms, w1, w2, w3, final norm, two unused RoPE tables. RMS eps 1e-5 and RoPE theta
10000 are fixed by the format. Source: karpathy/llama2.c@350e04f, run.c.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.models.decoder_config import DecoderConfig
from medjax.nn.rope import Rope
from medjax.store.gguf import unpermute
from medjax.store.names import Leaf, hugging_face_leaves
from medjax.store.names import Path as LeafPath


def _sizes(header: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    dim, hidden, layers, heads, kv_heads, vocab, length = header
    kv, half = dim // heads * kv_heads, dim // heads // 2
    sizes = {
        "embed_tokens": (abs(vocab), dim),
        "input_layernorm": (layers, dim),
        "q_proj": (layers, dim, dim),
        "k_proj": (layers, kv, dim),
        "v_proj": (layers, kv, dim),
        "o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "gate_proj": (layers, hidden, dim),
        "down_proj": (layers, dim, hidden),
        "up_proj": (layers, hidden, dim),
        "norm": (dim,),
        "rope": (2, length, half),
    }
    return sizes if vocab > 0 else {**sizes, "lm_head": (-vocab, dim)}


def is_llama2c(path: Path) -> bool:
    """Whether the header fits the file's size to the byte; nothing of the file is executed or unpickled."""
    with path.open("rb") as file:
        head = file.read(28)
    if len(head) < 28:
        return False
    header = struct.unpack("<7i", head)
    if min(header[:5]) <= 0 or header[5] == 0 or header[6] <= 0 or header[0] % header[3]:
        return False
    return path.stat().st_size == 28 + 4 * sum(int(np.prod(shape, dtype=object)) for shape in _sizes(header).values())


class Llama2cSource:
    """A llama2.c checkpoint, read through a memory map."""

    metadata: Mapping[str, Any] = {}

    def __init__(self, path: Path):
        with path.open("rb") as file:
            header = struct.unpack("<7i", file.read(28))
        dim, hidden, layers, heads, kv_heads, vocab, length = header
        self.files: tuple[Path, ...] = (path,)
        data = np.memmap(path, np.float32, "r", offset=28)
        self._tensors, start = {}, 0
        for name, shape in _sizes(header).items():
            size = int(np.prod(shape))
            self._tensors[name] = data[start : start + size].reshape(shape)
            start += size
        self.config = DecoderConfig(
            family="llama",
            vocab_size=abs(vocab),
            layers=layers,
            embed=dim,
            mlp=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim // heads,
            max_length=length,
            ropes=(Rope(theta=10000.0, dim=dim // heads),),
            rope_index=(0,) * layers,
            windows=(0,) * layers,
            norm="rms",
            norm_eps=1e-5,
            norm_offset=0.0,
            activation="silu",
            gated=True,
            qkv_bias=False,
            out_bias=False,
            mlp_bias=False,
            qk_norm=False,
            parallel_residual=False,
            post_norms=False,
            query_scale=(dim // heads) ** -0.5,
            embed_scale=1.0,
            tied=vocab > 0,
        )
        self.leaves: Mapping[LeafPath, Leaf] = hugging_face_leaves(self.config)

    def read(self, name: str) -> np.ndarray:
        parts = name.split(".")
        key = parts[0] if parts[0] == "lm_head" else parts[-2]
        tensor = self._tensors[key]
        if parts[1] == "layers":
            tensor = tensor[int(parts[2])]
        if key in ("q_proj", "k_proj"):
            tensor = unpermute(tensor, self.config.heads if key == "q_proj" else self.config.kv_heads)
        return tensor

    def location(self, name: str) -> str:
        return str(self.files[0])
