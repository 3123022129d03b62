"""Ages and sexes as hospitals write them.

Ages that privacy hides become the lowest age they can mean: ">89" is 90.0, and so is the 300 that PTB-XL writes for it.
What cannot be read is unknown, never zero, and a sentence says what stood there.
"""

import math
import re
from datetime import date

from medjax.data.ecg.record import OLDEST_YEARS

_UNKNOWN = {"", "nan", "none", "null", "unknown", "unk", "u", "n/a", "na", "-", "--", "---", "?", "undefined"}
_UNKNOWN |= {"other", "o"}
_SEXES = {"f": "female", "female": "female", "woman": "female", "女": "female", "女性": "female"}
_SEXES |= {"m": "male", "male": "male", "man": "male", "男": "male", "男性": "male"}
_AGE = re.compile(r"([<>]=?|≥)?\s*(-?\d+(?:\.\d+)?)\s*(\+)?\s*([a-z]*)\.?")
_YEARS = {"": 1.0, "y": 1.0, "a": 1.0, "yr": 1.0, "yrs": 1.0, "year": 1.0, "years": 1.0}
_YEARS |= {"m": 1 / 12, "mo": 1 / 12, "month": 1 / 12, "months": 1 / 12}
_YEARS |= {"w": 7 / 365.25, "wk": 7 / 365.25, "week": 7 / 365.25, "weeks": 7 / 365.25}
_YEARS |= {"d": 1 / 365.25, "day": 1 / 365.25, "days": 1 / 365.25, "h": 1 / 8766, "hour": 1 / 8766, "hours": 1 / 8766}
_DICOM_ZERO = "000y"  # what exports write for unknown; a newborn is 003D or 002W
_HIDDEN_YEARS = 300.0  # PTB-XL, for patients older than 89


def age_in_years(text: str) -> tuple[float | None, str | None]:
    """The age that a text means, and a note where it was not plain.

    Takes "51", "51.5", "042Y", "6 months", ">89", "90+" and "300". Unknown, negative and impossible ages are None.
    """
    word = text.strip().lower()
    if word in _UNKNOWN or word == _DICOM_ZERO:
        return None, (f"age: got {text.strip()!r}, left unknown" if word else None)
    match = _AGE.fullmatch(word)
    if match is None or match[4] not in _YEARS or match[1] in ("<", "<="):
        return None, f"age: got {text.strip()!r}, expected years, left unknown"
    value = float(match[2]) * _YEARS[match[4]]
    if value == _HIDDEN_YEARS:
        return 90.0, "age: got 300, which stands for more than 89 years, taken as 90"
    if match[1] or match[3]:
        value += 1.0 if match[1] == ">" else 0.0
        note = f"age: got {text.strip()!r}, taken as {value:g}"
    else:
        note = None
    if not (math.isfinite(value) and 0 <= value <= OLDEST_YEARS):
        return None, f"age: got {text.strip()!r}, expected 0 to {OLDEST_YEARS:g} years, left unknown"
    return value, note


def sex_of(text: str) -> tuple[str | None, str | None]:
    """ "female", "male" or None, and a note where a text was given that means neither."""
    word = text.strip().lower()
    if word in _SEXES or word in _UNKNOWN:
        return _SEXES.get(word), None
    return None, f"sex: got {text.strip()!r}, expected female or male, left unknown"


def years_between(birth: date, day: date) -> float | None:
    """Full years from birth to day; None where that is before birth."""
    years = day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))
    return float(years) if years >= 0 else None
