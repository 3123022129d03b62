"""Encoders on disk: the ECG masked autoencoder and the predictors made from it, with all that raw files need.

  RUN/model/medjax.json   format, kind, config, shape and dtype of every array, facts   (store.model_folder)
            weights/…     arrays

`facts` is what a prediction from a raw file needs besides the weights, and what must be known of where it came from:
preprocessing, targets, calibration, thresholds, digests and split of the training data. A model whose facts were lost
is of no use, so they lie in the same file as its config. `encoder_folder` tells what kind of model a path holds without
JAX, so that a command can choose its settings before it loads anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medjax.store.json_file import read_json
from medjax.store.model_folder import (
    RECORD,
    model_files,
    new_folder,
    read_params,
    read_record,
    write_model,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from medjax.parallel.sharding import Rules

KINDS = ("ecg_mae", "ecg_predictor")
_FIELDS = ("config", "leaves", "facts")


@dataclass(frozen=True)
class Encoder:
    """A model read from disk.

    kind    of KINDS
    config  plain dict, of models.ecg_mae.MaeConfig or models.predictor.PredictorConfig
    facts   plain JSON values
    params  nested dicts of arrays, stacked over layers, sharded
    folder  where it was read
    """

    kind: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    params: Any
    folder: Path

    def digest(self) -> str:
        """sha256 over the names and sha256 of its files."""
        from medjax.store.adapters import files_digest

        return files_digest(model_files(self.folder))


def encoder_folder(path: str | Path) -> Path | None:
    """The folder of an encoder that a path names: a run, its model folder, or a folder of that form; None: no encoder.

    Raises ValueError naming the record when it is there and cannot be read.
    """
    path = Path(path).expanduser()
    for folder in (path, path / "model"):
        if (folder / RECORD).is_file():
            return folder if read_json(folder / RECORD).get("kind") in KINDS else None
    return None


def save_encoder(
    folder: str | Path, kind: str, config: Mapping[str, Any], params: Any, facts: Mapping[str, Any]
) -> Path:
    """Write a model; every process of a run calls it, and all see the same file system.

    kind    of KINDS
    config  plain dict of the model's config
    params  nested dicts of jax or NumPy arrays
    facts   plain JSON values

    Raises ValueError when the folder exists, params are not those of config, or config and facts are not JSON; OSError
    when the disk is full. Nothing is left then.
    """
    from medjax.store import arrays

    folder = new_folder(folder)
    leaves = arrays.named_leaves(params)
    described = arrays.described(leaves)
    _check_shapes(described, kind, config, "params")
    return write_model(folder, kind, {"config": dict(config), "leaves": described, "facts": dict(facts)}, leaves)


def load_encoder(
    folder: str | Path,
    mesh: "Mesh",
    rules: "Rules",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Encoder:
    """Read a model straight into a mesh, whatever mesh saved it.

    folder    of `encoder_folder`, or a run that holds one
    progress  called with (arrays done, arrays in all)

    Raises FileNotFoundError when there is no model, ValueError naming the file when it cannot be used.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from medjax.parallel.sharding import partition_spec

    found = encoder_folder(folder)
    if found is None:
        what = "a model of another kind" if (Path(folder) / RECORD).is_file() else f"no {RECORD}"
        raise FileNotFoundError(
            f"{folder}: got {what}, expected a model of kind {' or '.join(KINDS)}; name the folder of a training run "
            "on ECGs, or the folder named model in it."
        )
    found = found.absolute()  # as Orbax wants it
    record = read_record(found, KINDS, _FIELDS)
    kind, config, leaves = record["kind"], record["config"], record["leaves"]
    boxes = _check_shapes(leaves, kind, config, str(found / RECORD))
    wanted = {
        name: jax.ShapeDtypeStruct(
            box.value.shape,
            jnp.dtype(leaves[name]["dtype"]),
            sharding=NamedSharding(mesh, partition_spec(box.names, box.value.shape, mesh, rules)),
        )
        for name, box in boxes.items()
    }
    return Encoder(kind, config, record["facts"], read_params(found, wanted, progress), found)


def _check_shapes(found: Mapping[str, Any], kind: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Leaf name -> shape with logical axes, as the model declares it.

    Raises ValueError where the leaves found differ.
    """
    import jax.numpy as jnp

    from medjax.parallel.sharding import is_box
    from medjax.store import arrays

    boxes = arrays.named_leaves(_abstract_params(kind, config, where), is_leaf=is_box)
    described = {name: dict(leaf) for name, leaf in found.items()}
    for name in described.keys() & boxes.keys():  # whatever float it is
        if jnp.issubdtype(jnp.dtype(described[name]["dtype"]), jnp.floating):
            described[name]["dtype"] = "float32"
    expected = arrays.described({name: box.value for name, box in boxes.items()})
    arrays.check_leaves(described, expected, where, "take config and parameters of one model, or train it again")
    return boxes


def _abstract_params(kind: str, config: Mapping[str, Any], where: str) -> Any:
    """The boxed parameters of a model of this config."""
    try:
        if kind == "ecg_mae":
            from medjax.models import ecg_mae

            return ecg_mae.abstract_variables(ecg_mae.MaeConfig.from_dict(config))["params"]
        if kind == "ecg_predictor":
            from medjax.models import predictor

            return predictor.abstract_variables(predictor.PredictorConfig.from_dict(config))["params"]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}; name the kind of model that is saved.")
