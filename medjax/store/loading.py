"""Weights into place: one file tensor at a time, straight into stacked, sharded arrays, quantised on the way if asked.

Every file tensor is read once for each parameter in it (GPT-NeoX's fused query, key and value: three times, any other
once) and cut into the shards of this process's devices. Above the model itself the host holds one stacked parameter,
in the target dtype, and one layer's tensor.
"""

import math
from collections.abc import Callable, Container
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
from medjax.nn.quant import quantise
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Rules, is_box, partition_spec
from medjax.store.names import Leaf
from medjax.store.native import NativeSource
from medjax.store.sources import Source, open_source

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class LoadedDecoder:
    """A decoder in place: config, params (stacked, sharded), the mesh they live on, and where they came from.

    quantisation  how the kernels of its projections are stored (nn.quant.KINDS); None: as floats
    """

    config: DecoderConfig
    params: Any
    mesh: Mesh
    rules: Rules
    source: Source
    quantisation: str | None = None


def load_decoder(
    path: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    rules: Rules = PRESETS["default"],
    quantisation: str | None = None,
    float32: Container[str] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
) -> LoadedDecoder:
    """Load a checkpoint of any kind that store.sources opens.

    dtype     of the parameters: float32 or bfloat16
    mesh      default: every local device along `data`
    quantisation  of nn.quant.KINDS: the kernels of all projections are quantised, tensor by tensor; None: they stay
                  as the checkpoint has them (a medjax folder may hold them quantised)
    float32   paths such as "layers/norm/scale" that are float32 whatever dtype says
    progress  called with (parameters done, parameters in all)

    Raises ValueError or FileNotFoundError that name the tensor and the file.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}; choose one of them.")
    source = open_source(path)
    mesh = mesh or make_mesh("", jax.local_devices())
    stored = source.quantisation if isinstance(source, NativeSource) else None
    if stored and quantisation not in (None, stored):
        raise ValueError(
            f"{path}: got kernels that are stored as {stored}, expected floats to quantise to {quantisation}; leave "
            "the quantisation out, or take the checkpoint they were made from."
        )
    params: dict[str, Any] = {}
    if isinstance(source, NativeSource) and quantisation in (None, stored):
        # stacked as it lies there, so that a process reads its own shards only
        params = source.load(mesh, rules, dtype, float32=float32, progress=progress)
        return LoadedDecoder(source.config, params, mesh, rules, source, stored)
    work = _by_source_leaf(abstract_params(source.config, quantisation))
    for done, (keys, box) in enumerate(work.items()):
        own = np.dtype(jnp.dtype("float32" if "/".join(keys) in float32 else dtype))
        node = params
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        array: Any
        if isinstance(box, dict):
            array = _load_quantised(source, source.leaves[keys], box, mesh, rules, quantisation or "")
        else:
            array = _load_leaf(source, source.leaves[keys], box, mesh, rules, own)
        node[keys[-1]] = array
        if progress:
            progress(done + 1, len(work))
    return LoadedDecoder(source.config, params, mesh, rules, source, quantisation)


def _by_source_leaf(tree: dict[str, Any], at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Path -> box, or for a quantised kernel the dict of its boxes."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        if is_box(value) or key == "kernel":
            found[*at, key] = value
        else:
            found |= _by_source_leaf(value, (*at, key))
    return found


def _load_leaf(
    source: Source, leaf: Leaf, box: nn.LogicallyPartitioned, mesh: Mesh, rules: Rules, dtype: np.dtype
) -> jax.Array:
    shards = _Shards(box, mesh, rules, dtype)
    if leaf.is_stacked:
        for layer in range(box.value.shape[0]):
            if shards.hold(layer):
                shards.fill(layer, _read(source, leaf, leaf.name.format(layer)))
    else:
        shards.fill(None, _read(source, leaf, leaf.name))
    return shards.array()


def _load_quantised(
    source: Source, leaf: Leaf, boxes: dict[str, nn.LogicallyPartitioned], mesh: Mesh, rules: Rules, kind: str
) -> dict[str, jax.Array]:
    """The arrays of a quantised kernel; at any time one layer's tensor is there in full."""
    parts = {name: _Shards(box, mesh, rules, np.dtype(box.value.dtype)) for name, box in boxes.items()}
    layers, out = boxes["codes"].value.shape[:2]
    for layer in range(layers):
        if any(part.hold(layer) for part in parts.values()):
            kernel = _read(source, leaf, leaf.name.format(layer))  # input axes first
            matrix = kernel.reshape(-1, out).T
            for name, array in quantise(kind, np.ascontiguousarray(matrix)).items():
                parts[name].fill(layer, np.asarray(array))
    return {name: part.array() for name, part in parts.items()}


class _Shards:
    """What this process's devices hold of one stacked parameter, filled layer by layer on the host."""

    def __init__(self, box: nn.LogicallyPartitioned, mesh: Mesh, rules: Rules, dtype: np.dtype):
        self._shape = shape = box.value.shape
        self._sharding = NamedSharding(mesh, partition_spec(box.names, shape, mesh, rules))
        # replicas share a shard, so it is kept by what it covers
        indices = self._sharding.addressable_devices_indices_map(shape).values()
        self._indices = {str(index): index for index in indices if index is not None}
        self._parts = {key: _aligned(self._sharding.shard_shape(shape), dtype) for key in self._indices}

    def _layers(self, key: str) -> range:
        return range(*self._indices[key][0].indices(self._shape[0]))

    def hold(self, layer: int) -> bool:
        """Whether any device here needs this layer."""
        return any(layer in self._layers(key) for key in self._indices)

    def fill(self, layer: int | None, tensor: np.ndarray) -> None:
        """Put in one layer's values, or with None the whole parameter's."""
        for key, index in self._indices.items():
            if layer is None:
                self._parts[key][...] = tensor[index]
            elif layer in self._layers(key):
                self._parts[key][layer - self._layers(key).start] = tensor[index[1:]]

    def array(self) -> jax.Array:
        return jax.make_array_from_callback(self._shape, self._sharding, lambda index: self._parts[str(index)])


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
