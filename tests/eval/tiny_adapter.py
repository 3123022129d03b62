"""A random adapter of the tiny checkpoint as a training run leaves it; copies of it merged and rounded by NumPy."""

import json
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import EMBED, HEAD_DIM, HEADS, KV_HEADS, LAYERS, MLP

RANK, ALPHA = 3, 12.0
# target -> its place, sizes of input and output, the checkpoint's name
TARGETS = {
    "query": ("attention", (EMBED,), (HEADS, HEAD_DIM), "self_attn.q_proj"),
    "value": ("attention", (EMBED,), (KV_HEADS, HEAD_DIM), "self_attn.v_proj"),
    "out": ("attention", (HEADS, HEAD_DIM), (EMBED,), "self_attn.o_proj"),
    "down": ("mlp", (MLP,), (EMBED,), "mlp.down_proj"),
}


def write_run(folder, base, *, base_digest=None, tokenizer_digest=None, seed=5):
    """folder/adapter/ with adapter.json and adapter.safetensors; the digests are those of the base model."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for target, (place, into, out, _) in TARGETS.items():
        for name, shape in {"a": (LAYERS, *into, RANK), "b": (LAYERS, RANK, *out)}.items():
            leaves[f"layers/{place}/{target}/{name}"] = rng.standard_normal(shape).astype(np.float32) * 0.1
    (folder / "adapter").mkdir(parents=True)
    save_file(leaves, folder / "adapter" / "adapter.safetensors")
    lora = {"rank": RANK, "alpha": ALPHA, "targets": list(TARGETS), "dropout": 0.1, "rank_stabilised": False}
    record = {
        **{"format": 1, "lora": lora, "model": {"layers": LAYERS, "embed": EMBED}},
        "base": {"name": str(base), "digest": base_digest},
        "tokenizer": {"digest": tokenizer_digest},
    }
    (folder / "adapter" / "adapter.json").write_text(json.dumps(record))
    return folder


def write_merged(folder, base, run):
    """A copy of the base checkpoint with the adapter of a run in its weights."""
    shutil.copytree(base, folder)
    weights, leaves = load_file(base / "model.safetensors"), load_file(run / "adapter" / "adapter.safetensors")
    for target, (place, _, _, name) in TARGETS.items():
        for layer in range(LAYERS):
            a, b = (leaves[f"layers/{place}/{target}/{part}"][layer] for part in "ab")
            added = a.reshape(-1, RANK).astype(np.float64) @ b.reshape(RANK, -1) * ALPHA / RANK
            weights[f"model.layers.{layer}.{name}.weight"] += added.T.astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    return folder


def write_rounded(folder, base):
    """A copy of the base checkpoint whose projections are rounded to int8 with one scale a row."""
    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    for name, matrix in weights.items():
        if "_proj" in name:
            scale = np.abs(matrix).max(axis=1, keepdims=True) / np.float32(127.5)
            weights[name] = np.clip(np.round(matrix / scale), -127, 127) * scale
    save_file(weights, folder / "model.safetensors")
    return folder
