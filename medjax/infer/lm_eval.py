"""medjax as a model of lm-evaluation-harness: its tasks, prompts and metrics, with the numbers of this engine.

  python -m medjax.infer.lm_eval --model medjax --model_args path=smollm2-135m --tasks medmcqa --batch_size auto

The harness, to its release 0.4.13, looks for models in its own package only: a plain `lm_eval` does not know the name
`medjax`. This command registers the name and is `lm_eval` from there on, every option included; Python code imports
this module before it calls `lm_eval.simple_evaluate(model="medjax", ...)`. Harnesses that load models of other packages
(pull request 4013) find this one by medjax's entry point. Nothing else in medjax needs the harness.

Texts become tokens by the harness's rules, not by those of medjax.eval, so that numbers compare with its Hugging Face
back end: special tokens written in a text are special, a pair is cut where the context's own ids end, what is too long
loses its beginning (a warning says how often). What is scored is packed task by task, since the harness hands over
the requests of all tasks in one list and only those of one task begin alike.
"""

import hashlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from medjax import __version__
from medjax.data.text.chat import ChatTemplate
from medjax.infer.command import keep_compiled
from medjax.infer.generation_kwargs import MAX_GEN_TOKS, answer, draw_seeds, read_generation
from medjax.infer.generator import Generation, Generator
from medjax.infer.packing import Request
from medjax.infer.run import load_base
from medjax.infer.sampling import Sampling
from medjax.infer.scorer import Score, Scorer
from medjax.infer.settings import EngineSettings, ModelSettings
from medjax.models.decoder import abstract_variables
from medjax.parallel.mesh import AXES
from medjax.report.progress import ProgressBar

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
except ImportError as error:
    raise ImportError(
        f"medjax.infer.lm_eval: got no package {error.name}, expected lm-evaluation-harness; "
        "pip install 'medjax[lm-eval]'.",
        name=error.name,
    ) from error

_AUTO_BATCH = EngineSettings().batch_size
_log = logging.getLogger("lm_eval.medjax")  # shown as the harness shows its own


class MedjaxLM(TemplateLM):
    """A medjax language model behind the harness's interface.

    path            folder, .gguf file, registered name or hub id, as --model of medjax.eval
    adapter         training run, adapter folder or PEFT folder for this model
    revision, dtype, quantisation, mesh, row_tokens   as medjax.eval has them; results do not depend on the last two
    max_length      tokens of a request at the most; None: the model's context
    seed            of what tasks draw (do_sample)
    batch_size      sequences that are generated together; "auto": 64, or max_batch_size where that is less
    device          not used: JAX takes its accelerators, see `mesh` and JAX_PLATFORMS

    Raises FileNotFoundError or ValueError with one sentence that says what to do.
    """

    def __init__(
        self,
        path: str,
        *,
        adapter: str | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        quantisation: str | None = None,
        mesh: str = "",
        row_tokens: int = 2048,
        max_length: int | None = None,
        seed: int = 0,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        settings = ModelSettings(str(path), adapter, revision and str(revision), dtype, quantisation)
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model_args: dtype: got {dtype!r}, expected float32 or bfloat16; write one of them.")
        engine = EngineSettings(mesh, row_tokens, _batch_size(batch_size, max_batch_size))
        keep_compiled(engine)
        base = load_base(settings, engine, say=_log.info, progress=True)
        self.model = base.with_adapter(adapter) if adapter else base
        self.batch_size = engine.batch_size
        self.seed = seed
        context = self.model.decoder.config.max_length
        if max_length is not None and not 1 < max_length <= context:
            raise ValueError(
                f"model_args: max_length: got {max_length}, expected 2 to the model's context of {context}; leave it "
                "out to have all of it."
            )
        self.max_length = max_length or context
        self._scorer = Scorer(self.model.programs, row_tokens=row_tokens)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "MedjaxLM":
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "MedjaxLM":
        return cls(**model_arguments(arg_dict, additional_config or {}))

    @property
    def eot_token_id(self) -> int | None:
        return next(iter(self.model.tokenizer.eos_ids), None)

    @property
    def prefix_token_id(self) -> int:
        bos = self.model.tokenizer.bos_id
        start = self.eot_token_id if bos is None else bos
        if start is None:
            raise ValueError(
                f"{self.model.path}: got a tokenizer with neither BOS nor EOS and a text without context, expected a "
                "token to condition on; take a task whose requests have one."
            )
        return start

    @property
    def max_gen_toks(self) -> int:
        return MAX_GEN_TOKS

    @property
    def tokenizer_name(self) -> str:
        """Stands for tokenizer and chat template in the harness's cache of requests."""
        chat = self.model.chat.source if self.model.chat else ""
        digest = hashlib.sha256(f"{self.model.tokenizer.digest}{chat}".encode()).hexdigest()
        return f"{self.model.path.name}-{digest[:12]}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into `config` of its results; model_sha says which numbers they are."""
        model = self.model
        leaves = jax.tree.leaves(abstract_variables(model.decoder.config)["params"])
        return {
            "model_num_parameters": sum(int(np.prod(leaf.shape)) for leaf in leaves),
            "model_dtype": str(model.programs.dtype),
            "model_sha": model.digest,
            "adapter_sha": model.adapter_digest,
            "quantisation": model.decoder.quantisation,
            "mesh": {name: size for name, size in model.decoder.mesh.shape.items() if size > 1},
            "max_length": self.max_length,
            "medjax_version": __version__,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids; add_special_tokens False leaves BOS out, else it is there where the checkpoint wants it."""
        return self.model.tokenizer.encode(string, bos=False if add_special_tokens is False else None, special=True)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._chat().source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Text of a conversation; without a generation prompt its last message stays open, to be continued."""
        text = self._chat().render(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].lstrip()
        at = text.rfind(last.rstrip())
        if at < 0:
            raise ValueError(
                f"{self._chat().name}: got a text without the last message {last[:40]!r}, expected it at the end, to "
                "be continued; run the task without its gen_prefix."
            )
        return text[:at] + (last if text.startswith(last, at) else last.rstrip())

    def _chat(self) -> ChatTemplate:
        if self.model.chat is None:
            raise ValueError(
                f"{self.model.path}: got a model without a chat template, expected one; run without "
                "--apply_chat_template."
            )
        return self.model.chat

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [(request.args, *self._pair_ids(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs, tasks=_tasks(requests), disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        tasks = _tasks(requests)
        found = self._loglikelihood_tokens(windows, tasks=[tasks[i] for i in owners], disable_tqdm=disable_tqdm)
        totals = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, found, strict=True):
            totals[number] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _pair_ids(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a pair, as the harness has them."""
        if context.strip():
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(context + continuation, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        *,
        tasks: Sequence[str | None] = (),
        disable_tqdm: bool = False,
    ) -> list[tuple[float, bool]]:
        """Sums of log-probabilities, and whether greedy decoding gives the continuation, in the requests' order.

        requests  what the harness's cache knows the request by (None: it does not), ids of context and continuation
        tasks     of the requests: those of one task are packed together
        """
        wanted = [self._fitted(*request) for request in requests]
        whole = [len(context) + len(continuation) for _, context, continuation in requests]
        _warn_of_cuts(sum(n > self.max_length + 1 for n in whole), len(whole), f"{self.max_length + 1} tokens")
        results: dict[int, tuple[float, bool]] = {}
        with ProgressBar(not disable_tqdm, "scored", "request") as bar:
            for members in _grouped(tasks or [None] * len(requests)):

                def keep(new: dict[int, Score], members: list[int] = members) -> None:
                    for number, score in new.items():
                        index = members[number]
                        results[index] = score.logprob, score.greedy
                        if (key := requests[index][0]) is not None:
                            self.cache_hook.add_partial("loglikelihood", key, results[index])
                    bar.advance(len(new), len(requests))

                self._scorer.score([wanted[i] for i in members], on_scores=keep)
        return [results[i] for i in range(len(requests))]

    def _fitted(self, key: tuple[str, str] | None, context: list[int], continuation: list[int]) -> Request:
        """The request with as much of its context as fits: the last token is not run, so one more than the context."""
        if not 0 < len(continuation) <= self.max_length:
            shown = "" if key is None else f" of {key[1][:40]!r} after …{key[0][-20:]!r}"
            raise ValueError(
                f"loglikelihood: got {len(continuation)} tokens{shown}, expected 1 to {self.max_length} after the "
                "context; correct the task's choices or delimiter, or take a model with a longer context."
            )
        return Request(tuple(context[-(self.max_length + 1 - len(continuation)) :]), tuple(continuation))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        asked = [read_generation(request.args[1]) for request in requests]
        texts = [request.args[0] for request in requests]
        seeds = draw_seeds(texts, self.seed)
        if self.batch_size == 1 and len(requests) > 1:
            _log.warning("batch_size 1: texts are generated one by one; --batch_size auto takes %d", _AUTO_BATCH)
        results: dict[int, str] = {}
        with ProgressBar(not disable_tqdm, "generated", "request") as bar:
            for members in _grouped([(one.until, one.max_new_tokens) for one in asked]):
                limit, until = asked[members[0]].max_new_tokens, asked[members[0]].until
                stops = [stop for stop in until if stop not in self.model.tokenizer.special_texts]
                ends = {self.tok_encode(stop, add_special_tokens=False)[0] for stop in until if stop not in stops}

                def keep(
                    new: dict[int, Generation],
                    members: list[int] = members,
                    stops: list[str] = stops,
                    ends: set[int] = ends,
                ) -> None:
                    for number, generation in new.items():
                        index = members[number]
                        results[index] = answer(generation, stops, ends, self.model.tokenizer.decode)
                        if not asked[index].temperature:
                            self.cache_hook.add_partial("generate_until", requests[index].args, results[index])
                    bar.advance(len(new), len(requests))

                self._generator(len(members)).generate(
                    self._prompts([texts[i] for i in members], limit),
                    max_new_tokens=limit,
                    stop=stops,
                    sampling=[Sampling(asked[i].temperature, asked[i].top_p, seeds[i]) for i in members],
                    on_generations=keep,
                )
        return [results[i] for i in range(len(requests))]

    def _generator(self, count: int) -> Generator:
        width = min(self.batch_size, count)
        programs, tokenizer = self.model.programs, self.model.tokenizer
        return Generator(programs, tokenizer, batch_size=width, row_tokens=self._scorer.row_tokens)

    def _prompts(self, texts: Sequence[str], limit: int) -> list[tuple[int, ...]]:
        """Ids of prompts with room for `limit` new tokens behind them."""
        room = self.max_length - limit
        if room < 1:
            raise ValueError(
                f"generation_kwargs: got max_gen_toks={limit}, expected less than the context of {self.max_length}; "
                "lower it with --gen_kwargs max_gen_toks=N."
            )
        prompts = [self.tok_encode(text) or [self.prefix_token_id] for text in texts]
        _warn_of_cuts(sum(len(p) > room for p in prompts), len(prompts), f"{room} tokens and {limit} new ones")
        return [tuple(prompt[-room:]) for prompt in prompts]


if "medjax" not in model_registry:  # a harness that loads entry points may have it there
    model_registry.register("medjax")(MedjaxLM)


def model_arguments(given: Mapping[str, Any], of_harness: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of MedjaxLM out of --model_args and what the harness adds (batch_size, max_batch_size, device).

    The harness cuts mesh=data=4,tensor=2 at the comma; the parts are put together again.

    Raises ValueError for a name that is unknown, and without a path.
    """
    arguments = dict(given)
    if "mesh" in arguments:
        sizes = [f"{axis}={arguments.pop(axis)}" for axis in AXES if axis in arguments]
        arguments["mesh"] = ",".join([str(arguments["mesh"] or ""), *sizes]).strip(",")
    known = list(inspect.signature(MedjaxLM).parameters)
    unknown = [name for name in arguments if name not in known]
    if unknown or "path" not in arguments:
        raise ValueError(
            f"model_args: got {', '.join(unknown or arguments) or 'none'}, expected path and any of "
            f"{', '.join(known[1:])}; write for instance path=smollm2-135m,dtype=bfloat16."
        )
    return {name: value for name, value in of_harness.items() if value is not None} | arguments


def _batch_size(asked: int | str, most: int | None) -> int:
    if str(asked).partition(":")[0] == "auto":
        return min(_AUTO_BATCH, int(most or _AUTO_BATCH))
    if not str(asked).isdigit():
        raise ValueError(f"batch_size: got {asked!r}, expected auto or a whole number; write --batch_size auto.")
    return int(asked)


def _tasks(requests: Sequence[Instance]) -> list[str | None]:
    return [request.task_name for request in requests]


def _grouped(keys: Sequence[Any]) -> list[list[int]]:
    """Indices of equal keys, in the order of first sight."""
    members: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    return list(members.values())


def _warn_of_cuts(cut: int, of: int, room: str) -> None:
    if cut:
        _log.warning("%d of %d requests lost their beginning: they are longer than %s", cut, of, room)


def main() -> None:
    """The harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
