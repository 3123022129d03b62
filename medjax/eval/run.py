"""One evaluation run, from settings to a run folder: the story that `python -m medjax.eval` tells.

    load tasks -> load model -> prompts -> open run folder -> score or generate, journalled -> judge -> results
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medjax.config import load
from medjax.eval.protocols import Prompt, Protocol, choose_demonstrations, read_template
from medjax.eval.record import identity, protocol_record
from medjax.eval.results import Evaluation, Finished, read_answers, results_json, sample_lines
from medjax.eval.settings import EvalSettings
from medjax.eval.tasks import LoadedTask, load_task
from medjax.infer.generator import Generation, Generator
from medjax.infer.language_model import LanguageModel, load_model
from medjax.infer.packing import Request
from medjax.infer.scorer import Score, Scorer, Work
from medjax.report.progress import ProgressBar
from medjax.store.runs import Journal, RunFolder


def evaluate(
    settings: EvalSettings | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Grade a model and write a run folder; returns what results.json holds.

    settings  or give options by alias, such as evaluate(model="stories260k", tasks="igakuqa", limit=20)
    say       called with one line for the user at a time
    progress  show progress bars on stderr

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    if settings is None:
        settings = load(EvalSettings, overrides={"--" + key.replace("_", "-"): v for key, v in options.items()})
    start = time.time()
    tasks, protocols = _tasks(settings), _protocols(settings)
    model = _model(settings, say, progress)
    evaluations = [_evaluation(task, protocol, model, settings) for task in tasks for protocol in protocols]
    digests = {e.id: {"data": e.task.digest, "prompts": e.prompt_digest} for e in evaluations}
    folder = RunFolder.open(_folder(settings, evaluations), identity(settings, model, digests))
    if folder.note:
        say(folder.note)
    say(f"writing to {folder.path}")
    finished = []
    for evaluation in evaluations:
        began = time.time()
        journal = folder.journal(evaluation.id)
        with ProgressBar(progress, evaluation.id) as bar:
            run = _generate if evaluation.protocol.generates else _score
            outputs, work = run(evaluation, model, settings, journal, bar)
        answers = read_answers(evaluation, outputs)
        finished.append(Finished(evaluation, answers, work, time.time() - began))
    record = protocol_record(settings, model) | {
        "folder": str(folder.path),
        "resumed": folder.resumed,
        "compiled_seconds": {name: round(seconds, 2) for name, seconds in model.programs.shapes.items()},
        "wall_seconds": round(time.time() - start, 2),
    }
    results = results_json(finished, settings, model, record)
    folder.write_text("samples.jsonl", "".join(sample_lines(finished)))
    folder.write_json("results.json", results)
    return results


def _tasks(settings: EvalSettings) -> list[LoadedTask]:
    t = settings.task
    loaded = []
    for name in t.names:
        base, _, suffix = name.rpartition(":")
        named, language = (base, suffix) if base and suffix in ("ja", "en") else (name, t.language)
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
    template = read_template(settings.protocol.template) if settings.protocol.template else None
    return [Protocol(name, settings.protocol, template) for name in names]


def _model(settings: EvalSettings, say: Callable[[str], None], progress: bool) -> LanguageModel:
    m = settings.model
    say(f"loading {m.name}")
    with ProgressBar(progress, "weights", "tensor") as bar:
        return load_model(
            m.name,
            revision=m.revision,
            dtype=m.dtype,
            chat_template=m.chat_template,
            mesh=settings.engine.mesh,
            backend=settings.engine.backend,
            progress=bar.reach,
        )


def _evaluation(task: LoadedTask, protocol: Protocol, model: LanguageModel, settings: EvalSettings) -> Evaluation:
    asked = [item for item in task.items if protocol.asks(item, task.language)]
    items = tuple(asked[: settings.task.limit])
    chat = None if protocol.name == "gestalt" else model.chat  # its harness never uses one
    shots, fixed = settings.protocol.num_fewshot, task.name == "igakuqa"
    prompts = tuple(
        protocol.prompt(item, choose_demonstrations(task, item, shots, settings.seed, fixed), task.language, chat)
        for item in items
    )
    return Evaluation(task, protocol, items, prompts, unasked=len(task.items) - len(asked))


def _folder(settings: EvalSettings, evaluations: Sequence[Evaluation]) -> Path:
    if settings.out:
        return Path(settings.out)
    tasks = dict.fromkeys(f"{e.task.name}_{e.task.language}" for e in evaluations)
    protocols = dict.fromkeys(e.protocol.id for e in evaluations)
    name = settings.name or "-".join([Path(settings.model.name).name, *tasks, *protocols])
    return Path("runs") / "eval" / name


def _generate(
    evaluation: Evaluation, model: LanguageModel, settings: EvalSettings, journal: Journal, bar: ProgressBar
) -> tuple[list[Generation], Work]:
    """One generation an item, from the journal where it has them."""
    engine, protocol = settings.engine, evaluation.protocol
    generator = Generator(
        model.programs, model.tokenizer, batch_size=engine.batch_size, row_tokens=engine.row_tokens
    )
    prompts = [tuple(_encode(model, prompt)) for prompt in evaluation.prompts]
    known = {e["i"]: Generation(tuple(e["tokens"]), e["text"], e["finish"]) for e in journal.read()}
    bar.reach(len(known), len(prompts))

    def keep(new: dict[int, Generation]) -> None:
        journal.append([{"i": i, **asdict(generation)} for i, generation in new.items()])
        bar.advance(len(new), len(prompts))

    found = generator.generate(
        prompts,
        max_new_tokens=protocol.max_new_tokens,
        stop=protocol.stop(is_chat=any(prompt.is_chat for prompt in evaluation.prompts)),
        done=known,
        on_generations=keep,
    )
    return found, generator.work


def _score(
    evaluation: Evaluation, model: LanguageModel, settings: EvalSettings, journal: Journal, bar: ProgressBar
) -> tuple[list[list[Score]], Work]:
    """The scores of each item's continuations, from the journal where it has them."""
    requests: list[Request] = []
    owners: list[int] = []  # which item a request belongs to
    for i, prompt in enumerate(evaluation.prompts):
        if prompt.continuations:
            context, continuations = model.tokenizer.encode_pairs(
                prompt.text, prompt.continuations, bos=False if prompt.is_chat else None, special=prompt.is_chat
            )
            requests += [Request(tuple(context), tuple(continuation)) for continuation in continuations]
            owners += [i] * len(continuations)
    scorer = Scorer(model.programs, row_tokens=settings.engine.row_tokens)
    known = {e["i"]: Score(tuple(e["token_logprobs"]), e["greedy"]) for e in journal.read()}
    waiting = [len(prompt.continuations) for prompt in evaluation.prompts]

    def show(indices) -> None:
        for i in indices:
            waiting[owners[i]] -= 1
        bar.reach(waiting.count(0), len(waiting))

    def keep(new: dict[int, Score]) -> None:
        journal.append([{"i": i, **asdict(score)} for i, score in new.items()])
        show(new)

    show(known)
    scores = scorer.score(requests, done=known, on_scores=keep)
    by_item: list[list[Score]] = [[] for _ in evaluation.items]
    for owner, score in zip(owners, scores, strict=True):
        by_item[owner].append(score)
    return by_item, scorer.work


def _encode(model: LanguageModel, prompt: Prompt) -> list[int]:
    if prompt.is_chat:
        return model.tokenizer.encode(prompt.text, bos=False, special=True)
    return model.tokenizer.encode(prompt.text)
