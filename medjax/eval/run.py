"""One evaluation run, from settings to a run folder: the story that `python -m medjax.eval` tells.

load tasks -> choose items -> load model -> prompts -> tokens, which must fit -> open run folder -> score or generate,
journalled -> judge -> results

With an adapter every evaluation runs twice, first the base and then the adapter beside the same weights, on the same
prompts. Whatever can be refused without the model is refused before it is loaded.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from medjax.config import load, to_toml
from medjax.data.exams.tasks import TASKS, LoadedTask, load_task
from medjax.data.qa import Item
from medjax.eval.protocols import Prompt, PromptTemplate, Protocol, choose_demonstrations
from medjax.eval.record import identity, protocol_record
from medjax.eval.results import Evaluation, Finished, read_answers, results_json, sample_lines
from medjax.eval.settings import EvalSettings
from medjax.infer.generator import Generation, Generator
from medjax.infer.language_model import LanguageModel
from medjax.infer.packing import Request
from medjax.infer.programs import Programs
from medjax.infer.run import load_base
from medjax.infer.scorer import Score, Scorer, Work
from medjax.report.exam import exam_report, summary_figure
from medjax.report.progress import ProgressBar
from medjax.store.runs import Journal, RunFolder, named, shortened


@dataclass(frozen=True)
class _Run:
    """One evaluation, ready to run.

    tokens  sha256 of all token ids
    call    gives a model's outputs in item order, what they took, how many items the journal already had
    """

    tokens: str
    call: Callable[[Programs, Journal, ProgressBar], tuple[list[Any], Work, int]]


def evaluate(
    settings: EvalSettings | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Grade a model and write a run folder; returns what results.json holds.

    settings  or options by alias instead, such as evaluate(model="stories260k", tasks="igakuqa", limit=20)
    say       called with one line for the user at a time
    progress  show progress bars on stderr

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    if settings is not None and options:
        raise ValueError(f"evaluate: got settings and {', '.join(options)}, expected one or the other; put all in one.")
    if settings is None:
        given = {f"--{name.replace('_', '-')}": str(v) if isinstance(v, Path) else v for name, v in options.items()}
        settings = load(EvalSettings, overrides=given)
    start = time.time()
    tasks, protocols = _tasks(settings), _protocols(settings)
    evaluations = [_evaluation(task, protocol, settings) for task in tasks for protocol in protocols]
    _check_distinct(evaluations)
    place = _folder(settings, evaluations)
    RunFolder.check(place)
    model = load_base(settings.model, settings.engine, say=say, progress=progress)
    adapter = settings.model.adapter
    variants = {"base": model, "adapter": model.with_adapter(adapter)} if adapter else {"": model}
    evaluations = [replace(e, prompts=_prompts(e, model, settings)) for e in evaluations]
    runs = [(_generation if e.protocol.generates else _scoring)(e, model, settings) for e in evaluations]
    digests = {
        e.id: {"data": e.task.digest, "prompts": e.prompt_digest, "tokens": run.tokens}
        for e, run in zip(evaluations, runs, strict=True)
    }
    graded = variants.get("adapter", model)
    with RunFolder.open(place, identity(settings, graded, digests)) as folder:
        if folder.note:
            say(folder.note)
        say(f"writing to {folder.path}")
        folder.write_text("config.toml", to_toml(settings))
        finished = []
        for (evaluation, run), variant in product(zip(evaluations, runs, strict=True), variants):
            began, asked = time.time(), replace(evaluation, variant=variant)
            with ProgressBar(progress, asked.id) as bar:
                outputs, work, reused = run.call(variants[variant].programs, folder.journal(asked.id), bar)
            answers = read_answers(asked, outputs)
            finished.append(Finished(asked, answers, work, reused, time.time() - began))
        record = protocol_record(settings, graded) | {
            "folder": str(folder.path),
            "resumed": folder.resumed,
            "compiled_seconds": {
                f"{variant}: {name}" if variant else name: round(seconds, 2)
                for variant, one in variants.items()
                for name, seconds in one.programs.shapes.items()
            },
            "wall_seconds": round(time.time() - start, 2),
        }
        results = results_json(finished, settings, model, record)
        folder.write_text("samples.jsonl", "".join(sample_lines(finished)))
        folder.write_text("report.html", exam_report(results))
        folder.write_text("figure.svg", summary_figure(results))
        folder.write_json("results.json", results)
    return results


def _tasks(settings: EvalSettings) -> list[LoadedTask]:
    t = settings.task
    loaded = []
    for name in t.names:
        base, _, suffix = name.rpartition(":")
        has_language = base in TASKS or base.endswith(".jsonl") or (base and suffix in ("ja", "en"))
        named, language = (base, suffix) if has_language else (name, t.language)
        loaded.append(
            load_task(
                named,
                years=t.years,
                sections=t.sections,
                categories=t.categories,
                text_only=t.text_only,
                language=language,
                data_dir=t.data_dir,
            )
        )
    return loaded


def _protocols(settings: EvalSettings) -> list[Protocol]:
    names = settings.protocol.names
    if not names:
        is_mini = all(name.partition(":")[0] == "mini" for name in settings.task.names)
        names = ("choice-logprob", "strict") if is_mini else ("strict",)
    template = PromptTemplate.read(settings.protocol.template) if settings.protocol.template else None
    return [Protocol(name, settings.protocol, template) for name in names]


def _evaluation(task: LoadedTask, protocol: Protocol, settings: EvalSettings) -> Evaluation:
    """What is asked; the prompts wait for the model. Raises ValueError where nothing is, or demonstrations are few."""
    asked = [item for item in task.items if protocol.asks(item, task.language)]
    items = tuple(asked[: settings.task.limit])
    if not items:
        raise ValueError(
            f"task {task.name}: got {len(task.items)} items, of which protocol {protocol.name} asks none "
            "(docs/protocols.md says which it leaves out); choose another protocol for this set."
        )
    _demonstrations(task, items[0], settings)
    return Evaluation(task, protocol, items, prompts=(), unasked=len(task.items) - len(asked))


def _demonstrations(task: LoadedTask, item: Item, settings: EvalSettings) -> list[Item]:
    fixed = task.name == "igakuqa" and not task.pool_is_test
    return choose_demonstrations(task, item, settings.protocol.num_fewshot, settings.seed, fixed)


def _prompts(evaluation: Evaluation, model: LanguageModel, settings: EvalSettings) -> tuple[Prompt, ...]:
    """A prompt an item. Raises ValueError for an item that writes special tokens into a chat."""
    task, protocol = evaluation.task, evaluation.protocol
    chat = None if protocol.name == "gestalt" else model.chat  # its harness never uses one
    shown = [(item, _demonstrations(task, item, settings)) for item in evaluation.items]
    if chat:
        every = {id(item): item for asked, demonstrations in shown for item in (asked, *demonstrations)}
        _check_plain(task, every.values(), model.tokenizer.special_texts)
    return tuple(protocol.prompt(item, demonstrations, task.language, chat) for item, demonstrations in shown)


def _check_plain(task: LoadedTask, items: Iterable[Item], specials: Iterable[str]) -> None:
    """A chat's text is read with its special tokens: an item that holds one could end its turn and answer itself."""
    for item in items:
        text = "\n".join((item.context, item.question, *item.choices))
        found = sorted(token for token in specials if token in text)
        if found:
            raise ValueError(
                f"task {task.name}: item {item.id}: got the text {', '.join(found)}, special tokens of this model, "
                "expected none inside a chat; clean the item, or ask without the template (--chat-template none)."
            )


def _folder(settings: EvalSettings, evaluations: Sequence[Evaluation]) -> Path:
    if settings.out:
        return named(settings.out)
    tasks = dict.fromkeys(f"{e.task.name}_{e.task.language}" for e in evaluations)
    protocols = dict.fromkeys(e.protocol.id for e in evaluations)
    models = [_last_part(name) for name in (settings.model.name, settings.model.adapter) if name]
    name = settings.name or shortened("-".join([*models, *tasks, *protocols]))
    return named(Path("runs") / "eval" / name)


def _last_part(name: str) -> str:
    path = Path(name).expanduser()
    return Path(os.path.abspath(path)).name if path.exists() else path.name  # "." has no name


def _check_distinct(evaluations: Sequence[Evaluation]) -> None:
    for name, times in Counter(e.id for e in evaluations).items():
        if times > 1:
            raise ValueError(
                f"task and protocol: got {name} {times} times, expected it once, since results are kept by this name; "
                "drop the repeat, or rename one of two exams whose files have the same name."
            )


def _generation(evaluation: Evaluation, model: LanguageModel, settings: EvalSettings) -> _Run:
    """A run that gives a Generation an item. Raises ValueError for a prompt that leaves no room for an answer."""
    room = evaluation.protocol.max_new_tokens
    prompts = []
    for item, prompt in zip(evaluation.items, evaluation.prompts, strict=True):
        ids = model.tokenizer.encode(prompt.text, bos=False if prompt.is_chat else None, special=prompt.is_chat)
        _check_fits(evaluation, item.id, len(ids), room, model)
        prompts.append(tuple(ids))

    def run(programs: Programs, journal: Journal, bar: ProgressBar) -> tuple[list[Any], Work, int]:
        engine = settings.engine
        generator = Generator(programs, model.tokenizer, batch_size=engine.batch_size, row_tokens=engine.row_tokens)
        entries = journal.read(("i", "tokens", "text", "finish"))
        known = {e["i"]: Generation(tuple(e["tokens"]), e["text"], e["finish"]) for e in entries}
        done = set(known)
        bar.reach(len(done), len(prompts))

        def keep(new: dict[int, Generation]) -> None:
            journal.append([{"i": i, **asdict(generation)} for i, generation in new.items()])
            done.update(new)
            bar.reach(len(done), len(prompts))

        found = generator.generate(
            prompts,
            max_new_tokens=room,
            stop=evaluation.protocol.stop(is_chat=any(prompt.is_chat for prompt in evaluation.prompts)),
            done=known,
            on_generations=keep,
        )
        return found, generator.work, len(known)

    return _Run(_ids_digest(prompts), run)


def _scoring(evaluation: Evaluation, model: LanguageModel, settings: EvalSettings) -> _Run:
    """A run that gives a list of Score an item, one for each continuation.

    Raises ValueError for a prompt that is longer than the model's context.
    """
    requests: list[Request] = []
    owners: list[int] = []  # which item a request belongs to
    for number, (item, prompt) in enumerate(zip(evaluation.items, evaluation.prompts, strict=True)):
        if prompt.continuations:  # an item that asks for a number has none
            context, continuations = model.tokenizer.encode_pairs(
                prompt.text, prompt.continuations, bos=False if prompt.is_chat else None, special=prompt.is_chat
            )
            _check_fits(evaluation, item.id, len(context), max(map(len, continuations)), model)
            requests += [Request(tuple(context), tuple(continuation)) for continuation in continuations]
            owners += [number] * len(continuations)
    items = len(evaluation.items)

    def run(programs: Programs, journal: Journal, bar: ProgressBar) -> tuple[list[Any], Work, int]:
        scorer = Scorer(programs, row_tokens=settings.engine.row_tokens)
        entries = journal.read(("i", "token_logprobs", "greedy"))
        known = {e["i"]: Score(tuple(e["token_logprobs"]), e["greedy"]) for e in entries}
        waiting = set(range(len(requests))) - set(known)

        def show() -> int:
            done = items - len({owners[i] for i in waiting})
            bar.reach(done, items)
            return done

        def keep(new: dict[int, Score]) -> None:
            journal.append([{"i": i, **asdict(score)} for i, score in new.items()])
            waiting.difference_update(new)
            show()

        reused = show() if known else 0
        by_item: list[list[Score]] = [[] for _ in range(items)]
        for owner, score in zip(owners, scorer.score(requests, done=known, on_scores=keep), strict=True):
            by_item[owner].append(score)
        return by_item, scorer.work, reused

    return _Run(_ids_digest(ids for request in requests for ids in (request.context, request.continuation)), run)


def _ids_digest(sequences: Iterable[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(np.asarray([len(ids), *ids], "<i4").tobytes())
    return digest.hexdigest()


def _check_fits(evaluation: Evaluation, item: str, prompt: int, answer: int, model: LanguageModel) -> None:
    limit = model.decoder.config.max_length
    if prompt + answer > limit:
        raise ValueError(
            f"{evaluation.id}: item {item}: got {prompt} tokens and {answer} of an answer, expected at most the "
            f"model's context of {limit}; ask with fewer examples (--num-fewshot) or new tokens (--max-new-tokens), "
            "leave the set out, or take a model with a longer context."
        )
