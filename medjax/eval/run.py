"""One evaluation run, from settings to a run folder: the story that `python -m medjax.eval` tells.

load tasks -> choose items -> load model -> asks -> tokens -> open run folder -> score or generate, journalled -> read
and judge -> results

With an adapter every evaluation runs twice, first the base and then the adapter beside the same weights, on the same
prompts. Whatever can be refused without the model is refused before it is loaded.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from medjax.config import load, to_toml
from medjax.data.exams.groups import GROUPS, expand
from medjax.data.exams.tasks import TASKS, LoadedTask, load_task
from medjax.eval.asking import Evaluation, ask, choose_items
from medjax.eval.outputs import questions
from medjax.eval.protocols import Protocol
from medjax.eval.reading import read_answers
from medjax.eval.record import identity, protocol_record
from medjax.eval.results import results_json
from medjax.eval.samples import Finished, sample_lines
from medjax.eval.settings import EvalSettings
from medjax.eval.templates import PromptTemplate
from medjax.infer.run import load_base
from medjax.report.exam import exam_report, summary_figure
from medjax.report.progress import ProgressBar
from medjax.store.runs import RunFolder, named, shortened


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
    names = settings.task.names
    if not GROUPS.keys().isdisjoint(names):
        names, left_out = expand(names, settings.task.data_dir)
        for line in left_out:
            say(line)
    tasks, protocols = _tasks(names, settings), _protocols(settings)
    chosen = [
        choose_items(task, protocol, settings)
        for task in tasks
        for protocol in protocols
        if names == settings.task.names or _can_ask(task, protocol, say)
    ]
    if not chosen:
        raise ValueError(
            f"protocol: got {', '.join(protocol.name for protocol in protocols)}, expected one that asks some item of "
            f"{', '.join(settings.task.names)}; strict and cot ask them all."
        )
    evaluations = [evaluation for evaluation, _ in chosen]
    _check_distinct(evaluations)
    place = _folder(settings, evaluations)
    RunFolder.check(place)
    model = load_base(settings.model, settings.engine, say=say, progress=progress)
    adapter = settings.model.adapter
    variants = {"base": model, "adapter": model.with_adapter(adapter)} if adapter else {"": model}
    specials = model.tokenizer.special_texts
    evaluations = [ask(evaluation, shots, model.chat, specials) for evaluation, shots in chosen]
    runs = [questions(evaluation, model, settings) for evaluation in evaluations]
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
        lines = list(sample_lines(finished))
        folder.write_text("samples.jsonl", "".join(lines))
        folder.write_text("report.html", exam_report(results, map(json.loads, lines)))
        folder.write_text("figure.svg", summary_figure(results))
        folder.write_json("results.json", results)
    return results


def _can_ask(task: LoadedTask, protocol: Protocol, say: Callable[[str], None]) -> bool:
    """Whether the protocol asks any item of a task; of a group it may leave some sets out, which is said."""
    if any(protocol.asks(item, task.language) for item in task.items):
        return True
    say(f"{task.name} is left out under {protocol.name}, which asks none of its items")
    return False


def _tasks(names: Sequence[str], settings: EvalSettings) -> list[LoadedTask]:
    t = settings.task
    loaded = []
    for name in names:
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
    """One for each name and template, with `majority` one for each name."""
    p = settings.protocol
    names = p.names
    if not names:
        is_mini = all(name.partition(":")[0] == "mini" for name in settings.task.names)
        names = ("choice-logprob", "strict") if is_mini and not p.temperature else ("strict",)
    templates = tuple(PromptTemplate.read(path) for path in p.template)
    asked_with = [templates] if p.majority or not templates else [(template,) for template in templates]
    return [Protocol(name, p, each) for name in names for each in asked_with]


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
