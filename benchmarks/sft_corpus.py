"""What sft_vs_peft.py trains on: documents of real or stated lengths, the batches of each side, the first adapters.

Kinds of documents, all cut at the window:
  abstracts   the 500 labelled questions of PubMedQA outside its test set: abstract, question, long answer
  questions   the same without their abstracts
  mixed       both forms of each: long and short documents, as instruction sets have them
  synthetic   random tokens, two lengths as in `mixed`: half normal(380, 90) from 32 to the window, half log-normal with
              median 72 and sigma 0.3 in the logarithm
"""

import random
from collections.abc import Callable, Sequence

import numpy as np

from medjax.assets import resolve_model
from medjax.data.exams.tasks import load_task
from medjax.data.text.documents import Document
from medjax.data.text.vocabulary import tokenizer_from_gguf
from medjax.models.decoder_config import DecoderConfig
from medjax.store.sources import open_source

KINDS = ("mixed", "abstracts", "questions", "synthetic")
_SYNTHETIC = 1000

DocumentBatches = list[list[int]]
Steps = list[DocumentBatches]  # of each step its micro-batches, of each of these its documents


def corpus(kind: str, window: int, *, responses_only: bool, vocab_size: int) -> list[Document]:
    """The documents of a kind; a token counts for the loss when it stands in the answer, or anywhere but first."""
    if kind == "synthetic":
        found = _synthetic(window, vocab_size)
    else:
        forms = {"abstracts": (True,), "questions": (False,), "mixed": (True, False)}[kind]
        found = [ids for with_abstract in forms for ids in _pubmedqa(with_abstract)]
    documents = []
    for number, (prompt, answer) in enumerate(found):
        tokens = np.array([*prompt, *answer][:window], np.int32)
        counted = np.arange(len(tokens)) >= (len(prompt) if responses_only else 1)
        if counted.any():
            documents.append(Document(tokens, counted, str(number)))
    return documents


def _pubmedqa(with_abstract: bool) -> list[tuple[list[int], list[int]]]:
    tokenizer = tokenizer_from_gguf(open_source(resolve_model("smollm2-135m")).metadata)
    end = sorted(tokenizer.eos_ids)[:1]
    found = []
    for item in load_task("pubmedqa").fewshot:
        prompt = f"{item.context}\n\n" * with_abstract + f"Question: {item.question}\nAnswer:"
        context, answer = tokenizer.encode_pair(prompt, " " + item.explanation)
        found.append((context, [*answer, *end]))
    return found


def _synthetic(window: int, vocab_size: int) -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(0)
    half = _SYNTHETIC // 2
    lengths = np.concatenate([rng.normal(380, 90, half), 72 * np.exp(rng.normal(0, 0.3, half))])
    found = []
    for length in np.clip(lengths, 32, window).astype(int):
        tokens = rng.integers(3, vocab_size, length).tolist()
        found.append((tokens[: length // 2], tokens[length // 2 :]))
    return found


def padding_fill(lengths: Sequence[int], batches: DocumentBatches) -> float:
    """Share of real tokens when each batch is padded to its longest document."""
    computed = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return sum(lengths[i] for batch in batches for i in batch) / computed


def shuffled_batches(lengths: Sequence[int], size: int) -> DocumentBatches:
    """An epoch in random order, seed 0; a last batch that is not full is left out."""
    order = list(range(len(lengths)))
    random.Random(0).shuffle(order)
    return _cut(order, size)


def grouped_batches(lengths: Sequence[int], size: int) -> DocumentBatches:
    """An epoch sorted by length, the best that grouping can do."""
    return _cut(sorted(range(len(lengths)), key=lengths.__getitem__), size)


def _cut(order: list[int], size: int) -> DocumentBatches:
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]


def spread(batches: DocumentBatches, count: int, key: Callable[[list[int]], float]) -> DocumentBatches:
    """`count` batches at even quantiles of `key`, so that a few stand for all; in a fixed random order."""
    ordered = sorted(batches, key=key)
    count = min(count, len(ordered))
    chosen = [ordered[int((k + 0.5) * len(ordered) / count)] for k in range(count)]
    random.Random(1).shuffle(chosen)
    return chosen


def micro_batches(batches: DocumentBatches, size: int) -> Steps:
    """One step a batch, which is computed in micro-batches of at most `size` documents."""
    return [[batch[start : start + size] for start in range(0, len(batch), size)] for batch in batches]


def initial_adapters(c: DecoderConfig, rank: int) -> dict[str, np.ndarray]:
    """A of every adapter, [rank, in] float32, uniform within 1 / sqrt(in) as peft draws it; seed 0."""
    rng = np.random.default_rng(0)
    width = c.heads * c.head_dim
    inputs = {f"self_attn.{name}_proj": size for name, size in zip("qkvo", (*[c.embed] * 3, width), strict=True)}
    inputs |= {"mlp.gate_proj": c.embed, "mlp.up_proj": c.embed, "mlp.down_proj": c.mlp}
    return {
        f"layers.{layer}.{name}": rng.uniform(-(size**-0.5), size**-0.5, (rank, size)).astype(np.float32)
        for layer in range(c.layers)
        for name, size in inputs.items()
    }
