"""Greedy answers of transformers' `generate`; runs in the peer's own environment.

  python transformers_peer.py --requests FILE --out FILE --model PATH --checkpoint DIR [--device cpu] [--dtype float32]
                              [--threads 2] [--batch-sizes 1,4,8,16,32,64] [--repeats 1]

requests  JSON: prompts (lists of token ids), new_tokens, checked (number of prompts whose log-probabilities are wanted)
out       JSON: tokens (new ones by prompt), seconds, cpu_seconds, prefill_seconds, decode_seconds (lists, one a
          repeat), batch_size, batch_trials {size: new tokens/s}, computed_tokens (prompt tokens, padding included),
          checked [{prompt, tokens, logprobs}], load_seconds, threads, dtype, attention, device, versions
model     a GGUF file, which is turned into a float32 Hugging Face folder at --checkpoint once, or such a folder

Prompts are sorted by length, so that the padding on their left is least, and cut into batches. Each batch size first
answers the prompts in the middle of that order with a quarter of the new tokens; decoding is scaled to all of them,
and the size with most new tokens a second answers all prompts. End tokens end nothing: every answer has `new_tokens`
tokens. The model is warm when the clock starts. Started by generate_vs_peers.py.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local; set before transformers is imported

import torch
import transformers
from checkpoint import converted
from generate_outputs import extrapolated

_PAD = 0  # masked, so any token does


class Side:
    """A model and its `generate`.

    prefill, decode  wall seconds of what was run since they were last set to 0
    computed         prompt tokens run, padding included
    """

    def __init__(self, folder: Path, dtype: str, device: str):
        self.device = torch.device(device)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model.to(self.device).eval()
        self.model.generation_config.eos_token_id = None
        self.prefill = self.decode = 0.0
        self.computed = 0
        self._first = 0.0
        self.model.register_forward_hook(self._after_forward)

    def _after_forward(self, *_) -> None:
        if not self._first:
            self._wait()
            self._first = time.perf_counter()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def answer(self, prompts: list[list[int]], new_tokens: int, batch_size: int) -> list[list[int]]:
        """New tokens of every prompt, in the order given."""
        self.prefill = self.decode = 0.0
        self.computed = 0
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found |= zip(batch, self._batch([prompts[i] for i in batch], new_tokens), strict=True)
        return [found[i] for i in range(len(prompts))]

    def _batch(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[_PAD] * (longest - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        start, self._first = time.perf_counter(), 0.0
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, pad_token_id=_PAD
            )
        answers = out[:, longest:].tolist()
        self.prefill += self._first - start
        self.decode += time.perf_counter() - self._first
        self.computed += ids.numel()
        return answers

    def logprobs(self, prompt: list[int], answer: list[int]) -> list[float]:
        """Of each token of an answer, by one pass over prompt and answer."""
        ids = torch.tensor([[*prompt, *answer[:-1]]], device=self.device)
        with torch.inference_mode():
            logits = self.model(ids, logits_to_keep=len(answer)).logits[0].float()
        picked = torch.tensor(answer, device=self.device)[:, None]
        return torch.log_softmax(logits, -1).gather(1, picked)[:, 0].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("requests", "out", "model", "checkpoint"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-sizes", default="1,4,8,16,32,64")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    folder = options.model if options.model.is_dir() else converted(options.model, options.checkpoint)
    asked = json.loads(options.requests.read_text("utf-8"))
    prompts, new_tokens = asked["prompts"], asked["new_tokens"]

    start = time.perf_counter()
    side = Side(folder, options.dtype, options.device)
    load_seconds = time.perf_counter() - start
    side.answer(prompts[:1], 2, 1)
    sizes = [int(size) for size in options.batch_sizes.split(",")]
    trials = batch_trials(side, prompts, new_tokens, sizes) if len(sizes) > 1 else {}
    best = max(trials, key=lambda size: trials[size]) if trials else sizes[0]

    found: dict[str, list[float]] = {f"{kind}seconds": [] for kind in ("", "cpu_", "prefill_", "decode_")}
    for _ in range(options.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        tokens = side.answer(prompts, new_tokens, best)
        seconds = time.perf_counter() - start, time.process_time() - cpu_start, side.prefill, side.decode
        for times, value in zip(found.values(), seconds, strict=True):
            times.append(value)
    computed = side.computed
    result = {
        "tokens": tokens,
        **found,
        "batch_size": best,
        "batch_trials": trials,
        "computed_tokens": computed,
        "checked": [
            {"prompt": i, "tokens": tokens[i], "logprobs": side.logprobs(prompts[i], tokens[i])}
            for i in range(min(asked["checked"], len(prompts)))
        ],
        "load_seconds": load_seconds,
        "threads": torch.get_num_threads(),
        "dtype": str(next(side.model.parameters()).dtype),
        "attention": side.model.config._attn_implementation,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }
    options.out.write_text(json.dumps(result), "utf-8")


def batch_trials(side: Side, prompts: list[list[int]], new_tokens: int, sizes: list[int]) -> dict[int, float]:
    """New tokens a second of every batch size that there are prompts for; the smallest one is always tried."""
    by_length = sorted(prompts, key=len)
    tried = min(new_tokens, max(4, new_tokens // 4))
    rates = {}
    for size in sizes:
        if size > len(prompts) and rates:
            continue
        size = min(size, len(prompts))
        middle = (len(prompts) - size) // 2
        side.answer(by_length[middle : middle + size], tried, size)
        rates[size] = size * new_tokens / extrapolated(side.prefill, side.decode, tried, new_tokens)
        print(f"transformers: batch size {size}: {rates[size]:.2f} new tokens/s", flush=True)
    return rates


if __name__ == "__main__":
    main()
