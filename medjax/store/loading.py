"""Weights into place: one file tensor at a time, straight into stacked, sharded arrays.

Every file tensor is read once for each parameter in it (GPT-NeoX's fused query, key and value: three times, any other
once) and cut into the shards of this process's devices. Above the model itself the host holds one stacked parameter,
in the target dtype, and one layer's tensor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from medjax.models.decoder import abstract_params
from medjax.models.decoder_config import DecoderConfig
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Rules, is_box, partition_spec
from medjax.store.names import Leaf
from medjax.store.sources import Source, open_source

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class LoadedDecoder:
    """A decoder in place: config, params (stacked, sharded), the mesh they live on, and where they came from."""

    config: DecoderConfig
    params: Any
    mesh: Mesh
    rules: Rules
    source: Source


def load_decoder(
    path: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    rules: Rules = PRESETS["default"],
    progress: Callable[[int, int], None] | None = None,
) -> LoadedDecoder:
    """Load a checkpoint of any kind that store.sources opens.

    dtype     of the parameters: float32 or bfloat16
    mesh      default: every local device along `data`
    progress  called with (parameters done, parameters in all)

    Raises ValueError or FileNotFoundError that name the tensor and the file.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}; choose one of them.")
    source = open_source(path)
    mesh = mesh or make_mesh("", jax.local_devices())
    abstract = jax.tree_util.tree_leaves_with_path(abstract_params(source.config), is_leaf=is_box)
    params: dict[str, Any] = {}
    for done, (path_keys, box) in enumerate(abstract):
        keys = tuple(key.key for key in path_keys)
        array = _load_leaf(source, source.leaves[keys], box, mesh, rules, np.dtype(jnp.dtype(dtype)))
        node = params
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = array
        if progress:
            progress(done + 1, len(abstract))
    return LoadedDecoder(source.config, params, mesh, rules, source)


def _load_leaf(
    source: Source, leaf: Leaf, box: nn.LogicallyPartitioned, mesh: Mesh, rules: Rules, dtype: np.dtype
) -> jax.Array:
    shape = box.value.shape
    sharding = NamedSharding(mesh, partition_spec(box.names, shape, mesh, rules))
    # replicas share a shard, so it is kept by what it covers
    indices = {str(index): index for index in sharding.addressable_devices_indices_map(shape).values() if index}
    shards = {key: _aligned(sharding.shard_shape(shape), dtype) for key in indices}
    if leaf.is_stacked:
        for layer in range(shape[0]):
            rows = {key: range(*index[0].indices(shape[0])) for key, index in indices.items()}
            wanted = [key for key in indices if layer in rows[key]]
            if wanted:
                tensor = _read(source, leaf, leaf.name.format(layer))
                for key in wanted:
                    shards[key][layer - rows[key].start] = tensor[indices[key][1:]]
    else:
        tensor = _read(source, leaf, leaf.name)
        for key, index in indices.items():
            shards[key][...] = tensor[index]
    return jax.make_array_from_callback(shape, sharding, lambda index: shards[str(index)])


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at a multiple of 64 bytes, which a CPU device takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _read(source: Source, leaf: Leaf, name: str) -> np.ndarray:
    try:
        tensor = source.read(name)
    except KeyError:
        raise ValueError(
            f"{source.location(name)}: tensor {name} is missing; "
            "the checkpoint is incomplete, or its config belongs to another model."
        ) from None
    if tensor.shape != leaf.shape:
        raise ValueError(
            f"{source.location(name)}: tensor {name} has shape {tensor.shape}, expected {leaf.shape} by the config; "
            "take config and weights from the same checkpoint, or download them again."
        )
    if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.dtype.itemsize < 2:
        raise ValueError(
            f"{source.location(name)}: tensor {name} has type {tensor.dtype}, expected float32, float16 or bfloat16; "
            "take the unquantised checkpoint, or its GGUF form."
        )
    return leaf.from_file(tensor)
