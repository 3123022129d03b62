"""GGUF files: metadata -> DecoderConfig, quantised tensors -> float32, Q and K rows back in rotate-half order.

Read through the `gguf` package. The writer of a `llama` GGUF interleaves the rows of each query and key head (pairs
2i, 2i + 1 rotate together); `unpermute` puts the halves back. Forgetting it is silent: the model still speaks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.models.decoder_config import DecoderConfig
from medjax.nn.rope import Rope, yarn_magnitude
from medjax.store.names import Leaf, gguf_leaves
from medjax.store.names import Path as LeafPath

# GGUF architecture -> family; only `llama` (which also carries Mistral) interleaves Q and K
FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}


class GgufSource:
    """A single-file GGUF checkpoint."""

    def __init__(self, path: Path):
        from gguf import GGUFReader

        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, OSError) as error:
            raise ValueError(f"{path}: not a whole GGUF file ({error}); download it again.") from None
        self.files: tuple[Path, ...] = (path,)
        self.metadata: Mapping[str, Any] = _Fields(self._reader)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._check_size(path)
        self.config = config_from_metadata(self.metadata, self._tensors, str(path), self._rope_divisors())
        self.leaves: Mapping[LeafPath, Leaf] = gguf_leaves(self.config)
        self._interleaved = self.metadata["general.architecture"] == "llama"

    def _check_size(self, path: Path) -> None:
        end = max((int(t.data_offset) + int(t.n_bytes) for t in self._reader.tensors), default=0)
        if path.stat().st_size < end:
            raise ValueError(f"{path}: got {path.stat().st_size} bytes, its tensors need {end}; download it again.")

    def _rope_divisors(self) -> tuple[float, ...] | None:
        if "rope_freqs.weight" not in self._tensors:
            return None
        return tuple(float(x) for x in self._dequantised("rope_freqs.weight").ravel())

    def _dequantised(self, name: str) -> np.ndarray:
        from gguf import quants

        tensor = self._tensors[name]
        try:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"{self.files[0]}: tensor {name}: type {tensor.tensor_type.name} ({error}).") from None
        return np.asarray(values, np.float32).reshape(tuple(reversed(tensor.shape.tolist())))

    def read(self, name: str) -> np.ndarray:
        values = self._dequantised(name)
        if self._interleaved and (".attn_q." in name or ".attn_k." in name):
            heads = self.config.heads if ".attn_q." in name else self.config.kv_heads
            values = unpermute(values, heads)
        return values

    def location(self, name: str) -> str:
        return str(self.files[0])


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Interleaved rotary pairs -> halves: rows [heads * head_dim, …], the order that rotate-half expects."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def config_from_metadata(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], where: str, rope_divisors: tuple[float, ...] | None
) -> DecoderConfig:
    """Read a GGUF file's key-value pairs.

    tensors        names present, which tell biases and tied embeddings
    rope_divisors  the file's rope_freqs tensor: what each inverse frequency is divided by
    Raises ValueError naming the key for anything missing or unsupported.
    """
    arch = metadata.get("general.architecture")
    if arch not in FAMILIES:
        raise ValueError(
            f"{where}: got general.architecture={arch!r}, supported are {', '.join(FAMILIES)}; "
            "use the Hugging Face form of the checkpoint or add the architecture in medjax/store/gguf.py."
        )

    def need(key: str) -> Any:
        value = metadata.get(f"{arch}.{key}")
        if value is None:
            raise ValueError(f"{where}: metadata key {arch}.{key} is missing.")
        return value

    gemma = arch == "gemma3"
    layers, embed, heads = need("block_count"), need("embedding_length"), need("attention.head_count")
    head_dim = metadata.get(f"{arch}.attention.key_length") or embed // heads
    dim = metadata.get(f"{arch}.rope.dimension_count") or head_dim
    ropes: tuple[Rope, ...] = (_rope(metadata, arch, dim, where, rope_divisors),)
    window = metadata.get(f"{arch}.attention.sliding_window") or 0
    windows, index = (window,) * layers, (0,) * layers
    if gemma:  # every sixth layer is global; the others have their own base frequency
        windows = tuple(0 if (i + 1) % 6 == 0 else window for i in range(layers))
        index = tuple(1 if w else 0 for w in windows)
        ropes = (*ropes, Rope(theta=10000.0, dim=dim))
    return DecoderConfig(
        family=FAMILIES[arch],
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        layers=layers,
        embed=embed,
        mlp=need("feed_forward_length"),
        heads=heads,
        kv_heads=metadata.get(f"{arch}.attention.head_count_kv") or heads,
        head_dim=head_dim,
        max_length=need("context_length"),
        ropes=ropes,
        rope_index=index,
        windows=windows,
        norm="rms",
        norm_eps=float(need("attention.layer_norm_rms_epsilon")),
        norm_offset=0.0,  # Gemma's GGUF files hold 1 + weight
        activation="gelu_tanh" if gemma else "silu",
        gated=True,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        parallel_residual=False,
        post_norms=gemma,
        query_scale=head_dim**-0.5,
        embed_scale=embed**0.5 if gemma else 1.0,
        tied="output.weight" not in tensors,
    )


def _rope(metadata, arch: str, dim: int, where: str, divisors: tuple[float, ...] | None) -> Rope:
    def get(key: str) -> Any:
        return metadata.get(f"{arch}.rope.{key}")

    theta = get("freq_base")
    if theta is None:
        raise ValueError(f"{where}: metadata key {arch}.rope.freq_base is missing; RoPE has no default base here.")
    kind = get("scaling.type") or "none"
    factor = get("scaling.factor") or get("scale_linear")
    if divisors:
        return Rope(theta=theta, dim=dim, scaling="divisors", divisors=divisors)
    if kind == "none":
        return Rope(theta=theta, dim=dim)
    if kind == "linear":
        return Rope(theta=theta, dim=dim, scaling="linear", factor=factor)
    if kind == "yarn":
        original = get("scaling.original_context_length")
        magnitude = get("scaling.attn_factor") or yarn_magnitude(factor or 1.0)
        return Rope(
            theta=theta,
            dim=dim,
            scaling="yarn",
            factor=factor,
            original_length=original,
            low=1.0,
            high=32.0,
            magnitude=magnitude,
        )
    raise ValueError(f"{where}: got {arch}.rope.scaling.type={kind!r}, supported are none, linear, yarn.")


class _Fields(Mapping[str, Any]):
    """The key-value pairs of a GGUF file, decoded when asked for."""

    def __init__(self, reader):
        self._fields = reader.fields

    def __getitem__(self, key: str) -> Any:
        return self._fields[key].contents()

    def __iter__(self):
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)
