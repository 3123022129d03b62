"""A language model ready to use: weights in place, its tokenizer, its chat template, and the programs that run it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from medjax.assets import resolve_model, sha256_file
from medjax.data.text.chat import ChatTemplate
from medjax.data.text.tokenizer import Tokenizer, load_tokenizer
from medjax.data.text.vocabulary import tokenizer_from_gguf, tokenizer_from_llama2c
from medjax.infer.programs import Programs
from medjax.parallel.mesh import make_mesh
from medjax.store.loading import LoadedDecoder, load_decoder
from medjax.store.sources import Source

# templates of the Llama 3 kind print today's date; the date they fall back to keeps prompts the same on every day
_TEMPLATE_DATE = datetime(2024, 7, 26)


@dataclass(frozen=True)
class LanguageModel:
    """name as given; path what it resolved to; chat None when there is no template or it was turned off.

    digest  sha256 over the names and sha256 of the files that decide the model's numbers
    """

    name: str
    path: Path
    decoder: LoadedDecoder
    programs: Programs
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    digest: str


def load_model(
    name: str | Path = "smollm2-135m",
    *,
    dtype: str = "float32",
    mesh: str = "",
    chat_template: str = "auto",
    revision: str | None = None,
    backend: str = "blockwise",
    progress: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """Load a model with everything needed to prompt it.

    name           local folder or file, registered name, or hub id (assets.resolve_model)
    dtype          of parameters and computation: float32 or bfloat16
    mesh           devices, for instance "data=4,tensor=2"; empty: every local accelerator along data, or one CPU
    chat_template  auto (the checkpoint's own, if it has one) | none
    progress       called with (parameters done, parameters in all)

    Raises FileNotFoundError or ValueError with one sentence that says what to do.
    """
    import jax

    path = resolve_model(str(name), revision)
    local = jax.local_devices()
    # the CPU is one device with all its cores; more of them exist only where a test asks for fake ones
    devices = make_mesh(mesh) if mesh else make_mesh("", local if local[0].platform != "cpu" else local[:1])
    decoder = load_decoder(path, dtype=dtype, mesh=devices, progress=progress)
    tokenizer = _tokenizer(decoder.source, path)
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {decoder.config.vocab_size} rows; "
            "expected a tokenizer that fits: take the one that came with the weights."
        )
    chat = None
    if chat_template == "auto" and tokenizer.chat_template:
        chat = ChatTemplate(
            tokenizer.chat_template,
            tokenizer.bos_token,
            tokenizer.eos_token,
            name=f"chat template of {path}",
            now=_TEMPLATE_DATE,
        )
    return LanguageModel(
        name=str(name),
        path=path,
        decoder=decoder,
        programs=Programs(decoder, dtype=dtype, backend=backend),
        tokenizer=tokenizer,
        chat=chat,
        digest=files_digest(decoder.source.files),
    )


def files_digest(files: tuple[Path, ...]) -> str:
    """sha256 over the lines "sha256  name" of the files."""
    lines = "".join(f"{sha256_file(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _tokenizer(source: Source, path: Path) -> Tokenizer:
    if source.metadata:
        return tokenizer_from_gguf(source.metadata)
    if path.is_dir() and (path / "config.json").is_file():
        return load_tokenizer(path)
    folder = source.files[0].parent
    beside = sorted(file for file in folder.glob("tok*.bin") if file != source.files[0])
    if len(beside) != 1:
        raise FileNotFoundError(f"{folder}: got {len(beside)} files tok*.bin beside the weights, expected one.")
    return tokenizer_from_llama2c(beside[0])
