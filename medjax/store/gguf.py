"""GGUF files: metadata -> DecoderConfig, quantised tensors -> float32, Q and K rows back in rotate-half order.

Read through the `gguf` package. The writer of a `llama` GGUF interleaves the rows of each query and key head (pairs
2i, 2i + 1 rotate together); `unpermute` puts the halves back. Forgetting it is silent: the model still speaks.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, quants

from medjax.models.decoder_config import DecoderConfig
from medjax.nn.rope import Rope, yarn_magnitude
from medjax.store.names import Leaf, gguf_leaves
from medjax.store.names import Path as LeafPath

# GGUF architecture -> family; only `llama` (which also carries Mistral) interleaves Q and K
FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}


class _Reader(GGUFReader):
    """GGUFReader that slices a plain array, not the memory map: three times as fast on a large vocabulary."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        return self._plain

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._plain = np.asarray(mapped)

    def _build_tensors(self, start_offs: int, fields: list) -> None:
        whole: list[Any] = []
        for field in fields:
            try:
                super()._build_tensors(start_offs, [field])
            except ValueError as error:
                raise ValueError(f"the file ends inside tensor {field.name}: {error}") from None
            whole += self.tensors
        self.tensors = whole


class GgufSource:
    """A single-file GGUF checkpoint."""

    def __init__(self, path: Path):
        try:
            reader = _Reader(path)
        except (ValueError, IndexError, OSError) as error:
            raise ValueError(f"{path}: not a whole GGUF file ({error}); download it again.") from None
        self.files: tuple[Path, ...] = (path,)
        self.metadata: Mapping[str, Any] = _Fields(reader)
        if self.metadata.get("split.count", shard_count(path)) > 1:
            raise ValueError(split_message(path))
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.config = config_from_metadata(self.metadata, self._shapes(), str(path), self._rope_divisors())
        self.leaves: Mapping[LeafPath, Leaf] = gguf_leaves(self.config)
        self._interleaved = self.metadata["general.architecture"] == "llama"

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(reversed(tensor.shape.tolist())) for name, tensor in self._tensors.items()}

    def _rope_divisors(self) -> tuple[float, ...] | None:
        if "rope_freqs.weight" not in self._tensors:
            return None
        return tuple(float(x) for x in self._dequantised("rope_freqs.weight").ravel())

    def _dequantised(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        try:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.files[0]}: tensor {name}: got type {tensor.tensor_type.name}, which the gguf package cannot "
                f"dequantise ({error}); update that package, or take the file in another type, Q8_0 for instance."
            ) from None
        return np.asarray(values, np.float32).reshape(tuple(reversed(tensor.shape.tolist())))

    def read(self, name: str) -> np.ndarray:
        values = self._dequantised(name)
        if self._interleaved and (".attn_q." in name or ".attn_k." in name):
            heads = self.config.heads if ".attn_q." in name else self.config.kv_heads
            if values.shape[0] == heads * self.config.head_dim:  # else the loader reports the shape
                values = unpermute(values, heads)
        return values

    def location(self, name: str) -> str:
        return str(self.files[0])


def shard_count(path: Path) -> int:
    """How many shards a name like model-00001-of-00003.gguf speaks of; 1 for other names."""
    found = re.search(r"-\d{5}-of-(\d{5})\.gguf$", path.name)
    return int(found[1]) if found else 1


def split_message(path: Path) -> str:
    """Why a shard is refused, and the way out."""
    first = path.with_name(re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", r"-00001\1", path.name))
    whole = path.with_name(re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "-whole.gguf", path.name))
    return (
        f"{path}: got one shard of a split GGUF checkpoint, expected a single file; join the shards with llama.cpp, "
        f"from the first one on: llama-gguf-split --merge {first} {whole}"
    )


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Interleaved rotary pairs -> halves: rows [heads * head_dim, …], the order that rotate-half expects."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def config_from_metadata(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    where: str,
    rope_divisors: tuple[float, ...] | None,
) -> DecoderConfig:
    """Read a GGUF file's key-value pairs.

    tensors        names and shapes [out, in], which tell the vocabulary, biases and tied embeddings
    rope_divisors  the file's rope_freqs tensor: what each inverse frequency is divided by
    Raises ValueError naming the key for anything missing or unsupported.
    """
    arch = metadata.get("general.architecture")
    if arch not in FAMILIES:
        raise ValueError(
            f"{where}: got general.architecture={arch!r}, supported are {', '.join(FAMILIES)}; "
            "use the Hugging Face form of the checkpoint or add the architecture in medjax/store/gguf.py."
        )

    def get(key: str) -> Any:
        return metadata.get(f"{arch}.{key}")

    def need(key: str) -> Any:
        value = get(key)
        if value is None:
            raise ValueError(f"{where}: metadata key {arch}.{key} is missing; convert the checkpoint again.")
        return value

    for key in ("expert_count", "attn_logit_softcapping", "final_logit_softcapping"):
        if get(key):
            raise ValueError(
                f"{where}: got {arch}.{key}={get(key)}, which is not supported, expected none or 0; take another "
                "checkpoint, or add the rule in medjax/models."
            )
    if "token_embd.weight" not in tensors:
        raise ValueError(
            f"{where}: tensor token_embd.weight is missing; the file is not a whole model: "
            "download or convert it again."
        )
    gemma = arch == "gemma3"
    layers, embed, heads = need("block_count"), need("embedding_length"), need("attention.head_count")
    head_dim = get("attention.key_length") or embed // heads
    dim = get("rope.dimension_count") or head_dim
    ropes: tuple[Rope, ...]
    try:
        ropes = (_rope(get, arch, dim, rope_divisors),)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    windows, index, query_scale = (get("attention.sliding_window") or 0,) * layers, (0,) * layers, head_dim**-0.5
    if gemma:  # some layers are global; the local ones have their own base frequency
        window, pattern = need("attention.sliding_window"), get("attention.sliding_window_pattern")
        if not isinstance(pattern, list):  # written since 2025; before, every sixth layer was global
            pattern = [(i + 1) % (pattern or 6) != 0 for i in range(layers)]
        windows = tuple(window if local else 0 for local in pattern)
        index = tuple(1 if w else 0 for w in windows)
        ropes = (*ropes, Rope(theta=get("rope.freq_base_swa") or 10000.0, dim=dim))
        if layers == 62:  # the 27B model alone scales by embed / heads, which its metadata do not say
            query_scale = (embed // heads) ** -0.5
    return DecoderConfig(
        family=FAMILIES[arch],
        vocab_size=tensors["token_embd.weight"][0],
        layers=layers,
        embed=embed,
        mlp=need("feed_forward_length"),
        heads=heads,
        kv_heads=get("attention.head_count_kv") or heads,
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
        query_scale=query_scale,
        embed_scale=embed**0.5 if gemma else 1.0,
        tied="output.weight" not in tensors,
    )


def _rope(get: Callable[[str], Any], arch: str, dim: int, divisors: tuple[float, ...] | None) -> Rope:
    theta = get("rope.freq_base")
    if theta is None and arch == "llama":  # the key is optional, and files of Llama 1 and 2 predate it
        theta = 10000.0
    if theta is None:
        raise ValueError(
            f"metadata key {arch}.rope.freq_base is missing, expected the base that the model was trained with; "
            "convert the checkpoint again with a current llama.cpp."
        )
    kind = get("rope.scaling.type") or "none"
    factor = get("rope.scaling.factor") or get("rope.scale_linear")
    if divisors:
        return Rope(theta=theta, dim=dim, scaling="divisors", divisors=divisors)
    if kind == "none":
        return Rope(theta=theta, dim=dim)
    if kind == "linear":
        return Rope(theta=theta, dim=dim, scaling="linear", factor=factor)
    if kind == "yarn":
        # unlike Hugging Face's attention_factor, attn_factor multiplies YaRN's own magnitude
        magnitude = (get("rope.scaling.attn_factor") or 1.0) * yarn_magnitude(factor or 1.0)
        return Rope(
            theta=theta,
            dim=dim,
            scaling="yarn",
            factor=factor,
            original_length=get("rope.scaling.original_context_length"),
            low=get("rope.scaling.yarn_beta_slow") or 1.0,
            high=get("rope.scaling.yarn_beta_fast") or 32.0,
            magnitude=magnitude,
        )
    raise ValueError(
        f"got rope.scaling.type={kind!r}, supported are none, linear, yarn; "
        "use the Hugging Face form of the checkpoint, or add the rule in medjax/store/gguf.py."
    )


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
