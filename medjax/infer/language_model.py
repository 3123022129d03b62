"""A language model ready to use: weights in place, its tokenizer, its chat template, and the programs that run it.

`load_model` loads the base; `with_adapter` gives the same model with an adapter beside its weights, which are shared
and stay as they are.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax.assets import resolve_model
from medjax.data.text.chat import ChatTemplate
from medjax.data.text.loading import tokenizer_of
from medjax.data.text.tokenizer import Tokenizer
from medjax.infer.programs import Programs
from medjax.models.decoder import abstract_variables
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import shardings
from medjax.store.adapters import Adapter, check_base, files_digest, open_adapter
from medjax.store.loading import LoadedDecoder, load_decoder

# templates of the Llama 3 kind print today's date; the date they fall back to keeps prompts the same on every day
_TEMPLATE_DATE = datetime(2024, 7, 26)


@dataclass(frozen=True)
class LanguageModel:
    """name as given; path what it resolved to; chat None when there is no template or it was turned off.

    digest          sha256 over the names and sha256 of the files that decide the model's numbers
    adapter         what runs beside the weights
    adapter_digest  see `adapter_digest`; "" without an adapter
    """

    name: str
    path: Path
    decoder: LoadedDecoder
    programs: Programs
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    digest: str
    adapter: Adapter | None = None
    adapter_digest: str = ""

    def with_adapter(self, path: str | Path) -> "LanguageModel":
        """The same weights with an adapter beside them.

        path  adapter folder (medjax or PEFT), or the folder of a training run

        Raises FileNotFoundError or ValueError, also when it was trained on another base model or tokenizer.
        """
        adapter = open_adapter(path, self.decoder.config)
        check_base(adapter, self.name, self.digest, self.tokenizer.digest)
        lora = adapter.lora, _place(adapter, self.decoder)
        programs = Programs(self.decoder, dtype=self.programs.dtype, backend=self.programs.backend, lora=lora)
        return replace(self, programs=programs, adapter=adapter, adapter_digest=adapter_digest(adapter))


def load_model(
    name: str | Path = "smollm2-135m",
    *,
    dtype: str = "float32",
    quantisation: str | None = None,
    mesh: str = "",
    chat_template: str = "auto",
    revision: str | None = None,
    backend: str = "blockwise",
    progress: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """Load a model with everything needed to prompt it.

    name           local folder or file, registered name, or hub id (assets.resolve_model)
    dtype          of parameters and computation: float32 or bfloat16
    quantisation   how the weights of all projections are kept, of nn.quant.KINDS; None: as they are
    mesh           devices, for instance "data=4,tensor=2"; empty: every local accelerator along data, or one CPU
    chat_template  auto (the checkpoint's own, if it has one) | none
    progress       called with (parameters done, parameters in all)

    Raises FileNotFoundError or ValueError with one sentence that says what to do.
    """
    path = resolve_model(str(name), revision)
    local = jax.local_devices()
    # the CPU is one device with all its cores; more of them exist only where a test asks for fake ones
    devices = make_mesh(mesh) if mesh else make_mesh("", local if local[0].platform != "cpu" else local[:1])
    decoder = load_decoder(path, dtype=dtype, mesh=devices, quantisation=quantisation, progress=progress)
    source = decoder.source
    tokenizer = tokenizer_of(path, source.files, source.metadata, source.config.vocab_size)
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


def adapter_digest(adapter: Adapter) -> str:
    """sha256 over an adapter's settings and the numbers of its leaves, in whatever form it lies on disk."""
    digest = hashlib.sha256(json.dumps(asdict(adapter.lora), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(adapter.leaves)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf, "<f4").data)
    return digest.hexdigest()


def _place(adapter: Adapter, decoder: LoadedDecoder) -> Any:
    """An adapter's factors on the devices of the weights, sharded by the same rules."""
    abstract = abstract_variables(decoder.config, adapter.lora)["lora"]
    return jax.device_put(dict(adapter.leaves), shardings(abstract, decoder.mesh, decoder.rules))
