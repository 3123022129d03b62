"""What needs a look at all records at once: names that are unique, copies, labels, and the index made of them.

Whoever wrote the examples, one machine or many, this sees the same facts in the same order and decides the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from medjax.data.ecg.duplicates import Twins
from medjax.data.ecg.index import Facts, Index, make_index
from medjax.data.ecg.labels import Labels, Match, code_columns, match


@dataclass(frozen=True)
class Decided:
    """A data set as it will be.

    facts    of the records that stay, in order; twins of those
    renamed  new id -> what the file calls the record, where several files use that name
    dropped  ids of exact copies that were left out
    """

    facts: list[Facts]
    index: Index
    twins: Twins
    renamed: dict[str, str]
    dropped: list[str]
    match: Match | None


def unique_ids(facts: Sequence[Facts]) -> tuple[list[Facts], dict[str, str]]:
    """Facts with ids of which none occurs twice, and which were renamed: new id -> old id.

    An id that several records use gets the folder of its file in front ("georgia/E07509"), else the file's whole name;
    records of one file get "#" and their number behind.
    """
    wanted = [fact.id for fact in facts]
    for attempt in (_with_folder, _with_file, _with_number):
        count = Counter(wanted)
        if max(count.values()) == 1:
            break
        wanted = [attempt(fact) if count[name] > 1 else name for fact, name in zip(facts, wanted, strict=True)]
    seen: Counter[str] = Counter()
    for place, name in enumerate(wanted):  # sources that differ in the folders above only
        seen[name] += 1
        wanted[place] = name if seen[name] == 1 else f"{name}~{seen[name]}"
    renamed = {new: fact.id for fact, new in zip(facts, wanted, strict=True) if new != fact.id}
    return [replace(fact, id=new) for fact, new in zip(facts, wanted, strict=True)], renamed


def _inside(source: str) -> tuple[str, ...]:
    """The parts of a source's path without those that lead out of a folder: ids name files later."""
    return tuple(part for part in PurePosixPath(source).parts if part not in ("..", "/"))


def _with_folder(fact: Facts) -> str:
    return "/".join((*_inside(fact.source)[:-1], fact.id))


def _with_file(fact: Facts) -> str:
    return f"{'/'.join(_inside(fact.source))}:{fact.id}"


def _with_number(fact: Facts) -> str:
    return f"{'/'.join(_inside(fact.source))}#{fact.number}:{fact.id}"


def without_copies(facts: Sequence[Facts], twins: Twins) -> tuple[list[Facts], Twins, list[str]]:
    """The records without exact copies of earlier ones, their twins, and the ids of those left out."""
    copies = {pair.second for pair in twins.pairs if pair.exact}
    stay = [place for place in range(len(facts)) if place not in copies]
    new = {old: place for place, old in enumerate(stay)}
    pairs = tuple(
        replace(pair, first=new[pair.first], second=new[pair.second])
        for pair in twins.pairs
        if pair.first in new and pair.second in new
    )
    recording = tuple(twins.recording[place] for place in stay)
    dropped = [facts[place].id for place in sorted(copies)]
    return [facts[place] for place in stay], Twins(recording, pairs, twins.checked, twins.crowded), dropped


def decide(
    facts: Sequence[Facts],
    twins: Twins,
    labels: Labels | None,
    *,
    root: Path,
    drop_copies: bool = False,
    institution: str = "",
    code_labels: Mapping[str, frozenset[str]] | None = None,
) -> Decided:
    """Make the index.

    facts        of all records, ordered by source and number; twins of the same
    root         folder of the sources
    institution  whose identifiers the patients have; "": none is named
    code_labels  labels that are made of the codes in the files
    """
    named, renamed = unique_ids(facts)
    dropped: list[str] = []
    if drop_copies:
        named, twins, dropped = without_copies(named, twins)
    index = make_index(named, twins.recording, institution=institution)
    index["labels"] |= code_columns(code_labels or {}, index["codes"])
    found = None
    if labels:
        plain = [renamed.get(fact.id, fact.id) for fact in named]
        found = match(labels, [fact.id for fact in named], [fact.source for fact in named], plain_ids=plain, root=root)
        for name, column in found.columns.items():
            own = index["labels"].get(name)
            index["labels"][name] = column if own is None else np.where(np.isnan(column), own, column)
    index["labels"] = dict(sorted(index["labels"].items()))
    return Decided(named, index, twins, renamed, dropped, found)
