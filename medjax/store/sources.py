"""Checkpoint files as they come: a folder of safetensors, a GGUF file, a llama2.c file, medjax's own folder.

A `Source` knows its DecoderConfig, which parameter is which tensor (store.names), and reads one tensor at a time as
NumPy. Pickle formats are refused. `open_source(path)` chooses by what the path holds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medjax.models.decoder_config import DecoderConfig, from_hugging_face
from medjax.store.json_file import read_json
from medjax.store.names import Leaf, hugging_face_leaves
from medjax.store.names import Path as LeafPath

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Source(Protocol):
    """A checkpoint that can be read tensor by tensor."""

    config: DecoderConfig
    leaves: Mapping[LeafPath, Leaf]
    files: tuple[Path, ...]  # everything whose bytes decide the model's numbers
    metadata: Mapping[str, Any]  # GGUF key-value pairs; empty elsewhere

    def read(self, name: str) -> np.ndarray:
        """The tensor as floats (or bfloat16), in the file's [out, in] order. KeyError when it is missing."""

    def location(self, name: str) -> str:
        """The file in which the tensor lies, for messages."""


def open_source(path: str | Path) -> Source:
    """Open a checkpoint: a Hugging Face folder, a folder of store.native, a .gguf file, or a llama2.c .bin file.

    Raises FileNotFoundError or ValueError that say what was found and what is accepted.
    """
    from medjax.store.gguf import GgufSource, shard_count, split_message
    from medjax.store.llama2c import Llama2cSource, is_llama2c
    from medjax.store.native import NativeSource, is_native

    path = Path(path)
    if path.is_file():
        if path.suffix == ".gguf":
            return GgufSource(path)
        if is_llama2c(path):
            return Llama2cSource(path)
        if path.suffix in PICKLES:
            raise ValueError(_pickle_message(path))
        raise ValueError(
            f"{path}: got a file of unknown kind, expected .gguf or a folder with config.json; "
            "for safetensors, name the folder that holds them and their config.json."
        )
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a checkpoint folder or a .gguf file: correct the path."
        )
    if is_native(path):
        return NativeSource(path)
    if (path / "config.json").is_file():
        return HuggingFaceSource(path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return GgufSource(ggufs[0])
    if len(ggufs) > 1:
        if all(shard_count(file) > 1 for file in ggufs):
            raise ValueError(split_message(ggufs[0]))
        raise ValueError(f"{path}: got {len(ggufs)} GGUF files ({ggufs[0].name}, …); name one of them.")
    binaries = [file for file in sorted(path.glob("*.bin")) if is_llama2c(file)]
    if len(binaries) == 1:
        return Llama2cSource(binaries[0])
    raise FileNotFoundError(
        f"{path}: no config.json and no .gguf file here; expected a checkpoint folder: name the folder or file that "
        "holds the weights, or download them again."
    )


class HuggingFaceSource:
    """config.json with model.safetensors, or with model.safetensors.index.json and its shards."""

    metadata: Mapping[str, Any] = {}

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = from_hugging_face(read_json(folder / "config.json"), str(folder / "config.json"))
        self.leaves = hugging_face_leaves(self.config)
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            table = read_json(index).get("weight_map")
            if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
                raise ValueError(
                    f"{index}: no usable weight_map; expected a table from tensor name to file name: "
                    "download the file again."
                )
            for file in set(table.values()):
                if Path(file).name != file:
                    raise ValueError(
                        f"{index}: shard {file!r} is not a plain file name; the index may not leave its folder: "
                        "put the shards beside it and correct the names, or take the published files."
                    )
            self._file_of = {name: folder / file for name, file in table.items()}
        elif (folder / "model.safetensors").is_file():
            file = folder / "model.safetensors"
            self._file_of = dict.fromkeys(self._open(file).keys(), file)
        else:
            pickles = [file for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
            if pickles:
                raise ValueError(_pickle_message(pickles[0]))
            raise FileNotFoundError(
                f"{folder}: no model.safetensors and no model.safetensors.index.json, expected one of them beside "
                "config.json; download the weights too."
            )
        self.files = (folder / "config.json", *sorted(set(self._file_of.values())))

    def _open(self, file: Path):
        from safetensors import SafetensorError, safe_open

        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing, though the index names it; download the checkpoint again.")
        try:
            return safe_open(file, framework="numpy")
        except SafetensorError as error:
            raise ValueError(
                f"{file}: not a whole safetensors file ({_first_cut(file)}: {error}); download it again."
            ) from None

    def _resolve(self, name: str) -> str:
        """Checkpoints of image-and-text Gemma 3 put the decoder under another prefix."""
        for prefix in ("", "language_model.", "model.language_model."):
            candidate = prefix + (name.removeprefix("model.") if prefix.startswith("model.") else name)
            if candidate in self._file_of:
                return candidate
        raise KeyError(name)

    def read(self, name: str) -> np.ndarray:
        name = self._resolve(name)
        file = self._file_of[name]
        with self._open(file) as reader:
            if name not in set(reader.keys()):
                raise KeyError(name)
            return reader.get_tensor(name)

    def location(self, name: str) -> str:
        try:
            return str(self._file_of[self._resolve(name)])
        except KeyError:
            return str(self.folder)


def _first_cut(file: Path) -> str:
    """Where a safetensors file that cannot be opened ends: 8 bytes of header size, the header, then the tensors."""
    total = file.stat().st_size
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = stream.read(size) if size < total else b""
    try:
        tensors = {
            name: entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        return "its header is cut or damaged"
    cut = sorted((end, name) for name, end in tensors.items() if end > total - 8 - size)
    return f"the file ends inside tensor {cut[0][1]}" if cut else "its header does not fit its size"


def _pickle_message(path: Path) -> str:
    return (
        f"{path}: pickle files can run code when read and are refused; convert once where you trust the file: "
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{path.parent}').save_pretrained('{path.parent}-safetensors', safe_serialization=True)\""
    )
