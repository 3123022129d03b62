"""What a user says about files that do not say it themselves.

A bare array holds samples and nothing else. Its rate, unit and order of leads come from, in this order: the file, the
`Stated` that the caller gives, and the table `ecg_files.csv` in the file's folder:

  file,sampling_rate_hz,unit,leads,patient,age,sex
  exam_1.mat,400,mV,I II III aVR aVL aVF V1 V2 V3 V4 V5 V6,P17,64,F

Only `file` is needed, the rest as far as known; `leads` are separated by blanks. A row with `*` as file holds for every
file of the folder that has no row of its own.
"""

import csv
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from medjax.data.ecg.leads import standard_name
from medjax.data.ecg.readers.demographics import age_in_years, sex_of
from medjax.data.ecg.record import EcgFileError, EcgRecord

TABLE = "ecg_files.csv"
MILLIVOLTS = {"nv": 1e-6, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "mv": 1.0, "v": 1e3}
MILLIVOLTS |= {"nanovolt": 1e-6, "microvolt": 1e-3, "millivolt": 1.0, "volt": 1e3}
_COLUMNS = ("file", "sampling_rate_hz", "unit", "leads", "patient", "age", "sex")


def millivolts(unit: str) -> float | None:
    """Millivolts in one of a unit, in any spelling ("uV", "µV", "MICROVOLTS"); None for what is no voltage."""
    word = unit.strip().lower()
    return MILLIVOLTS.get(word) or MILLIVOLTS.get(word.removesuffix("s"))


@dataclass(frozen=True)
class Stated:
    """What is said of a file; None: nothing.

    sampling_rate_hz  samples a second
    unit              of the samples: "mV", "uV", "V" …
    leads             names of the rows or columns, in order
    patient, age, sex as text, as hospitals write them

    Raises ValueError naming the field.
    """

    sampling_rate_hz: float | None = None
    unit: str | None = None
    leads: tuple[str, ...] | None = None
    patient: str | None = None
    age: str | None = None
    sex: str | None = None

    def __post_init__(self) -> None:
        if self.sampling_rate_hz is not None and not self.sampling_rate_hz > 0:
            raise ValueError(f"sampling_rate_hz: got {self.sampling_rate_hz}, expected samples a second above 0.")
        if self.unit is not None and millivolts(self.unit) is None:
            raise ValueError(f"unit: got {self.unit!r}, expected a voltage: mV, uV, V or nV.")
        for lead in self.leads or ():
            if standard_name(lead) is None:
                raise ValueError(f"leads: got {lead!r}, expected names as I, aVR or V1, separated by blanks.")

    def over(self, other: "Stated") -> "Stated":
        """This, and what it leaves open from another."""
        mine = {name: value for name in self.__dataclass_fields__ if (value := getattr(self, name)) is not None}
        return replace(other, **mine)

    def complete(self, record: EcgRecord) -> EcgRecord:
        """A record with patient, age and sex filled in where the file does not know them."""
        age, sex, notes = record.age_years, record.sex, list(record.notes)
        if age is None and self.age is not None:
            age, note = age_in_years(self.age)
            notes += [note] if note else []
        if sex is None and self.sex is not None:
            sex, note = sex_of(self.sex)
            notes += [note] if note else []
        patient = record.patient or self.patient
        return replace(record, age_years=age, sex=sex, patient=patient, notes=tuple(notes))


def stated_beside(path: Path) -> Stated:
    """What the table in a file's folder says of the file; nothing where there is no table.

    Raises EcgFileError naming the table, the row and the column.
    """
    table = path.with_name(TABLE)
    if not table.is_file():
        return Stated()
    rows = read_table(table, table.stat().st_mtime_ns)
    return rows.get(path.name, rows.get("*", Stated()))


@lru_cache(maxsize=64)
def read_table(path: Path, _changed: int = 0) -> dict[str, Stated]:
    """File name -> what a table says of it. Raises EcgFileError naming the row and the column."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        unknown = [name for name in reader.fieldnames or () if name not in _COLUMNS]
        if unknown or "file" not in (reader.fieldnames or ()):
            raise EcgFileError(
                str(path), f"got the columns {reader.fieldnames}, expected file and any of {', '.join(_COLUMNS[1:])}."
            )
        rows: dict[str, Stated] = {}
        for number, row in enumerate(reader, 2):
            cells = {name: (value or "").strip() or None for name, value in row.items() if name is not None}
            name, rate, leads = cells.pop("file"), cells.pop("sampling_rate_hz", None), cells.pop("leads", None)
            try:
                stated = Stated(float(rate) if rate else None, leads=tuple(leads.split()) if leads else None, **cells)
            except ValueError as error:
                raise EcgFileError(str(path), f"line {number}: {error}", name) from error
            if name is None or name in rows:
                raise EcgFileError(str(path), f"line {number}: got {name!r} as file, expected a name, and each once.")
            rows[name] = stated
    return rows
