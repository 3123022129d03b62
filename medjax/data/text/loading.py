"""The tokenizer that belongs to a checkpoint, wherever that kind of checkpoint keeps it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.data.text.tokenizer import Tokenizer, load_tokenizer
from medjax.data.text.vocabulary import tokenizer_from_gguf, tokenizer_from_llama2c

_FOLDER_RECORDS = ("config.json", "medjax.json")  # of a Hugging Face folder, of a medjax folder


def tokenizer_of(path: Path, files: Sequence[Path], metadata: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint.

    path        what was opened
    files       that hold its weights; metadata: key-value pairs of a GGUF file, else empty
    vocab_size  rows of the model's embedding

    Raises FileNotFoundError or ValueError where there is none, or it has more tokens than the embedding has rows.
    """
    if metadata:
        tokenizer = tokenizer_from_gguf(metadata)
    elif path.is_dir() and any((path / record).is_file() for record in _FOLDER_RECORDS):
        tokenizer = load_tokenizer(path)
    else:
        folder = files[0].parent
        beside = sorted(file for file in folder.glob("tok*.bin") if file != files[0])
        if len(beside) != 1:
            raise FileNotFoundError(
                f"{folder}: got {len(beside)} files tok*.bin beside the weights, expected one; put the tokenizer there."
            )
        tokenizer = tokenizer_from_llama2c(beside[0])
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {vocab_size} rows; "
            "expected a tokenizer that fits: take the one that came with the weights."
        )
    return tokenizer
