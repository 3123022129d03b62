"""Hugging Face folders for the peers, made once by transformers; runs in a peer's own environment.

converted     the float32 folder of a GGUF file, tokenizer included
random_model  the folder of a model of any shape with random weights, for sizes that nobody needs to download
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers


def converted(gguf: Path, folder: Path) -> Path:
    """The float32 Hugging Face folder made from a GGUF file; made once, in a folder of its own, then renamed."""
    if (folder / "config.json").is_file():
        return folder
    print(f"peer: converting {gguf.name} to {folder} (once)", flush=True)
    quantised = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # with it, save_pretrained refuses
    config.dtype = torch.float32
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    partial = _partial(folder)
    model.to(torch.float32).save_pretrained(partial)
    tokenizer_of(gguf).save_pretrained(partial)
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    (partial / "source.json").write_text(json.dumps({"file": gguf.name, "sha256": digest}), "utf-8")
    return _renamed(partial, folder)


def random_model(config: dict[str, Any], folder: Path, dtype: torch.dtype, device: str) -> Path:
    """The folder of a model with transformers' own random initialisation, seed 0; config: content of a config.json."""
    if (folder / "config.json").is_file():
        return folder
    print(f"peer: making a random model in {folder} (once)", flush=True)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config, dtype=dtype), dtype=dtype
        )
    partial = _partial(folder)
    model.save_pretrained(partial)
    return _renamed(partial, folder)


def _partial(folder: Path) -> Path:
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    return partial


def _renamed(partial: Path, folder: Path) -> Path:
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return folder


def tokenizer_of(gguf: Path) -> transformers.PreTrainedTokenizerFast:
    """The byte-level BPE of SmolLM2 from the metadata of its GGUF file; adds no BOS."""
    from gguf import GGUFReader
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    fields = GGUFReader(gguf).fields
    found = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre", "tokens", "merges")}
    if (found["model"], found["pre"]) != ("gpt2", "smollm"):
        raise ValueError(
            f"{gguf}: got tokenizer {found['model']}/{found['pre']}, expected gpt2/smollm; give the Hugging Face "
            "folder of this checkpoint instead."
        )
    tokens = found["tokens"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pipeline = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in found["merges"]]))
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    pipeline.decoder = decoders.ByteLevel()
    special = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"].contents()]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return transformers.PreTrainedTokenizerFast(tokenizer_object=pipeline, **special)
