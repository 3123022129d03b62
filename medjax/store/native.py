"""A whole model as medjax keeps it: the stacked parameters as they are, no names to map, read straight into any mesh.

  FOLDER/medjax.json          format, kind, config (every field of DecoderConfig), dtype, quantisation, shape and dtype
                              of every array, origin, names of the tokenizer files
         weights/…            arrays (Orbax; store.arrays)
         tokenizer.json, …    copied

Quantised kernels stay quantised. The folder is written under another name and renamed at the end: whole or absent.
"""

import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from medjax.models.decoder import abstract_params
from medjax.models.decoder_config import DecoderConfig
from medjax.nn.rope import Rope
from medjax.parallel.sharding import Rules, is_box, partition_spec
from medjax.store import arrays
from medjax.store.model_folder import RECORD, WEIGHTS, model_files, new_folder, read_params, read_record, write_model
from medjax.store.names import Leaf


def is_native(folder: str | Path) -> bool:
    """Whether a folder holds a model in this form."""
    return (Path(folder) / RECORD).is_file()


def save_native(
    folder: str | Path,
    config: DecoderConfig,
    params: Any,
    tokenizer_files: Iterable[str | Path] = (),
    *,
    quantisation: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model; every process of a run calls it, and all see the same file system.

    params           nested dicts of jax or NumPy arrays, stacked over layers
    tokenizer_files  copied beside the weights under their own names
    quantisation     how the kernels are stored (nn.quant.KINDS); None: as floats
    origin           plain JSON values that say where the weights came from
    Raises ValueError when the folder exists, a tokenizer file is missing, or params are not those of config; OSError
    when the disk is full. Nothing is left then.
    """
    folder, files = new_folder(folder), [Path(file) for file in tokenizer_files]
    for file in files:
        if not file.is_file() or file.name in (RECORD, WEIGHTS):
            raise ValueError(f"{file}: got no such file or a taken name, expected a tokenizer file; correct its path.")
    leaves = arrays.named_leaves(params)
    described = arrays.described(leaves)
    _check_shapes(described, config, quantisation, "params")
    fields = {
        "config": dataclasses.asdict(config),
        "dtype": described["embedding"]["dtype"],
        "quantisation": quantisation,
        "leaves": described,
        "origin": dict(origin or {}),
        "tokenizer_files": [file.name for file in files],
    }
    stacked = {name for name in leaves if _is_stacked(name)}
    return write_model(folder, "decoder", fields, leaves, files, by_first_axis=stacked)


class NativeSource:
    """A model folder written by save_native.

    `load` reads what each device holds; as a store.sources.Source it also gives one layer of one parameter at a time.
    """

    metadata: Mapping[str, Any] = {}

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        where = str(self.folder / RECORD)
        self.record = read_record(self.folder, ("decoder",), ("config", "dtype", "quantisation", "leaves"))
        self.config = config_from_json(self.record["config"], where)
        self.quantisation: str | None = self.record["quantisation"]
        self.dtype: str = self.record["dtype"]
        _check_shapes(self.record["leaves"], self.config, self.quantisation, where)
        self.files = model_files(self.folder)
        self.leaves: Mapping[tuple[str, ...], Leaf] = {
            tuple(name.split("/")): _leaf(name, tuple(leaf["shape"])) for name, leaf in self.record["leaves"].items()
        }

    def load(
        self,
        mesh: Mesh,
        rules: Rules,
        dtype: str | None = None,
        *,
        float32: Container[str] = frozenset(),
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """The parameters, stacked and sharded; one array after the other, and of each only this process's shards.

        dtype     of everything that is not quantised, default: as stored
        float32   names such as "layers/mlp_norm/scale" that are float32 whatever dtype says
        progress  called with (arrays done, arrays in all)
        Raises ValueError naming the folder when its files are damaged.
        """
        wanted = _abstract(self.config, self.quantisation, mesh, rules, dtype or self.dtype, float32)
        return read_params(self.folder, wanted, progress)

    def read(self, name: str) -> np.ndarray:
        """A parameter by name, or one layer of it by name/layer. Raises KeyError when there is none."""
        import tensorstore

        stored, layer = name, None
        if stored not in self.record["leaves"]:
            stored, _, number = name.rpartition("/")
            if stored not in self.record["leaves"]:
                raise KeyError(name)
            layer = int(number)
        base = f"file://{self.folder.absolute() / WEIGHTS}/"
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": base, "path": f"{stored}/"},
            "fill_missing_data_reads": False,  # or a chunk that is missing would be read as zeros
        }
        try:
            array = tensorstore.open(spec, read=True, open=True).result()
            return np.asarray((array if layer is None else array[layer]).read().result())
        except Exception as error:
            raise ValueError(
                f"{self.folder / WEIGHTS}: {stored} cannot be read ({arrays.reason(error)}); files are missing or "
                "damaged: copy the folder again."
            ) from error

    def location(self, name: str) -> str:
        return str(self.folder / WEIGHTS)


def config_from_json(found: Mapping[str, Any], where: str = RECORD) -> DecoderConfig:
    """The DecoderConfig that dataclasses.asdict and JSON made into a table. Raises ValueError naming the field."""

    def checked(table: Any, kind: type, at: str) -> dict[str, Any]:
        names: Any = {field.name for field in dataclasses.fields(kind)}
        if not isinstance(table, Mapping) or table.keys() != names:
            got = set(table) if isinstance(table, Mapping) else set()
            raise ValueError(
                f"{where}: {at} lacks {', '.join(sorted(names - got)) or 'nothing'} and has unknown "
                f"{', '.join(sorted(got - names)) or 'nothing'}, expected every field of {kind.__name__}; use the "
                "version of medjax that wrote it, or convert the model again."
            )
        return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}

    fields = checked(found, DecoderConfig, "config")
    fields["ropes"] = tuple(Rope(**checked(rope, Rope, "config.ropes")) for rope in fields["ropes"])
    try:
        return DecoderConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _leaf(name: str, shape: tuple[int, ...]) -> Leaf:
    return Leaf(f"{name}/{{}}", shape[1:]) if _is_stacked(name) else Leaf(name, shape)


def _is_stacked(name: str) -> bool:
    return name.startswith("layers/")


@functools.lru_cache(maxsize=8)  # a model is traced for it
def _boxes(config: DecoderConfig, quantisation: str | None) -> Mapping[str, Any]:
    """Leaf name -> its shape with logical axes, as the model declares it."""
    return arrays.named_leaves(abstract_params(config, quantisation), is_leaf=is_box)


def _abstract(
    config: DecoderConfig, quantisation: str | None, mesh: Mesh, rules: Rules, dtype: str, float32: Container[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Leaf name -> shape, dtype and place; the parts of quantised kernels keep their own dtypes."""
    plain = _boxes(config, None)

    def wanted(name: str, box: Any) -> jax.ShapeDtypeStruct:
        kind = jnp.dtype("float32" if name in float32 else dtype) if name in plain else box.value.dtype
        place = NamedSharding(mesh, partition_spec(box.names, box.value.shape, mesh, rules))
        return jax.ShapeDtypeStruct(box.value.shape, kind, sharding=place)

    return {name: wanted(name, box) for name, box in _boxes(config, quantisation).items()}


def _check_shapes(found: Mapping[str, Any], config: DecoderConfig, quantisation: str | None, where: str) -> None:
    """Raise ValueError unless the described leaves are the parameters of this config, whatever float they are."""
    plain = _boxes(config, None)
    described = {name: dict(leaf) for name, leaf in found.items()}
    expected = arrays.described({name: box.value for name, box in _boxes(config, quantisation).items()})
    for name in described.keys() & plain.keys():
        if jnp.issubdtype(jnp.dtype(described[name]["dtype"]), jnp.floating):
            described[name]["dtype"] = "float32"
    advice = "take config, quantisation and parameters of one model, or convert it again"
    arrays.check_leaves(described, expected, where, advice)
