"""Adapters on disk: medjax's own folder, the folder of a training run that holds one, and Hugging Face PEFT's.

  FOLDER/adapter.json          {"format": 1, "lora": …, "base": {name, digest}, "tokenizer": {digest}, "model": …}
         adapter.safetensors   float32, stacked over layers, named by their path: layers/attention/query/a

An adapter fits one base model. Its digest is kept and compared before use (`check_base`): on other weights the same
numbers would silently mean something else. PEFT names its base and knows no digest, so there only shapes are checked.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax.assets import sha256_file
from medjax.models.decoder_config import DecoderConfig
from medjax.nn.lora import LoraConfig
from medjax.store.json_file import read_json

FORMAT = 1
PLACES: Mapping[str, tuple[str, str]] = {  # target -> its module below `layers`
    **{target: ("attention", target) for target in ("query", "key", "value", "query_key_value", "out")},
    **{target: ("mlp", target) for target in ("gate", "up", "down")},
}
_MODEL_KEYS = ("family", "vocab_size", "layers", "embed", "mlp", "heads", "kv_heads", "head_dim")


@dataclass(frozen=True)
class Adapter:
    """A trained adapter and what it was trained on.

    leaves            collection `lora` (nn.lora), NumPy or JAX arrays
    base              name of the base model as it was given then
    base_digest       sha256 of the base model's files (`files_digest`), None where unknown
    tokenizer_digest  of the tokenizer, None where unknown
    model             the base model's sizes (`model_sizes`), empty where unknown
    where             the folder it came from, for messages
    """

    lora: LoraConfig
    leaves: Mapping[str, Any]
    base: str
    base_digest: str | None
    tokenizer_digest: str | None
    model: Mapping[str, Any]
    where: str = "adapter"

    @property
    def name(self) -> str:
        """For instance "rank 16, alpha 32, query value"."""
        return f"rank {self.lora.rank}, alpha {self.lora.alpha:g}, {' '.join(self.lora.targets)}"


def model_sizes(config: DecoderConfig) -> dict[str, Any]:
    """What adapter.json keeps of the base model's config."""
    return {key: getattr(config, key) for key in _MODEL_KEYS}


def files_digest(files: tuple[Path, ...]) -> str:
    """sha256 over the lines "sha256  name" of the files."""
    lines = "".join(f"{sha256_file(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def axes(config: DecoderConfig) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Target -> input and output axes of its kernel, for the targets that this model has."""
    c = config
    found: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "query": ((c.embed,), (c.heads, c.head_dim)),
        "key": ((c.embed,), (c.kv_heads, c.head_dim)),
        "value": ((c.embed,), (c.kv_heads, c.head_dim)),
        "out": ((c.heads, c.head_dim), (c.embed,)),
        "up": ((c.embed,), (c.mlp,)),
        "down": ((c.mlp,), (c.embed,)),
    }
    if c.gated:
        found["gate"] = found["up"]
    if c.family == "gpt_neox":
        found["query_key_value"] = ((c.embed,), (3, c.heads, c.head_dim))
    return found


def leaf_shapes(lora: LoraConfig, config: DecoderConfig, where: str = "adapter") -> dict[str, tuple[int, ...]]:
    """Name of every leaf, such as layers/attention/query/a -> its shape.

    Raises ValueError for a target that the model does not have.
    """
    known, shapes = axes(config), {}
    for target in lora.targets:
        if target not in known:
            raise ValueError(
                f"{where}: got target {target}, expected some of {', '.join(known)}, which a {config.family} model "
                "has; take the adapter that was made for this model."
            )
        into, out = known[target]
        name = "/".join(("layers", *PLACES[target]))
        shapes[f"{name}/a"] = (config.layers, *into, lora.rank)
        shapes[f"{name}/b"] = (config.layers, lora.rank, *out)
    return shapes


def check_shapes(adapter: Adapter, config: DecoderConfig) -> None:
    """Raise ValueError, naming sizes or leaves, where the adapter is not one of this model."""
    sizes = model_sizes(config)
    differ = [key for key in sizes if key in adapter.model and adapter.model[key] != sizes[key]]
    if differ:
        raise ValueError(
            f"{adapter.where}: got an adapter of a model with {_sizes(adapter.model, differ)}, expected "
            f"{_sizes(sizes, differ)}; take the base model that it was trained on ({adapter.base})."
        )
    found = dict(_named(adapter.leaves))
    wanted = leaf_shapes(adapter.lora, config, adapter.where)
    for name in sorted(found.keys() | wanted.keys()):
        got = tuple(found[name].shape) if name in found else None
        if got != wanted.get(name):
            raise ValueError(
                f"{adapter.where}: leaf {name}: got {got or 'none'}, expected {wanted.get(name) or 'none'} by the base "
                f"model and {adapter.name}; take the base model that it was trained on ({adapter.base})."
            )


def check_base(adapter: Adapter, name: str, digest: str, tokenizer_digest: str | None = None) -> None:
    """Raise ValueError where the adapter was trained on other weights or another tokenizer.

    name, digest      the base model at hand; digest as `files_digest` gives it
    tokenizer_digest  of its tokenizer, None: not compared

    What the adapter does not know is not compared.
    """
    if adapter.base_digest and adapter.base_digest != digest:
        raise ValueError(
            f"{adapter.where}: got base model {name} with digest {digest[:12]}, expected {adapter.base} with digest "
            f"{adapter.base_digest[:12]}, which it was trained on; name that model, or train an adapter on this one."
        )
    if adapter.tokenizer_digest and tokenizer_digest and adapter.tokenizer_digest != tokenizer_digest:
        raise ValueError(
            f"{adapter.where}: got a tokenizer with digest {tokenizer_digest[:12]} in {name}, expected "
            f"{adapter.tokenizer_digest[:12]}, which it was trained with; take the tokenizer files of {adapter.base}."
        )


def is_adapter(path: str | Path) -> bool:
    """Whether `open_adapter` would find an adapter here, rather than a model."""
    return _kind(Path(path).expanduser())[0] != ""


def base_name(path: str | Path) -> str:
    """The name of the base model that an adapter states; "" where it states none."""
    kind, folder = _found(Path(path).expanduser())
    if kind == "peft":
        return read_json(folder / "adapter_config.json").get("base_model_name_or_path") or ""
    return _section(read_json(folder / "adapter.json"), "base", folder).get("name") or ""


def open_adapter(path: str | Path, config: DecoderConfig) -> Adapter:
    """Read a medjax adapter folder, a training run that holds one, or a PEFT folder.

    config  of the base model; shapes are checked against it

    Raises FileNotFoundError or ValueError that say what was found and what is accepted.
    """
    kind, folder = _found(Path(path).expanduser())
    if kind == "peft":
        from medjax.store.peft import read_peft

        adapter = read_peft(folder, config)
    else:
        adapter = _read(folder)
    check_shapes(adapter, config)
    return adapter


def write_adapter(folder: str | Path, adapter: Adapter) -> Path:
    """Write a medjax adapter folder; an older adapter there is replaced, file by file, weights first.

    Of several processes every one calls, and the first one writes.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    tensors = {name: _on_host(leaf) for name, leaf in _named(adapter.leaves)}
    if jax.process_index() != 0:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "adapter.safetensors.partial"
    save_file(tensors, weights, {"format": "medjax"})
    os.replace(weights, folder / "adapter.safetensors")
    record = {
        "format": FORMAT,
        "lora": asdict(adapter.lora),
        "base": {"name": adapter.base, "digest": adapter.base_digest},
        "tokenizer": {"digest": adapter.tokenizer_digest},
        "model": dict(adapter.model),
    }
    text = folder / "adapter.json.partial"
    text.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", "utf-8")
    os.replace(text, folder / "adapter.json")
    return folder


def load_tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file as float32. Raises ValueError where the file is not whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing, expected the adapter's weights; copy the whole folder again.")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}); copy or save it again.") from None
    return {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}


def tree_of(named: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by "/"-joined path -> nested dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parts, last = name.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def _named(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{path}/{key}" if path else key
        if isinstance(value, Mapping):
            yield from _named(value, name)
        else:
            yield name, value


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        mesh = leaf.sharding.mesh  # type: ignore[attr-defined]
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        leaf = jax.jit(lambda x: x, out_shardings=whole)(leaf)
    return np.ascontiguousarray(leaf, np.float32)


def _kind(path: Path) -> tuple[str, Path]:
    """ "medjax", "peft" or "" and the folder that holds the adapter."""
    for folder in (path, path / "adapter"):
        if (folder / "adapter.json").is_file():
            return "medjax", folder
    if (path / "adapter_config.json").is_file():
        return "peft", path
    return "", path


def check_adapter(path: str | Path) -> None:
    """Raise what `open_adapter` raises where there is no adapter, without reading it."""
    _found(Path(path).expanduser())


def _found(path: Path) -> tuple[str, Path]:
    kind, folder = _kind(path)
    if kind:
        return kind, folder
    accepted = "an adapter folder (adapter.json), a training run with one, or a PEFT folder (adapter_config.json)"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder; expected {accepted}: correct the path.")
    if path.is_file():
        raise ValueError(f"{path}: got a file, expected {accepted}: name the folder that holds it.")
    if (path / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{path}: got a training run without adapter/adapter.json, which is written at its end; let the run finish "
            "(the same command goes on), or take a run that trained an adapter."
        )
    raise FileNotFoundError(f"{path}: no adapter here; expected {accepted}: name the folder that holds it.")


def _read(folder: Path) -> Adapter:
    where = folder / "adapter.json"
    record = read_json(where)
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{where}: got format {record.get('format')!r}, expected {FORMAT}; update medjax, or save it again."
        )
    fields = _section(record, "lora", folder)
    unknown = sorted(set(fields) ^ set(LoraConfig.__dataclass_fields__))
    if unknown:
        raise ValueError(
            f"{where}: lora: got keys {', '.join(fields)}, expected {', '.join(LoraConfig.__dataclass_fields__)}; "
            "update medjax, or save the adapter again."
        )
    try:
        lora = LoraConfig(**fields | {"targets": tuple(fields["targets"])})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: lora: {error}") from None
    base, tokenizer = _section(record, "base", folder), _section(record, "tokenizer", folder)
    return Adapter(
        lora=lora,
        leaves=tree_of(load_tensors(folder / "adapter.safetensors")),
        base=base.get("name") or "unknown",
        base_digest=base.get("digest"),
        tokenizer_digest=tokenizer.get("digest"),
        model=_section(record, "model", folder),
        where=str(folder),
    )


def _section(record: Mapping[str, Any], key: str, folder: Path) -> dict[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{folder / 'adapter.json'}: got no table {key!r}, expected one; copy the whole folder again.")
    return value


def _sizes(values: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} {values[key]}" for key in keys)
