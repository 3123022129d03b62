"""Which sets are on this machine, what a group of sets stands for there, and the table of all sets and groups."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from medjax import assets
from medjax.data.exams import jmedbench
from medjax.data.exams.catalogue import GROUPS, TASKS
from medjax.data.exams.definition import Task
from medjax.data.exams.rows import Files

Place = Literal["shipped", "data", "cache", "fetch", "yours"]
_PLACES: dict[Place, str] = {
    "shipped": "part of medjax",
    "data": "in the folder of the question sets (--data-dir, MEDJAX_DATA)",
    "cache": "fetched before",
    "fetch": "fetched from its origin when you name it in --tasks",
    "yours": "not here, and only you can provide it: docs/exams.md says how",
}
_COLUMN = 2 + max(map(len, get_args(Place)))


def missing(name: str, data_dir: str | Path | None = None) -> str | None:
    """Why a set of TASKS cannot be read from this machine, and how to get it; None when it can. Fetches nothing.

    name  may end in :language. Raises ValueError for a file that is there but malformed.
    """
    known, _, language = name.partition(":")
    task = TASKS[known]
    try:
        task.read(Files(data_dir, fetch=False), language or task.languages[0])
    except FileNotFoundError as error:
        return str(error)
    return None


def expand(
    names: Iterable[str], data_dir: str | Path | None = None, *, language: str | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names with groups replaced by their members on this machine, each set once; and a line for each left out.

    language  of names that say none; None: the set's first
    Names that are no group stay as they are. Raises FileNotFoundError when nothing of a group is here.
    """
    found: dict[str, str] = {}  # set and language -> name
    skipped = []
    for name in names:
        if name not in GROUPS:
            found.setdefault(_with_language(name, language), name)
            continue
        reasons = {member: missing(member, data_dir) for member in GROUPS[name]}
        here = [member for member, reason in reasons.items() if reason is None]
        lines = [f"{name}: {member} is left out: {reason}" for member, reason in reasons.items() if reason]
        if not here:
            raise FileNotFoundError(
                f"task {name}: got none of its sets, expected some in the folder of the question sets; name it by "
                f"--data-dir or MEDJAX_DATA, or name a set to fetch it. " + " ".join(lines)
            )
        for member in here:
            found.setdefault(_with_language(member, language), member)
        skipped += lines
    return tuple(found.values()), tuple(skipped)


def _with_language(name: str, language: str | None) -> str:
    return f"{name}:{language or TASKS[name].languages[0]}" if name in TASKS else name


def place(task: Task, data_dir: str | Path | None = None) -> Place:
    """Where the files of a set are, in its first language. Reads none of them and fetches nothing.

    Raises FileNotFoundError where data_dir, or MEDJAX_DATA, names no folder.
    """
    files = Files(data_dir, fetch=False)
    if task.hub:
        if jmedbench.provided(files, task.hub):
            return "data"
        return "cache" if jmedbench.fetched(task.hub) else "fetch"
    if task.own_files:
        parts = [file.partition("/") for file in task.own_files]
        return "data" if all(files.own_at_hand(name, file) for name, _, file in parts) else "yours"
    if not task.files:
        return "shipped"
    provided = True
    for name in task.sets:
        wanted = [file.removeprefix(f"{name}/") for file in task.files if file.startswith(f"{name}/")]
        if not assets.at_hand(name, data_dir, wanted):
            return "fetch"
        folder = assets.data_folder(name, data_dir)
        provided &= folder is not None and all((folder / file).is_file() for file in wanted)
    return "data" if provided else "cache"


def task_table(data_dir: str | Path | None = None, *, width: int | None = None) -> str:
    """All sets as lines of text: place, name, languages, metrics; below it what is asked, licence and origin. Groups.

    width  of a terminal, where lines that are longer go on below; None: every line as long as it is
    Raises what `place` raises.
    """
    lines = [f"{name:{_COLUMN}}{what}" for name, what in _PLACES.items()] + [""]
    under = " " * _COLUMN
    for task in TASKS.values():
        where = f"{place(task, data_dir):{_COLUMN}}"
        lines.append(f"{where}{task.name}  ({', '.join(task.languages)})  {', '.join(task.metrics or ('accuracy',))}")
        about = [task.split, f"licence: {task.licence}", f"origin: {task.origin}", task.remark]
        lines += [f"{under}    {line}" for line in about if line]
    for group, members in GROUPS.items():
        lines += [f"{'group':{_COLUMN}}{group}", f"{under}    stands for those on this machine of {', '.join(members)}"]
    return "\n".join(line if width is None else _wrapped(line, width) for line in lines)


def _wrapped(line: str, width: int) -> str:
    hang = " " * (len(line) - len(line.lstrip()) + 2 if line.startswith(" ") else _COLUMN + 4)
    return textwrap.fill(line, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
