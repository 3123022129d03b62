"""Exam items in training data: which were found where, how surely, and what runs score without them.

Three levels, the surest counts: `exact`, the question to the letter; `normalised`, the same letters and digits (NFKC,
case, blanks and punctuation aside); `near`, a near duplicate by n-grams of letters (data.text.near_duplicates, whose
search finds candidates of all three). Where a question is too short to tell one item from another, its choices must be
there too. Contexts are looked for by themselves: where one stands without its question, the item is reported, but not
as found (eval.found_items). Training data are read stretch by stretch, whatever their size.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medjax.data.decoding import TABLES
from medjax.data.exams.groups import expand
from medjax.data.exams.own_exam import is_exam_file
from medjax.data.exams.tasks import TASKS, LoadedTask, load_task
from medjax.data.exams.training import asked_of, is_training_part, write_training_part
from medjax.data.qa import Item
from medjax.data.text.near_duplicates import NearIndex
from medjax.data.text.records import find_files
from medjax.data.text.stretches import Stretch, size_of, stretches
from medjax.eval.found_items import ANOTHER, LEVELS, NOWHERE, QUESTION_LEVELS, SAME, ItemFinder, Match
from medjax.eval.graded import GradedRun, called, labels
from medjax.eval.metric_differences import headlines, reading_of
from medjax.eval.metrics import grade
from medjax.eval.part_differences import part_differences
from medjax.eval.scoring import in_accuracy
from medjax.eval.subcommands import AuditSettings
from medjax.report.drawing import counted
from medjax.report.progress import ProgressBar
from medjax.statistics import intervals

_BLOCK = 1 << 20  # characters searched at one time
_MEGABYTE = 1e6


def audit(
    settings: AuditSettings, *, say: Callable[[str], None] = lambda line: None, progress: bool = False
) -> dict[str, Any]:
    """Look for the items of question sets in training data.

    returns  tasks: items, items found by level, those of which the context alone was found (context), items with a
             context and where the contexts of the questions found are, records that hold any question; unchecked,
             too short to be looked for, and not_alone, looked for with their choices only; for each set and language;
             matches: task, language, item, level, containment, jaccard, record, where, records,
             others, where the context is, asked and excerpt with the spans that agree; runs: label, evaluation, and
             scores of all items, without those found, and of those found, with the set's headline metric where that is
             not accuracy, and the differences of these scores (eval.part_differences); records, letters; thresholds

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    tasks = load_tasks(settings.tasks, settings.data_dir, say)
    runs = [GradedRun.read(path) for path in settings.run]
    _check_audited(runs, tasks)
    for run, label in zip(runs, labels(runs), strict=True):
        for key in run.evaluations:
            if reason := run.not_graded(key):
                say(f"{label}: {called(key)} is not scored again, since no item reached the model: {reason}")
    items = [(task, item) for task in tasks for item in task.items]
    asked = [each for task in tasks for each in asked_of(task, task.name)]
    index = partial(
        NearIndex,
        containment=settings.containment,
        jaccard=settings.jaccard,
        ngram_japanese=settings.ngram_japanese,
        ngram=settings.ngram,
        sketch=settings.sketch,
    )
    finder = ItemFinder([item for _, item in items], asked, index)
    letters, records = 0, _Distinct()
    holders: dict[tuple[str, str], _Distinct] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = find_files([_file(name, Path(folder), settings.data_dir) for name in settings.train], besides=TABLES)
        total = size_of(files)
        say(f"looking for {counted(len(items), 'item')} in {counted(len(files), 'file')}, {total / _MEGABYTE:,.1f} MB")
        lap = 4 * max(len(each.stem) + sum(map(len, each.details)) for each in asked)
        pieces = stretches(files, lap=min(lap, _BLOCK // 4), split=settings.split)
        with ProgressBar(progress, "reading", "MB") as bar:
            megabytes = max(1, round(total / _MEGABYTE))
            for block in _blocks(pieces):
                for number, match in finder.look(block):
                    if match.level in QUESTION_LEVELS:
                        task, _ = items[number]
                        holders.setdefault((task.name, task.language), _Distinct()).add(match.stretch.where)
                for stretch in block:
                    letters += stretch.fresh
                    records.add(stretch.where)
                bar.reach(round(block[-1].done / _MEGABYTE), megabytes)
            bar.reach(megabytes, megabytes)  # files hold more than text
    matches = [_entry(*items[number], match) for number, match in sorted(finder.found.items())]
    held = {(each["task"], each["language"], each["item"]) for each in matches if each["level"] in QUESTION_LEVELS}
    unchecked, not_alone = (
        {(items[number][0].name, items[number][0].language, items[number][1].id) for number in numbers}
        for numbers in (finder.unchecked, finder.not_alone)
    )
    return {
        "train": list(settings.train),
        "files": [str(file) for file in files],
        "records": records.count,
        "letters": letters,
        "thresholds": {
            name: getattr(settings, name) for name in ("containment", "jaccard", "ngram_japanese", "ngram", "sketch")
        },
        "tasks": [_summary(task, matches, unchecked, not_alone, holders) for task in tasks],
        "matches": matches,
        "runs": list(_rescored(runs, tasks, held, settings)),
    }


def load_tasks(
    names: Sequence[str], data_dir: str | None, say: Callable[[str], None] = lambda line: None
) -> list[LoadedTask]:
    """Question sets and groups of them, named as for medjax.eval; without a language all of a set's languages.

    say  called with a line for each member of a group that is not on this machine
    """
    found = {}
    expanded, left_out = expand(names, data_dir)
    for line in left_out:
        say(line)
    for name in expanded:
        base, _, suffix = name.rpartition(":")
        has_language = base in TASKS or is_exam_file(base)
        plain = base if has_language else name
        languages = (suffix,) if has_language else TASKS[plain].languages if plain in TASKS else (None,)
        for language in languages:
            task = load_task(plain, language=language, data_dir=data_dir)
            found[task.name, task.language] = task
    return list(found.values())


class _Distinct:
    """Counts different names where the same ones follow each other."""

    def __init__(self) -> None:
        self.count = 0
        self._last: str | None = None

    def add(self, name: str) -> None:
        self.count += name != self._last
        self._last = name


def _file(name: str, folder: Path, data_dir: str | None) -> Path:
    if is_training_part(name):
        return write_training_part(name, folder, chat=False, explanations=True, data_dir=data_dir)
    return Path(name).expanduser()


def _blocks(pieces: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    block: list[Stretch] = []
    size = 0
    for piece in pieces:
        block.append(piece)
        size += len(piece.text)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _entry(task: LoadedTask, item: Item, match: Match) -> dict[str, Any]:
    return {
        **{"task": task.name, "language": task.language, "item": item.id, "exam": item.exam, "level": match.level},
        **{"containment": round(match.near.containment, 4), "jaccard": round(match.near.jaccard, 4)},
        **{"record": match.stretch.record, "where": match.stretch.where},
        **{"records": match.records, "others": match.others},
        "context": match.context,
        "asked": match.asked,
        "excerpt": match.excerpt,
    }


def _summary(
    task: LoadedTask,
    matches: Sequence[Mapping[str, Any]],
    unchecked: set[tuple[str, str, str]],
    not_alone: set[tuple[str, str, str]],
    holders: Mapping[tuple[str, str], _Distinct],
) -> dict[str, Any]:
    place = task.name, task.language
    mine = [match for match in matches if (match["task"], match["language"]) == place]
    short, with_choices = (
        [item for name, language, item in sorted(ids) if (name, language) == place] for ids in (unchecked, not_alone)
    )
    return {
        **{"task": task.name, "language": task.language, "digest": task.digest, "items": len(task.items)},
        **{level: sum(match["level"] == level for match in mine) for level in LEVELS},
        "contexts": sum(bool(item.context) for item in task.items),
        "contexts_of_found": {
            where: sum(match["context"] == where for match in mine) for where in (SAME, ANOTHER, NOWHERE)
        },
        "records": holders[place].count if place in holders else 0,
        "unchecked": len(short),
        "unchecked_ids": short,
        "not_alone": len(with_choices),
        "not_alone_ids": with_choices,
    }


def _check_audited(runs: Sequence[GradedRun], tasks: Sequence[LoadedTask]) -> None:
    digests = {(task.name, task.language): task.digest for task in tasks}
    for run in runs:
        shared = [key for key in run.evaluations if key[:2] in digests]
        if not shared:
            held = ", ".join(dict.fromkeys(f"{key[0]}:{key[1]}" for key in run.evaluations))
            raise ValueError(
                f"audit: {run.path} graded {held}, expected one of the sets looked for "
                f"({', '.join(':'.join(place) for place in digests)}); name it with --tasks, or leave the run out."
            )
        for key in shared:
            got, expected = run.evaluations[key]["data"]["digest"], digests[key[:2]]
            if got != expected:
                raise ValueError(
                    f"audit: {run.path}: {key[0]}: got data {got[:12]}, expected {expected[:12]} as read now; grade it "
                    "on the same files, or name their folder with --data-dir."
                )


def _rescored(
    runs: Sequence[GradedRun], tasks: Sequence[LoadedTask], held: set[tuple[str, str, str]], settings: AuditSettings
) -> Iterator[dict[str, Any]]:
    """Scores of every run on every set that was looked for, with and without the items found."""
    # a sample does not tell what a withdrawn item is worth
    asked = {(task.name, task.language): {item.id: item for item in task.items} for task in tasks}
    names = {
        (task.name, task.language): [metric.name for metric in headlines(task.metrics, task.items)] for task in tasks
    }
    for run, label in zip(runs, labels(runs), strict=True):
        samples = run.samples([key for key in run.evaluations if key[:2] in asked and not run.not_graded(key)])
        for key, by_item in samples.items():
            clean = {item: sample for item, sample in by_item.items() if (*key[:2], item) not in held}
            caught = {item: sample for item, sample in by_item.items() if item not in clean}
            task, language, protocol = key
            items = {item: asked[key[:2]][item] for item in by_item}
            parts = {"all": by_item, "without": clean, "matched": caught}
            yield {
                **{"label": label, "path": str(run.path), "evaluation": called(key)},
                **{"task": task, "language": language, "protocol": protocol},
                **{name: _score(part, items, names[key[:2]], settings) for name, part in parts.items()},
                "differences": part_differences(
                    [(items[item], sample) for item, sample in clean.items()],
                    [(items[item], sample) for item, sample in caught.items()],
                    names[key[:2]],
                    resamples=settings.resamples,
                    seed=settings.seed,
                ),
            }


def _score(
    samples: Mapping[str, Mapping[str, Any]],
    items: Mapping[str, Item],
    metrics: Sequence[str],
    settings: AuditSettings,
) -> dict[str, Any]:
    """Accuracy and points of some items with their intervals, and the metrics wanted; None where there is no item.

    items  all that the run asked: they say which of these accuracy counts (scoring.in_accuracy)
    """
    how = {"resamples": settings.resamples, "seed": settings.seed}
    in_it = in_accuracy((str(item.kind), item.answer) for item in items.values())
    is_counted = dict(zip(items, in_it, strict=True))
    right = [bool(sample["correct"]) for item, sample in samples.items() if is_counted[item]]
    won, worth = [sample["points"] for sample in samples.values()], [items[item].points for item in samples]
    accuracy = intervals.share_interval(right) if right else None
    share = intervals.ratio_interval(won, worth, **how) if sum(worth) else None
    readings = [reading_of(sample.get("picked")) for sample in samples.values()]
    graded = grade(metrics, [items[item] for item in samples], readings, **how)
    return {
        "items": len(samples),
        "accuracy_items": len(right),
        "correct": sum(right),
        "accuracy": accuracy.estimate if accuracy else None,
        "accuracy_interval": [accuracy.low, accuracy.high] if accuracy else None,
        "points": sum(won),
        "points_total": sum(worth),
        "points_share_interval": [share.low, share.high] if share else None,
        "metrics": {
            name: {key: found[key] for key in ("value", "interval", "no_interval", "items")}
            for name, found in graded.items()
        },
    }
