"""One conversion, from settings to a folder: the story that `python -m medjax.convert` tells.

what is the model, what the adapter -> where does it go -> check what needs no weights -> load -> merge -> write
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from medjax.assets import resolve_model
from medjax.convert.settings import ADAPTERS, ConvertSettings
from medjax.data.text.tokenizer_files import tokenizer_files
from medjax.nn.merging import merge
from medjax.parallel.mesh import make_mesh
from medjax.report.progress import ProgressBar
from medjax.store.adapters import (
    Adapter,
    base_name,
    check_base,
    files_digest,
    is_adapter,
    model_sizes,
    open_adapter,
    write_adapter,
)
from medjax.store.exporting import check_free, hugging_face_config, new_folder, save_hugging_face
from medjax.store.loading import load_decoder
from medjax.store.native import save_native
from medjax.store.peft import write_peft
from medjax.store.runs import named
from medjax.store.sources import Source, open_source

Say = Callable[[str], None]


def convert(settings: ConvertSettings, *, say: Say = lambda line: None, progress: bool = False) -> Path:
    """Write a model or an adapter in another form; returns the folder.

    say       called with one line for the user at a time
    progress  show progress bars on stderr

    Raises ValueError or FileNotFoundError with one sentence that says what to do; OSError when the disk is full.
    """
    place = named(settings.out)
    check_free(place)
    name, adapter_path = _inputs(settings)
    path = resolve_model(name, settings.revision)
    source = open_source(path)
    adapter = None
    if adapter_path:
        adapter = _adapter(adapter_path, name, source, say)
    say(f"writing to {place}")
    if settings.to in ADAPTERS:
        assert adapter is not None
        _write_adapter(settings, place, adapter, source, say)
    else:
        _write_weights(settings, place, name, path, source, adapter, say, progress)
    return place


def _inputs(settings: ConvertSettings) -> tuple[str, str | None]:
    """Name of the model, and the adapter's folder."""
    if is_adapter(settings.source):
        if settings.adapter:
            raise ValueError(
                f"source: got the adapter {settings.source} and --adapter {settings.adapter}, expected a model and an "
                "adapter; name the model first."
            )
        name = base_name(settings.source)
        if not name or name == "unknown":
            raise ValueError(
                f"{settings.source}: got an adapter that does not name its model, expected one that does; name it: "
                f"medjax.convert MODEL --adapter {settings.source}"
            )
        try:
            resolve_model(name, settings.revision)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{settings.source}: its model {name} cannot be had here ({error}) Name it where it lies: "
                f"medjax.convert MODEL --adapter {settings.source}"
            ) from error
        return name, settings.source
    if settings.to in ADAPTERS and not settings.adapter:
        raise ValueError(
            f"--to {settings.to}: got no adapter, expected one; name it with --adapter, or write the model with "
            "--to hf or --to medjax."
        )
    return settings.source, settings.adapter


def _adapter(path: str, name: str, source: Source, say: Say) -> Adapter:
    """The adapter, checked against the model; one that knows no digest (PEFT's) gets this model's."""
    adapter = open_adapter(path, source.config)
    say(f"adapter {path}: {adapter.name}")
    digest = files_digest(source.files)
    check_base(adapter, name, digest)
    if adapter.base_digest:
        return adapter
    if adapter.base != name:
        say(f"note: {path} was trained on {adapter.base} and keeps no digest; taken for an adapter of {name}")
    return replace(adapter, base=name, base_digest=digest, model=model_sizes(source.config))


def _write_adapter(settings: ConvertSettings, place: Path, adapter: Adapter, source: Source, say: Say) -> None:
    with new_folder(place) as folder:
        if settings.to == "peft":
            write_peft(folder, adapter, source.config)
        else:
            write_adapter(folder, adapter)
    say(f"wrote {place} ({_size(place)})")
    if settings.to == "adapter":
        say(f"next: python -m medjax.eval --model {adapter.base} --adapter {place}")
        return
    parts = [target for target in ("query", "key", "value") if target in adapter.lora.targets]
    if source.config.family == "gpt_neox" and parts:
        say(
            f"note: {', '.join(parts)} became one query_key_value adapter of rank {adapter.lora.rank * len(parts)}, "
            "its alpha grown so that the model stays the same"
        )
    say(f'next: peft.PeftModel.from_pretrained(model, "{place}"), the model being {adapter.base} in Hugging Face form')


def _write_weights(
    settings: ConvertSettings,
    place: Path,
    name: str,
    path: Path,
    source: Source,
    adapter: Adapter | None,
    say: Say,
    progress: bool,
) -> None:
    if settings.to == "hf":
        hugging_face_config(source.config)  # refused before anything is loaded
    dtype = _dtype(settings, source)
    with ProgressBar(progress, "loading", "tensor") as bar:
        mesh = make_mesh("", jax.devices()[:1])
        decoder = load_decoder(path, dtype=dtype, mesh=mesh, progress=bar.reach, quantisation=settings.quantisation)
    params = decoder.params
    if adapter:
        params = merge(params, adapter.leaves, adapter.lora.scale, donate=True)
        if dtype == "bfloat16":
            say("note: merged weights are rounded to bfloat16; --dtype float32 keeps what is smaller")
    with tempfile.TemporaryDirectory() as scratch:
        files, ids = tokenizer_files(
            source.files, source.metadata, source.config.vocab_size, source.config.max_length, Path(scratch)
        )
        if not files:
            say(f"note: no tokenizer beside {path}; put its files into {place}")
        if settings.to == "hf":
            with new_folder(place) as folder, ProgressBar(progress, "writing", "tensor") as bar:
                save_hugging_face(
                    folder,
                    decoder.config,
                    params,
                    dtype=dtype,
                    shard_bytes=int(settings.shard_gb * 1e9),
                    extra=ids,
                    tokenizer_files=files,
                    progress=bar.reach,
                )
        else:
            if place.is_dir():
                place.rmdir()
            place.parent.mkdir(parents=True, exist_ok=True)
            if (path / "config.json").is_file():  # some tokenizers have their special ids there alone
                files = [*files, path / "config.json"]
            origin = {"name": name, "adapter": adapter.where if adapter else None}
            save_native(place, decoder.config, params, files, quantisation=decoder.quantisation, origin=origin)
    say(f"wrote {place} ({_size(place)}, {decoder.quantisation or dtype})")
    say(f"next: python -m medjax.eval --model {place}")


def _dtype(settings: ConvertSettings, source: Source) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    leaf = source.leaves["layers", "attention_norm", "scale"]
    return "bfloat16" if source.read(leaf.name.format(0)).dtype == jnp.bfloat16 else "float32"


def _size(folder: Path) -> str:
    size = sum(os.path.getsize(file) for file in folder.rglob("*") if file.is_file())
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
