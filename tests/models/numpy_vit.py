"""A slow, plain masked autoencoder and predictor in NumPy float64: the definition that medjax is checked against.

One record after the other, one head after the other, only the tokens that exist: hidden and invalid ones are left out
of the sequences, not masked. Written from the papers (ViT arXiv 2010.11929, MAE 2111.06377) and shares no code with
medjax. Parameters are medjax's tree, as NumPy arrays.
"""

import math
from operator import itemgetter

import numpy as np

_ERF = np.vectorize(math.erf)


def cut(signal: np.ndarray, patch: int) -> list[tuple[int, int, np.ndarray]]:
    """(lead, time, samples) of every patch of a signal [leads, samples], lead after lead."""
    return [
        (lead, start // patch, signal[lead, start : start + patch].astype(np.float64))
        for lead in range(signal.shape[0])
        for start in range(0, signal.shape[1], patch)
    ]


def position(time: int, embed: int) -> np.ndarray:
    """sin and cos of one time index; embed even."""
    half = embed // 2
    angles = [time / 10000 ** (i / half) for i in range(half)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def layer_norm(x, p, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + _ERF(x / math.sqrt(2)))


def blocks(x: np.ndarray, p: dict, layers: int, eps: float) -> np.ndarray:
    """All layers and the final norm on one sequence [t, embed]; every token sees every token."""
    for layer in range(layers):
        w = tree(p["layers"], itemgetter(layer))
        y = layer_norm(x, w["attention_norm"], eps)
        kernel, bias = w["attention"]["qkv"]["kernel"], w["attention"]["qkv"]["bias"]
        out = np.zeros_like(x) + w["attention"]["out"]["bias"]
        for head in range(kernel.shape[2]):
            q, k, v = (y @ kernel[:, part, head] + bias[part, head] for part in range(3))
            scores = q @ k.T / math.sqrt(kernel.shape[3])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out += weights / weights.sum(-1, keepdims=True) @ v @ w["attention"]["out"]["kernel"][head]
        x = x + out
        y = layer_norm(x, w["mlp_norm"], eps)
        y = gelu(y @ w["mlp"]["up"]["kernel"] + w["mlp"]["up"]["bias"])
        x = x + y @ w["mlp"]["down"]["kernel"] + w["mlp"]["down"]["bias"]
    return layer_norm(x, p["norm"], eps)


def encode(p: dict, tokens: list[tuple[int, int, np.ndarray]], layers: int, eps: float) -> np.ndarray:
    """Hidden states [extra + tokens, embed] of the tokens (lead, time, samples) of one record."""
    embed = p["embedding"]["bias"].shape[0]
    rows = [p["class_token"]] if "class_token" in p else []
    rows += list(p.get("registers", []))
    for lead, time, samples in tokens:
        own = samples @ p["embedding"]["kernel"] + p["embedding"]["bias"]
        rows.append(own + position(time, embed) + p["leads"][lead])
    return blocks(np.stack(rows), p, layers, eps)


def autoencode(
    params: dict, signal: np.ndarray, shown: np.ndarray, masked: np.ndarray, config: dict
) -> tuple[dict[int, np.ndarray], float]:
    """Predictions of the masked tokens of one record, by token number, and the sum of their mean squared errors.

    signal         [leads, samples]
    shown, masked  [tokens] bool; a token that is neither does not exist
    config         patch, layers, decoder_layers, eps, extra, by_lead, normalised
    """
    tokens = cut(signal, config["patch"])
    seen = [i for i in range(len(tokens)) if shown[i]]
    encoded = encode(params["encoder"], [tokens[i] for i in seen], config["layers"], config["eps"])[config["extra"] :]
    p = params["decoder"]
    embed = p["mask_token"].shape[0]
    rows = {}
    for i, (lead, time, _) in enumerate(tokens):
        if shown[i]:
            content = encoded[seen.index(i)] @ p["embedding"]["kernel"] + p["embedding"]["bias"]
        elif masked[i]:
            content = p["mask_token"]
        else:
            continue
        rows[i] = content + position(time, embed) + p["leads"][lead]
    groups = [list(rows)]
    if config["by_lead"]:
        groups = [[i for i in rows if tokens[i][0] == lead] for lead in range(signal.shape[0])]
    predictions, loss = {}, 0.0
    for group in groups:
        if not group:
            continue
        hidden = blocks(np.stack([rows[i] for i in group]), p, config["decoder_layers"], config["eps"])
        for i, row in zip(group, hidden @ p["head"]["kernel"] + p["head"]["bias"], strict=True):
            if not masked[i]:
                continue
            target = tokens[i][2]
            if config["normalised"]:
                target = (target - target.mean()) / math.sqrt(target.var() + 1e-6)
            predictions[i] = row
            loss += float(np.mean((row - target) ** 2))
    return predictions, loss


def tree(node, change):
    """A nested dict with every array changed."""
    return {k: tree(v, change) for k, v in node.items()} if isinstance(node, dict) else change(node)


def as_float64(params):
    return tree(params, lambda a: np.asarray(a, np.float64))
