"""Hugging Face PEFT's adapter folders, read and written exactly: adapter_config.json and adapter_model.safetensors.

A PEFT file has two tensors a layer and module, transposed against ours:

  base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.weight  [rank, in]     a [layers, *in, rank]
  base_model.model.model.layers.{i}.self_attn.q_proj.lora_B.weight  [out, rank]    b [layers, rank, *out]

Module names and the order of heads come from the same table as the weights' (store.names).

GPT-NeoX     has one query_key_value module, rows in the order [heads, 3, head_dim]. Our target of that name maps one to
             one. Separate query, key and value adapters of rank r become one of rank 3 r: A stacks the three, B is zero
             where a part does not reach, and alpha grows so that the scale stays (3 x, rank-stabilised sqrt 3 x).
Ranks        PEFT may give modules ranks and alphas of their own (rank_pattern, alpha_pattern) and leave layers out. We
             have one rank: what is smaller is padded with zeros, another scale is multiplied into B. Both are exact
             to float32 rounding, for the model's output; training goes on with our one alpha.

What changes the computation in other ways (DoRA, trained biases, modules_to_save, …) is refused by name.
Source: huggingface/peft 0.21, tuners/lora/config.py and utils/save_and_load.py.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.models.decoder_config import DecoderConfig
from medjax.nn.lora import LoraConfig
from medjax.store.adapters import PLACES, Adapter, axes, check_shapes, load_tensors, tree_of
from medjax.store.json_file import read_json
from medjax.store.names import hugging_face_leaves
from medjax.store.sources import PICKLES

_PREFIX = "base_model.model."
_FUSED = ("query", "key", "value")
_TENSOR = re.compile(r"(?P<before>.*?layers\.)(?P<layer>\d+)(?P<after>\..+)\.lora_(?P<factor>[AB])(\.default)?\.weight")
# keys that ask for another computation, and their harmless values
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "modules_to_save": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "layer_replication": ([],),
    "alora_invocation_tokens": ([],),
    "arrow_config": (),
    "kasa_config": (),
    "velora_config": (),
    "monteclora_config": (),
    # the other ways to start (pissa, olora, corda, loftq, lora_ga) change the base weights as well
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


def read_peft(folder: Path, config: DecoderConfig) -> Adapter:
    """Read a PEFT LoRA adapter of a model with this config.

    Raises ValueError or FileNotFoundError that name the key or the tensor.
    """
    where = folder / "adapter_config.json"
    record = read_json(where)
    _check_supported(record, where)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        _refuse_pickles(folder)
    factors = _sorted_out(load_tensors(file), config, file)
    names = _modules(config)
    chosen: dict[tuple[str, int], tuple[float, float]] = {}  # alpha and scale of each module
    for target, layers in factors.items():
        for layer, factor in layers:
            if factor == "A":
                tensor = layers[layer, "A"]
                chosen[target, layer] = _scale(record, names[target].format(layer), tensor.shape[0], where)
        _check_layers(record, target, names[target], {layer for layer, _ in layers}, config, file)
    ranks = {factors[target][layer, "A"].shape[0] for target, layer in chosen}
    rank, scales = max(ranks), {scale for _, scale in chosen.values()}
    stabilised = bool(record.get("use_rslora"))
    if len(scales) == len(ranks) == 1:
        alpha = next(iter(chosen.values()))[0]
    else:
        alpha = max(scales) * (math.sqrt(rank) if stabilised else rank)
    lora = LoraConfig(
        rank=rank,
        alpha=alpha,
        targets=tuple(target for target in PLACES if target in factors),
        dropout=float(record.get("lora_dropout") or 0.0),
        rank_stabilised=stabilised,
    )
    leaves: dict[str, np.ndarray] = {}
    for target, layers in factors.items():
        into, out = axes(config)[target]
        a = np.zeros((config.layers, *into, rank), np.float32)
        b = np.zeros((config.layers, rank, *out), np.float32)
        for (layer, factor), tensor in layers.items():
            if factor == "A":
                own = tensor.shape[0]
                a[layer, ..., :own] = tensor.T.reshape(*into, own)
            else:
                own, (_, scale) = tensor.shape[1], chosen[target, layer]
                ours = _rows_from_file(tensor.T, target, out)
                b[layer, :own] = ours if scale == lora.scale else ours * np.float32(scale / lora.scale)
        name = "/".join(("layers", *PLACES[target]))
        leaves |= {f"{name}/a": a, f"{name}/b": b}
    return Adapter(
        lora=lora,
        leaves=tree_of(leaves),
        base=record.get("base_model_name_or_path") or "unknown",
        base_digest=None,
        tokenizer_digest=None,
        model={},
        where=str(folder),
    )


def write_peft(folder: Path, adapter: Adapter, config: DecoderConfig) -> None:
    """Write a PEFT folder that gives the same model; tensors are float32.

    Raises ValueError where the adapter is not one of a model with this config.
    """
    from safetensors.numpy import save_file

    check_shapes(adapter, config)
    names, known, lora = _modules(config), axes(config), adapter.lora
    tensors: dict[str, np.ndarray] = {}
    parts = {}
    for target in lora.targets:
        block, module = PLACES[target]
        node = adapter.leaves["layers"][block][module]
        parts[target] = np.asarray(node["a"], np.float32), np.asarray(node["b"], np.float32)
    ranks = dict.fromkeys(parts, lora.rank)
    fused = [target for target in _FUSED if target in parts and target not in names]
    if fused:
        parts = {"query_key_value": _fuse(parts, fused)} | {t: p for t, p in parts.items() if t not in fused}
        ranks = {target: lora.rank * (len(fused) if target == "query_key_value" else 1) for target in parts}
    for target, (a, b) in parts.items():
        into, out = known[target]
        for layer in range(config.layers):
            module = _PREFIX + names[target].format(layer)
            left = a[layer].reshape(math.prod(into), ranks[target])
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(left.T)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(_rows_to_file(b[layer], target, out).T)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    record = _record(adapter, {names[target].rpartition(".")[2]: rank for target, rank in ranks.items()})
    (folder / "adapter_config.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _record(adapter: Adapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """adapter_config.json; a module of a larger rank gets a pattern, with the alpha that keeps the scale."""
    lora = adapter.lora
    rank = min(ranks.values())
    alphas = {r: lora.scale * (math.sqrt(r) if lora.rank_stabilised else r) for r in ranks.values()}
    alphas[lora.rank] = lora.alpha
    whole = {r: int(alpha) if float(alpha).is_integer() else alpha for r, alpha in alphas.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "base_model_name_or_path": adapter.base,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": whole[rank],
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "use_dora": False,
        "target_modules": sorted(ranks),
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: whole[r] for module, r in ranks.items() if r != rank},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "modules_to_save": None,
    }


def _modules(config: DecoderConfig) -> dict[str, str]:
    """Target -> module name in the Hugging Face model, `{}` for the layer."""
    leaves = hugging_face_leaves(config)
    names = {}
    for target, path in PLACES.items():
        leaf = leaves.get(("layers", *path, "kernel"))
        if leaf and leaf.pick:
            names["query_key_value"] = leaf.name.removesuffix(".weight")
        elif leaf:
            names[target] = leaf.name.removesuffix(".weight")
    return names


def _fuse(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], fused: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Separate query, key and value factors -> one pair for the fused projection, of as many ranks as they have."""
    a = np.concatenate([parts[target][0] for target in fused], axis=-1)
    layers, rank, heads, head_dim = parts[fused[0]][1].shape
    b = np.zeros((layers, rank * len(fused), 3, heads, head_dim), np.float32)
    for place, target in enumerate(fused):
        b[:, place * rank : (place + 1) * rank, _FUSED.index(target)] = parts[target][1]
    return a, b


def _rows_to_file(b: np.ndarray, target: str, out: tuple[int, ...]) -> np.ndarray:
    """[rank, *out] -> [rank, rows]; the fused projection keeps its rows head by head."""
    ordered = b.transpose(0, 2, 1, 3) if target == "query_key_value" else b
    return ordered.reshape(b.shape[0], math.prod(out))


def _rows_from_file(rows: np.ndarray, target: str, out: tuple[int, ...]) -> np.ndarray:
    if target == "query_key_value":
        return rows.reshape(-1, out[1], out[0], out[2]).transpose(0, 2, 1, 3)
    return rows.reshape(-1, *out)


def _check_supported(record: Mapping[str, Any], where: Path) -> None:
    if record.get("peft_type") != "LORA":
        raise ValueError(
            f"{where}: got peft_type={record.get('peft_type')!r}, supported is 'LORA'; "
            "merge it into its model with PEFT (merge_and_unload) and take that."
        )
    for key, harmless in _REFUSED.items():
        value = record.get(key)
        if value is not None and value not in harmless:
            expected = "none" if not harmless or harmless == ([],) else " or ".join(map(repr, harmless))
            raise ValueError(
                f"{where}: got {key}={value!r}, which is not supported, expected {expected}; "
                "merge it into its model with PEFT (merge_and_unload) and take that."
            )


def _refuse_pickles(folder: Path) -> None:
    pickles = [file for file in sorted(folder.glob("adapter_model.*")) if file.suffix in PICKLES]
    if pickles:
        raise ValueError(
            f"{pickles[0]}: pickle files can run code when read and are refused; convert once where you trust the "
            'file: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{pickles[0]}', weights_only=True), '{folder / 'adapter_model.safetensors'}')\""
        )


def _sorted_out(
    tensors: Mapping[str, np.ndarray], config: DecoderConfig, file: Path
) -> dict[str, dict[tuple[int, str], np.ndarray]]:
    """Target -> (layer, "A" or "B") -> tensor, every shape checked."""
    targets = {name: target for target, name in _modules(config).items()}
    found: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    for name, tensor in tensors.items():
        parts = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        module = f"{parts['before']}{{}}{parts['after']}" if parts else ""
        for prefix in ("model.language_model.", "language_model.model."):  # the decoder inside image-and-text Gemma 3
            module = module.replace(prefix, "model.")
        if parts is None or module not in targets:
            raise ValueError(
                f"{file}: tensor {name}: expected lora_A or lora_B of {', '.join(sorted(targets))} of a "
                f"{config.family} model; train without other modules, or merge it into its model with PEFT."
            )
        layer, factor, target = int(parts["layer"]), parts["factor"], targets[module]
        into, out = (math.prod(sizes) for sizes in axes(config)[target])
        sizes = dict(zip(("rank", "in") if factor == "A" else ("out", "rank"), tensor.shape, strict=False))
        wanted = {"in": into} if factor == "A" else {"out": out}
        if tensor.ndim != 2 or any(sizes[axis] != size for axis, size in wanted.items()) or layer >= config.layers:
            expected = f"[rank, {into}]" if factor == "A" else f"[{out}, rank]"
            raise ValueError(
                f"{file}: tensor {name}: got shape {list(tensor.shape)}, expected {expected} and a layer below "
                f"{config.layers} by the base model; take the base model that the adapter was trained on."
            )
        found.setdefault(target, {})[layer, factor] = tensor
    if not found:
        raise ValueError(f"{file}: got no tensor, expected lora_A and lora_B; save the adapter again.")
    for target, layers in found.items():
        for layer in sorted({layer for layer, _ in layers}):
            a, b = layers.get((layer, "A")), layers.get((layer, "B"))
            if a is None or b is None or a.shape[0] != b.shape[1]:
                got = " and ".join(f"lora_{f} {list(t.shape)}" for f, t in (("A", a), ("B", b)) if t is not None)
                raise ValueError(
                    f"{file}: {target} of layer {layer}: got {got}, expected lora_A and lora_B of one rank; "
                    "save or copy the adapter again."
                )
    return found


def _scale(record: Mapping[str, Any], module: str, rank: int, where: Path) -> tuple[float, float]:
    """alpha of a module, and what PEFT multiplies its product by."""

    def own(pattern: str, otherwise: str) -> float:
        for key, value in (record.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):  # PEFT's own rule; the first that fits counts
                return value
        value = record.get(otherwise)
        if value is None:
            raise ValueError(f"{where}: key {otherwise!r} is missing, expected a number; save the adapter again.")
        return value

    stated, alpha = own("rank_pattern", "r"), float(own("alpha_pattern", "lora_alpha"))
    if stated != rank:
        raise ValueError(
            f"{where}: got rank {stated} for {module}, expected {rank}, which its weights have; "
            "take configuration and weights from the same adapter."
        )
    return alpha, alpha / (math.sqrt(rank) if record.get("use_rslora") else rank)


def _check_layers(
    record: Mapping[str, Any], target: str, module: str, layers: set[int], config: DecoderConfig, file: Path
) -> None:
    """A file that was cut by hand lacks layers; layers that the configuration leaves out are zero by right."""
    targets = record.get("target_modules")
    chosen = record.get("layers_to_transform")
    if chosen is None and not (isinstance(targets, list) and module.rpartition(".")[2] in targets):
        return  # chosen by a pattern
    expected = set(range(config.layers)) if chosen is None else {chosen} if isinstance(chosen, int) else set(chosen)
    if missing := sorted(expected - layers):
        raise ValueError(
            f"{file}: {target}: got no tensors of layer {missing[0]}, expected layers "
            f"{', '.join(map(str, sorted(expected)))} by adapter_config.json; save or copy the adapter again."
        )
