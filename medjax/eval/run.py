"""One evaluation run, from settings to a run folder: the story that `python -m medjax.eval` tells.

load tasks -> choose items -> load model -> asks -> tokens -> open run folder -> score or generate, journalled -> read
and judge -> results

In several processes each does its part up to the journal, and the last the rest (medjax.eval.shards).
With an adapter every evaluation runs twice, first the base and then the adapter beside the same weights, on the same
prompts. Whatever can be refused without the model is refused before it is loaded.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import jax

from medjax.config import load, to_toml
from medjax.data.exams.catalogue import GROUPS, TASKS
from medjax.data.exams.groups import expand
from medjax.data.exams.own_exam import is_exam_file
from medjax.data.exams.tasks import LoadedTask, load_task
from medjax.eval.asking import Evaluation, ask, choose_items
from medjax.eval.demonstrations import Demonstrations
from medjax.eval.difference import difference
from medjax.eval.notes import notes
from medjax.eval.outputs import Questions, questions
from medjax.eval.protocols import Protocol
from medjax.eval.reading import read_answers
from medjax.eval.record import identity, protocol_record
from medjax.eval.results import results_json
from medjax.eval.samples import Finished, sample_lines
from medjax.eval.settings import EvalSettings
from medjax.eval.shards import (
    WHOLE,
    Shard,
    check_alone,
    check_free,
    check_whole,
    complete_count,
    finish,
    gather,
    how_to_go_on,
    join,
    record,
    settings_file,
    unfinished,
)
from medjax.eval.templates import PromptTemplate
from medjax.infer.language_model import LanguageModel
from medjax.infer.programs import Programs
from medjax.infer.run import load_base
from medjax.report.exam import exam_report
from medjax.report.exam_figure import summary_figure
from medjax.report.progress import ProgressBar
from medjax.store.provenance import command
from medjax.store.runs import FolderInUseError, RunFolder, named, shortened


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

    With shard="1/4" this process does its part, and returns {} unless it is the last and writes the results.
    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    if settings is not None and options:
        raise ValueError(f"evaluate: got settings and {', '.join(options)}, expected one or the other; put all in one.")
    if settings is None:
        given = {f"--{name.replace('_', '-')}": str(v) if isinstance(v, Path) else v for name, v in options.items()}
        settings = load(EvalSettings, overrides=given)
    if settings.models:
        raise ValueError(
            f"models: got {', '.join(settings.models)} in a call that grades one model, expected model=...; call it "
            "for each, or run python -m medjax.eval --models."
        )
    shard = Shard.read(settings.shard) if settings.shard else WHOLE
    settings = replace(settings, shard=None)  # what is recorded is the whole run
    if shard != WHOLE:
        return _make(settings, shard, say, progress)
    check_alone()
    start = time.time()
    return _write(_prepared(settings, check_whole, say, progress), 1, start, say, progress)


def merge(
    path: str | Path, *, say: Callable[[str], None] = lambda line: None, progress: bool = False
) -> dict[str, Any]:
    """Put the shards of a run together and write what one process would have written; returns what results.json holds.

    path  of the whole run's folder

    The model is loaded, on devices as those of the shards, but nothing is computed.
    Raises ValueError or FileNotFoundError that names the shards which are missing, with the commands that make them.
    """
    settings = replace(load(EvalSettings, settings_file(path)), out=str(named(path)))
    start, count = time.time(), complete_count(named(path), command(settings, "medjax.eval"))
    return _write(_prepared(settings, RunFolder.check, say, progress), count, start, say, progress)


@dataclass(frozen=True)
class _Prepared:
    """A run before its first token is computed.

    graded    the model, with its adapter where there is one
    variants  "base" and "adapter", or "" alone, and their models
    jobs      every evaluation of every variant, its tokens, and what computes it
    """

    settings: EvalSettings
    place: Path
    model: LanguageModel
    graded: LanguageModel
    variants: dict[str, LanguageModel]
    identity: dict[str, Any]
    jobs: list[tuple[Evaluation, Questions, Programs]]

    @property
    def compiled(self) -> dict[str, float]:
        """Seconds that every program took to compile here."""
        return {
            f"{variant}: {name}" if variant else name: round(seconds, 2)
            for variant, one in self.variants.items()
            for name, seconds in one.programs.shapes.items()
        }


def _prepared(
    settings: EvalSettings, check: Callable[[Path], None], say: Callable[[str], None], progress: bool
) -> _Prepared:
    """check is called with the run's folder before the model is loaded."""
    chosen = _choose(settings, say)
    evaluations = [evaluation for evaluation, _ in chosen]
    _check_distinct(evaluations)
    place = _folder(settings, evaluations)
    check(place)
    _check_one_process()
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
    jobs = [
        (replace(evaluation, variant=variant), run, variants[variant].programs)
        for (evaluation, run), variant in product(zip(evaluations, runs, strict=True), variants)
    ]
    return _Prepared(settings, place, model, graded, variants, identity(settings, graded, digests), jobs)


def _make(settings: EvalSettings, shard: Shard, say: Callable[[str], None], progress: bool) -> dict[str, Any]:
    """One process of several; the last that ends puts all parts together."""
    start = time.time()
    run = _prepared(settings, lambda place: check_free(place, shard), say, progress)
    with join(run.place, shard, run.identity, to_toml(settings), say, difference(run.place, settings)) as folder:
        say(f"shard {shard}: writing to {folder.path}")
        seconds = {}
        for asked, tokens, programs in run.jobs:
            began = time.time()
            with ProgressBar(progress, f"{shard} {asked.id}") as bar, programs.watched(bar.compiling):
                tokens.call(programs, folder.journal(asked.id), bar, shard)
            seconds[asked.id] = round(time.time() - began, 2)
        took = {"resumed": folder.resumed, "compiled_seconds": run.compiled, "seconds": seconds}
        finish(folder, shard, took | {"wall_seconds": round(time.time() - start, 2)})
    again = command(settings, "medjax.eval")
    if missing := unfinished(run.place, shard.count):
        say(f"shard {shard} is complete; still running, or to be started:\n{how_to_go_on(again, missing)}")
        return {}
    try:
        return _write(run, complete_count(run.place, again), start, say, progress)
    except FolderInUseError:
        say(f"shard {shard} is complete; another process puts all shards together")
        return {}


def _write(run: _Prepared, count: int, start: float, say: Callable[[str], None], progress: bool) -> dict[str, Any]:
    """Compute what no journal has, and write the files; returns what results.json holds.

    count  of shards that are complete, whose journals are put together first; 1: there are none
    start  time at which the work began
    """
    merging = count > 1
    with RunFolder.open(
        run.place, run.identity, replace=not merging, told=difference(run.place, run.settings)
    ) as folder:
        if folder.note and not merging:
            say(folder.note)
        say(f"writing to {folder.path}")
        folder.write_text("config.toml", to_toml(run.settings))
        parts = record(run.place, count) if merging else []
        finished = []
        for asked, tokens, programs in run.jobs:
            began, journal = time.time(), folder.journal(asked.id)
            if merging:
                gather(run.place, count, journal)
            with ProgressBar(progress and not merging, asked.id) as bar, programs.watched(bar.compiling):
                outputs, work, reused = tokens.call(programs, journal, bar, WHOLE)
            answers = read_answers(asked, outputs)
            seconds = max((part["seconds"][asked.id] for part in parts), default=time.time() - began)
            finished.append(Finished(asked, answers, work, 0 if merging else reused, seconds))
        took = {"compiled_seconds": run.compiled, "wall_seconds": round(time.time() - start, 2)}
        if merging:
            took["compiled_seconds"] = {k: v for part in parts for k, v in part["compiled_seconds"].items()}
            kept = ("host", "resumed", "wall_seconds")
            shards = {part["shard"]: {name: part[name] for name in kept} for part in parts}
            took |= {"wall_seconds": max(part["wall_seconds"] for part in parts), "shards": shards}
        resumed = any(part["resumed"] for part in parts) if merging else folder.resumed
        about = {"folder": str(folder.path), "resumed": resumed, **took}
        results = results_json(finished, run.settings, run.model, protocol_record(run.settings, run.graded) | about)
        lines = list(sample_lines(finished))
        folder.write_text("samples.jsonl", "".join(lines))
        folder.write_text("report.html", exam_report(results, map(json.loads, lines)))
        folder.write_text("figure.svg", summary_figure(results))
        folder.write_json("results.json", results)
    return results


def _choose(settings: EvalSettings, say: Callable[[str], None]) -> list[tuple[Evaluation, Demonstrations]]:
    """Every set under every protocol, without its asks, and where its worked examples come from."""
    names = settings.task.names
    if not GROUPS.keys().isdisjoint(names):
        names, left_out = expand(names, settings.task.data_dir, language=settings.task.language)
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
    for line in notes(settings, [evaluation for evaluation, _ in chosen]):
        say(line)
    return chosen


def _check_one_process() -> None:
    if (count := jax.process_count()) > 1:
        raise ValueError(
            f"mesh: got devices of {count} processes joined by JAX, expected those of one; start each process by "
            "itself with --shard, the whole model on its own devices (--mesh within each machine)."
        )


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
        has_language = base in TASKS or is_exam_file(base) or (base and suffix in ("ja", "en"))
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
