"""What a score needs to be published and repeated: versions, devices, the command, and the identity of a run."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jax

from medjax.eval.settings import EvalSettings
from medjax.infer.language_model import LanguageModel
from medjax.models.decoder import abstract_params
from medjax.store.adapters import Adapter
from medjax.store.provenance import command, versions


def identity(settings: EvalSettings, model: LanguageModel, evaluations: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a result to the last bit; a difference starts a new run.

    model        with its adapter where one is graded
    evaluations  id -> digests of data, prompts and token ids
    """
    return {
        "model": model.digest,
        **({"adapter": model.adapter_digest} if model.adapter else {}),
        **({"quantisation": settings.model.quantisation} if settings.model.quantisation else {}),
        **({"kv_cache": settings.model.kv_cache} if settings.model.kv_cache else {}),
        "tokenizer": model.tokenizer.digest,
        "dtype": settings.model.dtype,
        "engine": {**asdict(settings.engine), "compilation_cache": None, "devices": devices(model)},
        "seed": settings.seed,
        "resamples": settings.resamples,
        "protocol": {"normalise": settings.protocol.normalise, "max_new_tokens": settings.protocol.max_new_tokens},
        "evaluations": dict(evaluations),
        "versions": versions(),
    }


def protocol_record(settings: EvalSettings, model: LanguageModel) -> dict[str, Any]:
    """The part of results.json that says what was run, on what, with what.

    model  with its adapter where one is graded
    """
    return {
        "command": command(settings, "medjax.eval"),
        "model": {
            "name": model.name,
            "digest": model.digest,
            "parameters": _parameters(model),
            "dtype": settings.model.dtype,
            "quantisation": settings.model.quantisation,
            "kv_cache": settings.model.kv_cache,
            "tokenizer_digest": model.tokenizer.digest,
            "chat_template_sha256": sha256_text(model.chat.source) if model.chat else None,
        },
        **({"adapter": _adapter(settings, model, model.adapter)} if model.adapter else {}),
        "seed": settings.seed,
        "versions": versions(),
        "devices": devices(model),
        "mesh": {axis: size for axis, size in model.decoder.mesh.shape.items() if size > 1},
    }


def _parameters(model: LanguageModel) -> int:
    # not of the arrays in place: a quantised kernel has others
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(model.decoder.config)))


def _adapter(settings: EvalSettings, model: LanguageModel, adapter: Adapter) -> dict[str, Any]:
    return {
        "name": settings.model.adapter,
        "digest": model.adapter_digest,
        "base_name": adapter.base,
        "base_digest": adapter.base_digest,
        "parameters": sum(int(x.size) for x in jax.tree.leaves(adapter.leaves)),
        **asdict(adapter.lora),
    }


def devices(model: LanguageModel) -> str:
    """Number and kind of the devices that a model lies on, such as "1 x cpu"."""
    flat = model.decoder.mesh.devices.ravel()
    return f"{len(flat)} x {flat[0].device_kind}"


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
