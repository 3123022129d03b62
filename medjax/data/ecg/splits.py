"""Which patients go where, by hashes that never move, and what may not lie on two sides.

A patient's share is a number in [0, 1) made of its identifier and a seed: sha256("<seed>:<identifier>"), the first 8
bytes as a big-endian fraction. Test takes the lowest shares, validation the next, training the rest; so neither more
patients nor another validation share moves anybody into or out of the test set. Shares of the *named* patients are all
that never moves:

  named patients     stay where they are, whatever else is added, over several data sets as well. Where identifiers of
                     two hospitals may collide, each is ingested with its --institution, which is hashed with them.
  unnamed records    are keyed by the digest of the first of the copies of the recording. They stay as long as no copy
                     is added whose file sorts before all of them; then they go together to wherever that one goes.
  strata             are spread by the law of large numbers only; small classes may be uneven.
  folds              are even in every stratum, and belong to one data set: another record may move anybody.

A record without a patient counts as its own patient, together with other copies of the same recording; that two such
records are not of one person cannot be proved. Nor can an identifier be trusted to be one: `refuse_leaks` looks at
patients, waveforms and recordings (data.ecg.duplicates) alike.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from medjax.data.ecg.index import Index

_ORDER = ("test", "validation", "train")
_WHAT = {"patient": "patient", "waveform": "waveform", "recording": "recording, as altered copies"}
_SHOWN = 3
_KEPT = "patient_keys"  # of an index: the columns that the keys were made of, and the keys


def share_of(text: str, seed: int) -> float:
    """The number in [0, 1) that a text and a seed always give."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8]) / 2.0**64


def split_of(patient: str, seed: int, fractions: Mapping[str, float]) -> str:
    """The set that a patient belongs to: "train", "validation" or "test".

    fractions  share of patients in each of the three, 1 together

    Raises ValueError for other names and for fractions that do not make 1.
    """
    if not set(fractions) <= set(_ORDER) or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(
            f"fractions: got {dict(fractions)}, expected shares of train, validation and test that make 1 together."
        )
    share, end = share_of(patient, seed), 0.0
    for name in _ORDER[:-1]:
        end += fractions.get(name, 0.0)
        if share < end:
            return name
    return "train" if fractions.get("train") else next(name for name in _ORDER if fractions.get(name))


def patient_keys(index: Index) -> np.ndarray:
    """Who each record [records] is of: "institution:patient", the patient where no institution is named, or, where the
    patient is not known, "recording:" and the digest of its recording. Made once for an index.
    """
    columns = [index[name] for name in ("patient", "recording", "institution") if name in index]
    kept = index.get(_KEPT)
    if kept is None or len(kept[0]) != len(columns) or any(a is not b for a, b in zip(kept[0], columns, strict=True)):
        named = _patients(index)
        keys = [name or f"recording:{of}" for name, of in zip(named, index["recording"], strict=True)]
        index[_KEPT] = kept = columns, np.array(keys, object)
    return kept[1]


def _patients(index: Index) -> np.ndarray:
    """The patient of each record [records] in its institution's namespace, "" where not known."""
    patients = np.asarray(index["patient"]).astype(object)
    places = index.get("institution")
    if places is None or not any(places):
        return patients
    pairs = zip(places, patients, strict=True)
    return np.array([f"{place}:{name}" if place and name else name for place, name in pairs], object)


def folds(patients: Sequence[str] | np.ndarray, strata: Sequence[str] | np.ndarray, k: int, seed: int) -> np.ndarray:
    """The fold, 0 to k - 1, of each record [records] int64: a patient's records together, strata spread evenly.

    patients, strata  of each record; a patient with records of several strata counts for its most frequent one

    Patients are dealt in the order of their shares, rare strata first, each to the fold that has the fewest records of
    its stratum, then the fewest in all: with one record a patient, folds differ by one record a stratum at most.
    Raises ValueError for k below 2 or above the number of patients.
    """
    names = [str(name) for name in patients]
    records: dict[str, Counter[str]] = {}
    for name, stratum in zip(names, strata, strict=True):
        records.setdefault(name, Counter())[str(stratum)] += 1
    if not 2 <= k <= len(records):
        raise ValueError(f"folds: got {k}, expected 2 to {len(records)}, the number of patients; choose fewer folds.")
    size = Counter(str(stratum) for stratum in strata)

    def own(name: str) -> str:
        return min(records[name], key=lambda stratum: (-records[name][stratum], size[stratum], stratum))

    order = sorted(records, key=lambda name: (size[own(name)], own(name), share_of(name, seed)))
    held = {stratum: [0] * k for stratum in size}
    whole = [0] * k
    fold_of = {}
    for name in order:
        stratum = own(name)
        best = min(range(k), key=lambda fold: (held[stratum][fold], whole[fold], fold))
        fold_of[name] = best
        whole[best] += sum(records[name].values())
        for other, count in records[name].items():
            held[other][best] += count
    return np.array([fold_of[name] for name in names], np.int64)


def refuse_leaks(index: Index, sets: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where a patient or a recording is in two sets; it names some.

    index  of a data set;  sets  name -> places of its records
    """
    found = []
    for column, what in _WHAT.items():
        sides = _sides(_column(index, column), sets)
        leaks = sorted(name for name, at in sides.items() if len(at) > 1)
        if leaks:
            some = "; ".join(_shown(index, column, leak, sides[leak]) for leak in leaks[:_SHOWN])
            more = f" and {len(leaks) - _SHOWN:,} more" if len(leaks) > _SHOWN else ""
            found.append(f"{what}, {some}{more}")
    if found:
        raise ValueError(
            f"data: got in two sets: the same {'; the same '.join(found)}, expected each in one, or the evaluation is "
            "flattered; correct the patients' identifiers, or leave such records out: --data.leaks drop."
        )


def drop_leaks(index: Index, sets: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """The sets without records whose patient or recording is also in a set that counts more, and how many went.

    Test keeps all its records, validation those that are not in test, train what is in neither.
    """
    columns = {column: _column(index, column) for column in _WHAT}
    kept: dict[str, np.ndarray] = {}
    taken: dict[str, set[str]] = {column: set() for column in _WHAT}
    for name in sorted(sets, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)):
        at = np.asarray(sets[name], np.int64)
        clash = np.zeros(len(at), bool)
        for column, seen in taken.items():
            clash |= np.array([value in seen for value in columns[column][at]], bool)
        kept[name] = at[~clash]
        for column, seen in taken.items():
            seen |= {str(value) for value in columns[column][kept[name]] if value}
    dropped = sum(len(at) for at in sets.values()) - sum(len(at) for at in kept.values())
    return {name: kept[name] for name in sets}, dropped


def _column(index: Index, name: str) -> np.ndarray:
    return _patients(index) if name == "patient" else index[name]


def _sides(column: np.ndarray, sets: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Value -> set -> place of its first record there; unknown values left out."""
    sides: dict[str, dict[str, int]] = {}
    for name, places in sets.items():
        for place in places:
            if column[place]:
                sides.setdefault(str(column[place]), {}).setdefault(name, int(place))
    return sides


def _shown(index: Index, column: str, value: str, at: Mapping[str, int]) -> str:
    records = ", ".join(f"{index['id'][place]} ({name})" for name, place in at.items())
    return f"{value}: {records}" if column == "patient" else records
