"""The tokenizer that goes with a model: files copied from a folder, or written from what a GGUF or llama2.c file holds.

A vocabulary inside a model file becomes tokenizer.json, tokenizer_config.json and generation_config.json, which give
the same ids in transformers and, read again, in medjax.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.data.text.loading import tokenizer_of
from medjax.data.text.special_tokens import read_json
from medjax.data.text.tokenizer import Tokenizer

FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def tokenizer_files(
    weights: Sequence[Path], metadata: Mapping[str, Any], vocab_size: int, max_length: int, scratch: Path
) -> tuple[list[Path], dict[str, Any]]:
    """Files to lie beside the weights, without config.json, and the token ids that config.json states.

    weights     files of the checkpoint; metadata: key-value pairs of a GGUF file, else empty
    vocab_size  rows of the embedding; max_length of the model's context
    scratch     an empty folder for files that have to be written first
    """
    folder = weights[0].parent
    if not metadata and any((folder / name).is_file() for name in ("config.json", "medjax.json")):
        return [folder / name for name in FILES if (folder / name).is_file()], _stated(folder)
    try:
        tokenizer = tokenizer_of(weights[0], weights, metadata, vocab_size)
    except FileNotFoundError:
        return [], {}
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.eos_ids) if len(tokenizer.eos_ids) > 1 else next(iter(tokenizer.eos_ids), None),
        "pad_token_id": tokenizer.pad_id,
    }
    ids = {key: value for key, value in ids.items() if value is not None}
    return _written(tokenizer, ids, scratch, max_length), ids


def _stated(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json")
    stated = config.get("text_config", {}) | config
    return {key: stated[key] for key in _TOKEN_IDS if stated.get(key) is not None}


def _written(tokenizer: Tokenizer, ids: Mapping[str, Any], scratch: Path, length: int) -> list[Path]:
    def token(token_id: int | None) -> str | None:
        return None if token_id is None else tokenizer.token_text(token_id)

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token(tokenizer.bos_id),
        "eos_token": tokenizer.eos_token,
        "pad_token": token(tokenizer.pad_id),
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }
    if tokenizer.chat_template:
        settings["chat_template"] = tokenizer.chat_template
    texts = {
        "tokenizer.json": tokenizer.to_json(),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
        "generation_config.json": json.dumps(dict(ids), indent=2) + "\n",
    }
    for name, text in texts.items():
        (scratch / name).write_text(text, "utf-8")
    return [scratch / name for name in texts]
