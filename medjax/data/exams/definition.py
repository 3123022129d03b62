"""What a question set is: `Task`, the rule that passes an exam, and `LoadedTask`, a set read from disk."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from medjax.data.exams.rows import Files, Rows
from medjax.data.qa import Item


@dataclass(frozen=True)
class PassRule:
    """What passes an exam: enough required points, enough general points, few enough prohibited picks.

    general_min       exam -> general points needed, as published for that exam
    general_share     share of the general points needed, where no such table exists
    required_share    share of the required points needed (a fraction of a point rounds up: 157.6 -> 158)
    prohibited_max    questions with a prohibited pick that still pass
    sections          that an exam must have for the rule to hold (a part of it in a folder is no whole exam)
    """

    general_min: Mapping[str, int] = field(default_factory=dict)
    general_share: Fraction | None = None
    required_share: Fraction = Fraction(4, 5)
    prohibited_max: int = 3
    sections: frozenset[str] = frozenset()

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
    files              that it reads in its first language, as "set/file", of the sets in medjax.assets.ORIGINS
    hub                its folder in JMedBench, on the model hub; "": it is no part of that
    own_files          that only the user can provide, as "set/file"
    years              what --years may choose from: years or numbers of exams; none: the set knows no years
    split              which part of the set is asked
    required_sections  sections that have to be passed by themselves
    remark             what else to know about the texts
    licence            of the texts, as far as it is stated
    origin             where they come from
    metrics            names in medjax.eval.metrics.METRICS, the headline first; none: those of the kinds of its items
    """

    name: str
    languages: tuple[str, ...]
    read: Callable[[Files, str], Rows]
    split: str
    files: tuple[str, ...] = ()
    hub: str = ""
    own_files: tuple[str, ...] = ()
    years: tuple[str, ...] = ()
    required_sections: tuple[str, ...] = ()
    pass_rule: PassRule | None = None
    remark: str = ""
    licence: str = ""
    origin: str = ""
    metrics: tuple[str, ...] = ()

    @property
    def sets(self) -> tuple[str, ...]:
        """Folders of the published question sets it reads, see medjax.assets.ORIGINS; none for other sets."""
        return tuple(dict.fromkeys(file.partition("/")[0] for file in self.files))


@dataclass(frozen=True)
class LoadedTask:
    """A task read from disk.

    fewshot       pool of demonstrations, every question once; when `pool_is_test` these are the questions asked, when
                  `pool_by_authors` those that the set's authors show, in their order
    digest        sha256 over name and sha256 of every file read
    files         name -> sha256 of every file read
    cuts          exam -> (required points needed, general points needed)
    exam_sizes    exam -> items of the whole exam, before any filter
    dropped       item id -> why it cannot be asked
    note          source, commit, licence and anything to know about the data
    unpinned      files that differ from the published ones
    metrics       names in medjax.eval.metrics.METRICS, the headline first
    licence, origin   as in Task
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
    metrics: tuple[str, ...] = ("accuracy",)
    licence: str = ""
    origin: str = ""
    pool_by_authors: bool = False
