"""medjax's side of generate_vs_peers.py: its generator with a clock for prefill and decoding, and its logits."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from generate_outputs import Place
from machine import matmul_gflops

from medjax.infer.generator import Generator
from medjax.infer.language_model import load_model
from medjax.infer.packing import Request, Row, stack
from medjax.infer.scorer import Scorer, Work

_CONTEXT_STEP = 512  # lengths that logits are asked for are multiples of it: few shapes


@dataclass(frozen=True)
class Run:
    """One run over all prompts; seconds from token ids to token ids.

    cpu_seconds    of all threads meanwhile
    prefill, decode  wall seconds in the programs of prompts (the shared prefix included) and of new tokens
    matmul_gflops  rate measured right after it
    """

    seconds: float
    cpu_seconds: float
    prefill: float
    decode: float
    tokens: list[tuple[int, ...]]
    work: Work
    matmul_gflops: float


class Stopwatch:
    """A program that is waited for and whose wall seconds are summed."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        out = jax.block_until_ready(self.call(*args))
        self.seconds += time.perf_counter() - start
        return out


class Medjax:
    """The model in place, with a generator for every batch size asked for."""

    def __init__(self, name: str, dtype: str):
        start = time.perf_counter()
        self.model = load_model(name, dtype=dtype)
        self.programs = self.model.programs
        self.load_seconds = time.perf_counter() - start
        self.device = f"{jax.devices()[0].device_kind} x {self.model.decoder.mesh.size}"
        # end tokens end nothing: the answers of all sides have the same length
        self._tokenizer = copy.copy(self.model.tokenizer)
        self._tokenizer.eos_ids = ()
        self._prefix = Stopwatch(self.programs.prefix)
        self.programs.prefix = self._prefix

    def run(self, prompts: Sequence[tuple[int, ...]], new_tokens: int, batch_size: int) -> Run:
        """Answer all prompts; the first run with new shapes compiles."""
        generator = Generator(self.programs, self._tokenizer, batch_size=batch_size)
        decoding = generator.decoding
        decoding.prefill, decoding.decode = Stopwatch(decoding.prefill), Stopwatch(decoding.decode)
        self._prefix.seconds = 0.0
        start, cpu_start = time.perf_counter(), time.process_time()
        answers = generator.generate(prompts, max_new_tokens=new_tokens)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        rate = len(prompts) * new_tokens / seconds
        print(f"medjax: batch size {batch_size}: {seconds:.2f} s, {rate:.2f} new tokens/s", flush=True)
        return Run(
            seconds,
            cpu_seconds,
            self._prefix.seconds + decoding.prefill.seconds,
            decoding.decode.seconds,
            [answer.tokens for answer in answers],
            generator.work,
            matmul_gflops(),
        )

    def place(self, context: tuple[int, ...], token: int) -> Place:
        """The logits after a context, computed as a prompt is."""
        p, n = self.programs, len(context)
        row = Row(list(context), list(range(n)), [n] * n)
        length = -(-n // _CONTEXT_STEP) * _CONTEXT_STEP
        arrays = {name: p.put(array) for name, array in stack([row], length, p.data_shards).items()}
        asked = p.put(np.int32(n - 1), by_row=False), p.put(np.int32(token), by_row=False)
        best, second, there = p.run(f"logits of {length}", self._logits, p.variables, arrays, *asked)
        return Place(float(best - second), float(best - there))

    def _logits(self, variables, arrays, last, token):
        hidden, _ = self.programs.apply(variables, arrays, None)
        table = self.programs.table(variables)
        logits = jnp.einsum("d,vd->v", hidden[0, last], table, preferred_element_type=jnp.float32)
        (best, second), _ = jax.lax.top_k(logits, 2)
        return best, second, logits[token]

    def logprobs(self, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, ...]]:
        """Of every token of some answers to their prompts, by the scorer."""
        requests = [Request(tuple(prompt), tuple(answer)) for prompt, answer in answers]
        return [score.token_logprobs for score in Scorer(self.programs).score(requests)]
