"""`load_task` reads a question set of the catalogue, or an exam of the user's, and keeps the items asked for.

IgakuQA comes with its authors' three demonstrations; sets with a training part, or that are part of a larger one, with
questions outside the test set. The other published files hold nothing more: there the pool is the set itself
(`pool_is_test`), and whoever picks demonstrations must leave out the question being asked.

An exam of your own is a task too: give the path of a .jsonl, .json, .csv or .tsv file (medjax.data.exams.own_exam).
Section "required" is its required part; no pass rule is known for it.
"""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from medjax.data.exams import sources
from medjax.data.exams.catalogue import FURTHER_LICENSING, GROUPS, REQUIRED_LICENSING, TASKS
from medjax.data.exams.definition import LoadedTask, PassRule, Task
from medjax.data.exams.own_exam import ENDINGS, is_exam_file
from medjax.data.exams.rows import Files, Rows
from medjax.data.qa import Item, Kind, is_japanese

__all__ = ["FOLDER", "TASKS", "LoadedTask", "PassRule", "Task", "load_task"]

FOLDER = "igakuqa-folder:"
# what an item's kind is graded by where its set names no metrics
_METRICS: dict[Kind, tuple[str, ...]] = {
    "choice": ("accuracy",),
    "number": ("accuracy",),
    "entities": ("entity_partial_f1", "entity_exact_f1"),
    "similarity": ("pearson", "spearman", "mae"),
    "text": ("chrf",),
}


def load_task(
    name: str,
    *,
    years: Iterable[str | int] = (),
    sections: Iterable[str] = (),
    categories: Iterable[str] = (),
    text_only: bool = False,
    language: str | None = None,
    data_dir: str | Path | None = None,
) -> LoadedTask:
    """Read a task and keep the items asked for.

    name       a name in TASKS, the path of an exam file, or igakuqa-folder:PATH, a folder in IgakuQA's layout (the
               path alone will do)
    years, sections, categories   keep only these (empty: all); a year is what `Item.exam` says
    text_only  leave out items that need an image
    language   "ja" or "en"; None: the task's first, and for an exam file the one its questions are written in
    data_dir   folder that holds the question sets; None: MEDJAX_DATA, ../shared/data, the cache, the network

    Raises ValueError for an unknown task, language, year, section or category and for a malformed file, and
    FileNotFoundError when the data cannot be had.
    """
    is_own = is_exam_file(name)
    task = _own_exam(Path(name)) if is_own else _named(name)
    if language is not None and language not in task.languages:
        known = " or ".join(task.languages)
        raise ValueError(
            f"task {task.name}: language: got {language!r}, expected {known}; write for example "
            f"{name}:{task.languages[0]}."
        )
    wanted = {"exam": {str(y) for y in years}, "section": set(sections), "category": set(categories)}
    if is_own or name in TASKS:
        _check_years(task, wanted["exam"])  # before anything is fetched
    files = Files(data_dir)
    rows = task.read(files, language or task.languages[0])
    language = language or (_language(rows.items) if is_own else task.languages[0])
    required = {item.section for item in rows.items} & set(task.required_sections)
    items = rows.items
    for kind, keep in wanted.items():
        have = {getattr(item, kind) for item in rows.items}
        if unknown := keep - have:
            option = {"exam": "years", "section": "sections", "category": "categories"}[kind]
            known = ", ".join(sorted(have - {""})) or "none: this set has no such field"
            raise ValueError(f"task {task.name}: {option}: got {', '.join(sorted(unknown))}, expected some of {known}")
        items = tuple(item for item in items if not keep or getattr(item, kind) in keep)
    items = tuple(item for item in items if not (text_only and item.needs_image))
    if not items:
        raise ValueError(f"task {task.name}: no item is left; ask for other years, sections or categories")
    return LoadedTask(
        name=task.name,
        language=language,
        items=items,
        fewshot=_pool(rows),
        pool_is_test=rows.pool is None,
        digest=hashlib.sha256("".join(f"{sha}  {file}\n" for file, sha in files.sha256.items()).encode()).hexdigest(),
        files=files.sha256,
        required_sections=tuple(sorted(required)),
        cuts=_cuts(task, rows.items),
        prohibited_max=task.pass_rule.prohibited_max if task.pass_rule else 0,
        exam_sizes=dict(Counter(item.exam for item in rows.items if item.exam)),
        dropped=rows.dropped,
        note=_note(task, rows, files),
        unpinned=tuple(files.unpinned),
        metrics=task.metrics or _metrics(rows.items),
        licence=task.licence,
        origin=task.origin,
        pool_by_authors=rows.pool_by_authors,
    )


def _check_years(task: Task, years: set[str]) -> None:
    """Raise ValueError for years that a set does not have, or that none of its items can have."""
    unknown = sorted(years - set(task.years))
    if unknown and task.years:
        known = ", ".join(task.years)
        raise ValueError(f"task {task.name}: years: got {', '.join(unknown)}, expected some of {known}")
    if unknown:
        have = ", ".join(f"{each.name} ({each.years[0]} to {each.years[-1]})" for each in TASKS.values() if each.years)
        raise ValueError(
            f"task {task.name}: years: got {', '.join(unknown)} for a set that knows no years, expected none; leave "
            f"--years out, or ask a set that has them: {have}, or a folder of exams in IgakuQA's layout."
        )


def _metrics(items: Iterable[Item]) -> tuple[str, ...]:
    kinds = {item.kind for item in items}
    return tuple(dict.fromkeys(name for kind, names in _METRICS.items() if kind in kinds for name in names))


def _named(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    if name.startswith(FOLDER) or Path(name).is_dir():
        return _own_folder(Path(name.removeprefix(FOLDER)))
    if name in GROUPS:
        raise ValueError(
            f"task: got the group {name}, expected one set; name the group without a language, or some of its sets: "
            f"{', '.join(GROUPS[name])}."
        )
    if Path(name).is_file():
        raise ValueError(
            f"task: got the file {name}, expected an exam that ends in {', '.join(ENDINGS)}; save a table as CSV in "
            'UTF-8 (Excel: "CSV UTF-8"), with the columns of docs/exams.md.'
        )
    near = difflib.get_close_matches(name, (*TASKS, *GROUPS), n=1)
    hint = f"did you mean {near[0]}?" if near else "--tasks list prints them all."
    raise ValueError(
        f"task: got {name!r}, expected one of {', '.join(TASKS)}, a group ({', '.join(GROUPS)}), the path of an "
        f"exam ({', '.join(ENDINGS)}), or {FOLDER}PATH; {hint}"
    )


def _own_exam(path: Path) -> Task:
    return Task(
        *(path.stem, ("ja", "en"), partial(sources.exam_file, path=path)),
        split=f"own exam {path.name}",
        required_sections=("required",),
        licence="the user's",
        origin="the user's file",
    )


def _own_folder(folder: Path) -> Task:
    return Task(
        *(folder.resolve().name, ("ja", "en"), partial(sources.igakuqa_folder, folder=folder)),
        split=f"licensing exams in the folder {folder.name}",
        required_sections=REQUIRED_LICENSING,
        pass_rule=FURTHER_LICENSING,
        licence="the user's",
        origin="the user's folder",
    )


def _language(items: tuple[Item, ...]) -> str:
    return "ja" if any(is_japanese(item.question) for item in items) else "en"


def _pool(rows: Rows) -> tuple[Item, ...]:
    """What can demonstrate: every question once (sets repeat some), and from a pool of its own none that is tested."""
    seen = set() if rows.pool is None else {item.asked for item in rows.items}
    pool = []
    for item in rows.items if rows.pool is None else rows.pool:
        if item.asked not in seen and _can_demonstrate(item):
            seen.add(item.asked)
            pool.append(item)
    return tuple(pool)


def _can_demonstrate(item: Item) -> bool:
    has_answer = bool(item.answer) or item.kind == "entities"
    special = item.needs_image or item.is_numeric or item.any_answer or item.accepted
    return has_answer and not special and item.points > 0


def _cuts(task: Task, items: tuple[Item, ...]) -> dict[str, tuple[int, int]]:
    cuts: dict[str, tuple[int, int]] = {}
    if task.pass_rule is None:
        return cuts
    for exam in dict.fromkeys(item.exam for item in items):
        whole = [item for item in items if item.exam == exam]
        if not task.pass_rule.sections <= {item.section for item in whole}:
            continue
        required = sum(item.points for item in whole if item.section in task.required_sections)
        cut = task.pass_rule.cuts(exam, required, sum(item.points for item in whole) - required)
        if cut is not None:
            cuts[exam] = cut
    return cuts


def _note(task: Task, rows: Rows, files: Files) -> str:
    parts = [task.split]
    parts.append(f"{task.origin} (licence: {task.licence})")
    parts += [task.remark] if task.remark else []
    parts += [f"{count} left out: {reason}" for reason, count in Counter(rows.dropped.values()).items()]
    if rows.pool is None:
        parts.append("demonstrations come from the questions themselves, never the one being asked")
    if files.unpinned:
        parts.append(f"local files that differ from the published ones: {', '.join(files.unpinned)}")
    return "; ".join(parts)
