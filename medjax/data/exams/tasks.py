"""The question sets medjax can grade, each a short declarative `Task`, and `load_task`, which reads one.

A task says how its rows become items (a function of sources.py), where its demonstrations come from, which sections are
required, and what passes. IgakuQA comes with its authors' three demonstrations, PubMedQA and the 100-item JMMLU edition
with labelled questions outside the test set. The other published files hold no training part: there the pool is the set
itself (`pool_is_test`), and whoever picks demonstrations must leave out the question being asked.

An exam of your own is a task too: give the path of a .jsonl file (schema: medjax.data.qa). Section "required" is its
required part; no pass rule is known for it.
"""

import difflib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

from medjax.assets import ORIGINS
from medjax.data.exams import sources
from medjax.data.exams.sources import Files, Rows
from medjax.data.qa import Item


@dataclass(frozen=True)
class PassRule:
    """What passes an exam: enough required points, enough general points, few enough prohibited picks.

    general_min       exam -> general points needed, as published for that exam
    general_share     share of the general points needed, where no such table exists
    required_share    share of the required points needed (a fraction of a point rounds up: 157.6 -> 158)
    prohibited_max    questions with a prohibited pick that still pass
    """

    general_min: Mapping[str, int] = field(default_factory=dict)
    general_share: Fraction | None = None
    required_share: Fraction = Fraction(4, 5)
    prohibited_max: int = 3

    def cuts(self, exam: str, required_total: int | float, general_total: int | float) -> tuple[int, int] | None:
        """(required points needed, general points needed), or None when the exam has no cut."""
        general = self.general_min.get(exam)
        if general is None and self.general_share is not None:
            general = math.ceil(self.general_share * Fraction(general_total))
        return None if general is None else (math.ceil(self.required_share * Fraction(required_total)), general)


@dataclass(frozen=True)
class Task:
    """A question set.

    read               Files, language -> Rows
    sets               folders of question sets it reads, see medjax.assets.ORIGINS
    split              which part of the set is asked
    required_sections  sections that have to be passed by themselves
    remark             what else to know about the texts
    """

    name: str
    languages: tuple[str, ...]
    read: Callable[[Files, str], Rows]
    split: str
    sets: tuple[str, ...] = ()
    required_sections: tuple[str, ...] = ()
    pass_rule: PassRule | None = None
    remark: str = ""


@dataclass(frozen=True)
class LoadedTask:
    """A task read from disk.

    fewshot       pool of demonstrations, every question once; when `pool_is_test` these are the questions asked
    digest        sha256 over name and sha256 of every file read
    files         name -> sha256 of every file read
    cuts          exam -> (required points needed, general points needed)
    exam_sizes    exam -> items of the whole exam, before any filter
    dropped       item id -> why it cannot be asked
    note          source, commit, licence and anything to know about the data
    unpinned      files that differ from the published ones
    """

    name: str
    language: str
    items: tuple[Item, ...]
    fewshot: tuple[Item, ...]
    pool_is_test: bool
    digest: str
    files: dict[str, str]
    required_sections: tuple[str, ...]
    cuts: dict[str, tuple[int, int]]
    prohibited_max: int
    exam_sizes: dict[str, int]
    dropped: dict[str, str]
    note: str
    unpinned: tuple[str, ...] = ()


# general cuts as announced each March by the Ministry of Health, Labour and Welfare of Japan
_LICENSING = PassRule({"2018": 208, "2019": 209, "2020": 217, "2021": 209, "2022": 214})
_BENCHMARK = ("medllm_qa_benchmark",)
# kana, half-width ones too, and CJK ideographs
_JAPANESE = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")

TASKS = {
    task.name: task
    for task in (
        Task(
            *("mini", ("ja", "en"), partial(sources.exam_file, path=sources.EXAMS / "mini_{language}.jsonl")),
            split="the exam that ships with medjax; its cuts are modelled on the licensing exams",
            required_sections=("required",),
            pass_rule=PassRule(general_share=Fraction(7, 10)),
        ),
        Task(
            *("igakuqa", ("ja", "en"), sources.igakuqa),
            split="physician licensing exams 2018 to 2022, all 2,000 questions; English by machine translation",
            sets=("igakuqa",),
            required_sections=("B", "E"),
            pass_rule=_LICENSING,
        ),
        Task(
            *("denqa", ("ja",), partial(sources.benchmark, file="denqa.jsonl")),
            split="dentist licensing exams 116 and 117, 699 of 720 questions",
            sets=_BENCHMARK,
            remark="exam texts by the Ministry of Health, Labour and Welfare of Japan",
        ),
        Task(
            *("jmmlu-medical", ("ja",), partial(sources.jmmlu, file="all/JMMLU-Med.csv")),
            split="five medical subjects, 681 questions",
            sets=("jmed-llm",),
        ),
        Task(
            *("jmmlu-medical-11", ("ja",), sources.jmmlu_folder),
            split="all eleven medical subjects, from a folder of JMMLU's own csv files",
            remark="not checked against a published version; JMMLU states its licence",
        ),
        Task(
            *("jmmlu-medical-100", ("ja",), partial(sources.jmmlu, file="jmmlu_med.csv")),
            split="the 100 questions of JMED-LLM, demonstrations from the other 581",
            sets=("jmed-llm",),
        ),
        Task(
            *("smdis", ("ja",), sources.smdis),
            split="100 posts of JMED-LLM, 50 yes and 50 no; demonstrations from its other posts, as many of each",
            sets=("jmed-llm",),
            remark="posts of NTCIR-13 MedWeb, CC BY 4.0",
        ),
        Task(
            *("medqa", ("en",), partial(sources.benchmark, file="medqa_en.jsonl")),
            split="MedQA-USMLE test, 1,273 questions with 5 choices",
            sets=_BENCHMARK,
        ),
        Task(
            *("medqa-4op", ("en",), partial(sources.benchmark, file="medqa_en_4op.jsonl")),
            split="MedQA-USMLE test, the same 1,273 questions with 4 choices",
            sets=_BENCHMARK,
        ),
        Task(
            *("medmcqa", ("en",), partial(sources.benchmark, file="medmcqa.jsonl")),
            split="MedMCQA validation, 4,183 questions",
            sets=_BENCHMARK,
        ),
        Task(
            *("pubmedqa", ("en",), sources.pubmedqa),
            split="PubMedQA labelled test, 500 questions with abstract; demonstrations from the 500 others",
            sets=(*_BENCHMARK, "pubmedqa"),
        ),
        Task(
            *("pubmedqa-conclusion", ("en",), sources.pubmedqa_conclusion),
            split="PubMedQA labelled test, 500 questions with the conclusion; demonstrations from the 500 others",
            sets=(*_BENCHMARK, "pubmedqa"),
        ),
        Task(
            *("mmlu-medical", ("en",), partial(sources.benchmark, file="mmlu_en_medical.jsonl")),
            split="medical subjects of MMLU test, 1,089 questions",
            sets=_BENCHMARK,
        ),
    )
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

    name       a name in TASKS, or the path of a .jsonl exam
    years, sections, categories   keep only these (empty: all); a year is what `Item.exam` says
    text_only  leave out items that need an image
    language   "ja" or "en"; None: the task's first, and for a .jsonl exam the one its questions are written in
    data_dir   folder that holds the question sets; None: MEDJAX_DATA, ../shared/data, the cache, the network

    Raises ValueError for an unknown task, language, year, section or category and for a malformed file, and
    FileNotFoundError when the data cannot be had.
    """
    is_own = name.endswith(".jsonl")
    task = _own_exam(Path(name)) if is_own else _named(name)
    if language is not None and language not in task.languages:
        known = " or ".join(task.languages)
        raise ValueError(
            f"task {task.name}: language: got {language!r}, expected {known}; write for example "
            f"{name}:{task.languages[0]}."
        )
    files = Files(data_dir)
    rows = task.read(files, language or task.languages[0])
    language = language or (_language(rows.items) if is_own else task.languages[0])
    required = {item.section for item in rows.items} & set(task.required_sections)
    wanted = {"exam": {str(y) for y in years}, "section": set(sections), "category": set(categories)}
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
    )


def _named(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"task: got {name!r}; {hint}Expected one of {', '.join(TASKS)}, or the path of a .jsonl exam.")


def _own_exam(path: Path) -> Task:
    return Task(
        *(path.stem, ("ja", "en"), partial(sources.exam_file, path=path)),
        split=f"own exam {path.name}",
        required_sections=("required",),
    )


def _language(items: tuple[Item, ...]) -> str:
    return "ja" if any(_JAPANESE.search(item.question) for item in items) else "en"


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
    return not (item.needs_image or item.is_numeric or item.any_answer or item.accepted or item.points == 0)


def _cuts(task: Task, items: tuple[Item, ...]) -> dict[str, tuple[int, int]]:
    cuts: dict[str, tuple[int, int]] = {}
    if task.pass_rule is None:
        return cuts
    for exam in dict.fromkeys(item.exam for item in items):
        whole = [item for item in items if item.exam == exam]
        required = sum(item.points for item in whole if item.section in task.required_sections)
        cut = task.pass_rule.cuts(exam, required, sum(item.points for item in whole) - required)
        if cut is not None:
            cuts[exam] = cut
    return cuts


def _note(task: Task, rows: Rows, files: Files) -> str:
    parts = [task.split]
    parts += [f"{ORIGINS[s].repo}@{ORIGINS[s].commit[:12]} (licence: {ORIGINS[s].licence})" for s in task.sets]
    parts += [task.remark] if task.remark else []
    if rows.dropped:
        parts.append(f"{len(rows.dropped)} withdrawn items without an answer are left out")
    if rows.pool is None:
        parts.append("demonstrations come from the questions themselves, never the one being asked")
    if files.unpinned:
        parts.append(f"local files that differ from the published ones: {', '.join(files.unpinned)}")
    return "; ".join(parts)
