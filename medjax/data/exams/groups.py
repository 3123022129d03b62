"""Which sets are on this machine, what a group of sets stands for there, and the table of all sets and groups."""

from collections.abc import Iterable
from pathlib import Path

from medjax.data.exams.catalogue import GROUPS, TASKS
from medjax.data.exams.rows import Files


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


def task_table() -> str:
    """All sets as lines of text: name, languages, metrics; below it what is asked, licence and origin. Then groups."""
    lines = []
    for task in TASKS.values():
        lines.append(f"{task.name}  ({', '.join(task.languages)})  {', '.join(task.metrics or ('accuracy',))}")
        lines += [f"    {task.split}", f"    licence: {task.licence}", f"    origin: {task.origin}"]
        lines += [f"    {task.remark}"] if task.remark else []
    for group, members in GROUPS.items():
        lines += [group, f"    stands for those on this machine of {', '.join(members)}"]
    return "\n".join(lines)
