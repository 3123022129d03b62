"""Weights out of medjax: a Hugging Face folder that transformers 4.3x to 5 read, written tensor by tensor.

  FOLDER/config.json                      made from the DecoderConfig, in the layout that old and new versions read
         model.safetensors                one file, or shards of at most `shard_bytes` and model.safetensors.index.json
         tokenizer.json, …                copied

A safetensors file is its header, then the tensors; sizes are known beforehand, so the header is written first and every
tensor follows as it is made: host memory holds one file tensor and the slices that go into it.

config.json  `hugging_face_config` reads its own result back and refuses a model that the format cannot say.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.models.decoder_config import DecoderConfig, from_hugging_face
from medjax.nn.rope import Rope, inverse_frequencies
from medjax.store.names import Leaf, hugging_face_leaves

DTYPES = {"float32": "F32", "bfloat16": "BF16"}
SHARD_BYTES = 5_000_000_000
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends well, and vanishes when it does not.

    Raises ValueError where `path` is taken by a file or a folder that is not empty.
    """
    path = Path(path)
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)  # onto an empty folder too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path) -> None:
    """Raise ValueError where `path` cannot become a new folder."""
    if path.is_dir():
        if held := sorted(file.name for file in path.iterdir()):
            raise ValueError(f"{path}: got a folder that holds {held[0]}, expected none or an empty one; name another.")
        return
    nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ValueError(f"{nearest}: got a file, expected a folder or nothing; name another.")


def save_hugging_face(
    folder: str | Path,
    config: DecoderConfig,
    params: Mapping[str, Any],
    *,
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
    extra: Mapping[str, Any] | None = None,
    tokenizer_files: Iterable[Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a Hugging Face folder; it is made where it does not exist.

    params           as models.decoder describes them, floats
    dtype            of the tensors in the files: float32 or bfloat16
    shard_bytes      a file with more tensors than one has at most so many bytes of them
    extra            keys of config.json that decide no number here, such as eos_token_id
    tokenizer_files  copied beside the weights
    progress         called with (tensors done, tensors in all)

    Raises ValueError for a dtype, a quantised kernel or a config that the format cannot say.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}; choose one of them.")
    folder = Path(folder)
    written = dict(extra or {}) | hugging_face_config(config) | {"torch_dtype": dtype}
    read_back = from_hugging_face(written)
    tensors = _tensors(read_back)
    offset = config.norm_offset - read_back.norm_offset
    folder.mkdir(parents=True, exist_ok=True)
    for path in tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", "utf-8")
    shards = _shards(tensors, np.dtype(jnp.dtype(dtype)).itemsize, shard_bytes)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    done = 0
    for file_name, shard in zip(names, shards, strict=True):
        with (folder / file_name).open("wb") as file:
            file.write(_header({name: tensors[name][0][1].shape for name in shard}, dtype))
            for name in shard:
                file.write(_file_tensor(params, tensors[name], offset, dtype).view(np.uint8).data)
                done += 1
                if progress:
                    progress(done, len(tensors))
    if len(shards) > 1:
        size = sum(math.prod(parts[0][1].shape) for parts in tensors.values()) * np.dtype(jnp.dtype(dtype)).itemsize
        table = {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": size}, "weight_map": table}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def hugging_face_config(config: DecoderConfig) -> dict[str, Any]:
    """config.json of a model, in the layout with rope_theta and rope_scaling that every transformers version reads.

    Raises ValueError naming the fields that the format cannot say.
    """
    wanted = _in_their_terms(config)
    written = _written(wanted)
    found, asked = (
        replace(c, ropes=tuple(map(_as_read, c.ropes)))
        for c in (from_hugging_face(written, "config.json made from the model"), wanted)
    )
    differ = [f.name for f in fields(config) if getattr(found, f.name) != getattr(asked, f.name)]
    if differ:
        got = ", ".join(f"{name}={getattr(wanted, name)}" for name in differ)
        raise ValueError(
            f"{config.family}: got a model with {got}, expected what a Hugging Face config.json of this family can "
            "say; keep it in medjax form (--to medjax)."
        )
    return written


def _in_their_terms(config: DecoderConfig) -> DecoderConfig:
    """The same model as transformers calls it; GGUF files fold norms and RoPE divisors, and call Mistral llama."""
    family = "mistral" if config.family == "llama" and any(config.windows) else config.family
    return replace(
        config,
        family=family,
        norm_offset=1.0 if family == "gemma3_text" else 0.0,
        ropes=tuple(_without_divisors(rope) for rope in config.ropes),
    )


def _without_divisors(rope: Rope) -> Rope:
    """Llama 3.1's rule by name, where that is what a GGUF file's divisors say; 3.2 differs in the factor only."""
    if rope.scaling != "divisors" or not rope.divisors:
        return rope
    named = replace(
        rope, scaling="llama3", factor=round(max(rope.divisors), 3), original_length=8192, low=1.0, high=4.0
    )
    named = replace(named, divisors=None)
    if not np.allclose(inverse_frequencies(named), inverse_frequencies(rope), rtol=1e-5, atol=0):
        raise ValueError(
            "rope_freqs.weight: got frequencies that are not those of Llama 3.1 or 3.2, the only ones that "
            "config.json can say; keep the model in medjax form (--to medjax)."
        )
    return named


def _as_read(rope: Rope) -> Rope:
    """Without what its rule does not read, which sources fill in or leave out as they like."""
    scaled, stretched = rope.scaling != "default", rope.scaling not in ("default", "linear")
    blended = stretched and rope.scaling != "dynamic"
    return replace(
        rope,
        factor=rope.factor if scaled else None,
        original_length=rope.original_length if stretched else None,
        low=rope.low if blended else None,
        high=rope.high if blended else None,
    )


def _written(c: DecoderConfig) -> dict[str, Any]:
    neox, gemma = c.family == "gpt_neox", c.family == "gemma3_text"
    activation = _ACTIVATIONS[c.activation]
    values: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[c.family]],
        "model_type": c.family,
        "vocab_size": c.vocab_size,
        "hidden_size": c.embed,
        "intermediate_size": c.mlp,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "max_position_embeddings": c.max_length,
        "hidden_activation" if gemma else "hidden_act": activation,
        "layer_norm_eps" if neox else "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied,
    }
    rope, window = c.ropes[0], max(c.windows)
    if neox:
        return values | {
            "rotary_emb_base": _plain(rope.theta),
            "rotary_pct": rope.dim / c.head_dim,
            "use_parallel_residual": c.parallel_residual,
            "attention_bias": c.qkv_bias,
            "rope_scaling": _rope_scaling(rope, "type"),
        }
    values |= {
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rope_theta": rope.theta,
        # transformers 5 lays it over a table that has a rope_type already, and would not see the older key
        "rope_scaling": _rope_scaling(rope, "rope_type" if gemma else "type"),
    }
    if c.family == "llama":
        values |= {"attention_bias": c.qkv_bias, "mlp_bias": c.mlp_bias}
    if c.family in ("qwen3", "gemma3_text"):
        values |= {"attention_bias": c.qkv_bias}
    if c.family == "mistral":
        values |= {"sliding_window": window or None}
    kinds = {"layer_types": ["sliding_attention" if size else "full_attention" for size in c.windows]}
    if gemma:
        values |= {
            "query_pre_attn_scalar": _plain(round(c.query_scale**-2, 6)),
            "sliding_window": window,
            "rope_local_base_freq": c.ropes[1].theta,
            **kinds,
        }
        period = c.windows.index(0) + 1 if 0 in c.windows else 0
        if period and all((size == 0) == ((i + 1) % period == 0) for i, size in enumerate(c.windows)):
            values["sliding_window_pattern"] = period  # the first releases with Gemma 3 do not know layer_types
    if c.family in ("qwen2", "qwen3") and window:
        first = next(i for i, size in enumerate(c.windows) if size)
        values |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": first, **kinds}
    return values


def _rope_scaling(rope: Rope, key: str) -> dict[str, Any] | None:
    """The table of one rule; key names the rules that are older than the key rope_type."""
    if rope.scaling == "default":
        return None
    if rope.scaling in ("linear", "dynamic"):
        return {key: rope.scaling, "factor": rope.factor}
    values = {
        "rope_type": rope.scaling,
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_length,
    }
    if rope.scaling == "llama3":
        return values | {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
    values |= {"beta_slow": rope.low, "beta_fast": rope.high, "attention_factor": rope.magnitude}
    return values if rope.truncate else values | {"truncate": False}


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number


Part = tuple[tuple[str, ...], Leaf, int | None]  # parameter, its leaf, its layer


def _tensors(config: DecoderConfig) -> dict[str, list[Part]]:
    """File tensor -> the parameters in it; in the order of the layers, which a reader takes them in."""
    leaves = hugging_face_leaves(config)
    found: dict[str, list[Part]] = {}
    for path, leaf in leaves.items():
        if path == ("embedding",):
            found[leaf.name] = [(path, leaf, None)]
    for layer in range(config.layers):
        for path, leaf in leaves.items():
            if leaf.is_stacked:
                found.setdefault(leaf.name.format(layer), []).append((path, leaf, layer))
    for path, leaf in leaves.items():
        if not leaf.is_stacked:
            found.setdefault(leaf.name, [(path, leaf, None)])
    return found


def _file_tensor(params: Mapping[str, Any], parts: list[Part], offset: float, dtype: str) -> np.ndarray:
    """One tensor as the file holds it; `offset` is added to the scales of RMS norms."""
    tensor = np.empty(parts[0][1].shape, jnp.dtype(dtype))
    for path, leaf, layer in parts:
        node: Any = params
        for key in path:
            node = node[key]
        if isinstance(node, Mapping):
            raise ValueError(
                f"{'/'.join(path)}: got quantised weights ({', '.join(node)}), expected floats; load the checkpoint "
                "without quantising it, or take the one that it was made from."
            )
        value = np.asarray(_whole(node) if layer is None else _layer(node, layer))
        if offset and path[-1] == "scale":
            value = value.astype(np.float32) + np.float32(offset)
        leaf.to_file(value, tensor)
    return tensor


# copies, because an array that was looked at keeps its host copy for as long as it lives
_whole = jax.jit(jnp.copy)


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


def _shards(tensors: Mapping[str, list[Part]], itemsize: int, shard_bytes: int) -> list[list[str]]:
    """Tensor names by file, in order; a tensor larger than a shard has one of its own."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, parts in tensors.items():
        size = math.prod(parts[0][1].shape) * itemsize
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
    """The beginning of a safetensors file: 8 bytes of length, then JSON, padded so that tensors start at 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4 refuses files that do not say so
    start, itemsize = 0, np.dtype(jnp.dtype(dtype)).itemsize
    for name, shape in shapes.items():
        end = start + math.prod(shape) * itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
