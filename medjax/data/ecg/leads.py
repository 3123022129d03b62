"""The twelve leads: their order, their spellings and the laws that tie them together.

Every record holds its leads in the order of LEADS. Six of them come from three electrodes, so two carry all that the
six hold; machines often store eight (I, II, V1-V6) and leave four to be derived:

  Einthoven   III = II - I
  Goldberger  aVR = -(I + II) / 2    aVL = I - II / 2    aVF = II - I / 2
"""

import re
import unicodedata

import numpy as np

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LEAD_INDEX = {lead: row for row, lead in enumerate(LEADS)}
# weights of I and II in each lead that follows from them
DERIVED = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}

_SPELLINGS = {lead.lower(): lead for lead in LEADS}
_SPELLINGS |= {f"d{lead.lower()}": lead for lead in ("I", "II", "III")}  # Latin countries: DI, DII, DIII
_SPELLINGS |= {f"{letter}{n}": lead for letter in "dl" for n, lead in ((1, "I"), (2, "II"), (3, "III"))}
_SPELLINGS |= {f"c{n}": f"V{n}" for n in range(1, 7)}  # IEC calls the chest electrodes C1 to C6
_AROUND = re.compile(r"^(mdc_ecg_lead_|第|((ecg|ekg|elec|lead|ch|channel)(\b|_))+)|(\blead|誘導)$")
# "Lead I (Einthoven)", "V1 (uV)"; other remarks, as "(inverted)" or "(R)", make it another lead
_REMARK = re.compile(
    r"\s*[(\[]\s*(einthoven|goldberger|wilson|augmented|unipolar|bipolar|[nuµμm]?v|(nano|micro|milli)volts?)\s*[)\]]$"
)
_BETWEEN = re.compile(r"[\s_.:]+")


def standard_name(text: str) -> str | None:
    """The lead of LEADS that a spelling means, None for anything else.

    Takes any case, "DI", "D1", "L1", "C1", "Lead II", "ECG V1", "EKG aVR", "MDC_ECG_LEAD_AVR", "Ⅱ" and "第Ⅱ誘導".
    An inverted lead ("-aVR", "aVR (inverted)") and modified ones ("MLII", "V4R", "V4 (R)") are other leads: None.
    """
    word = _REMARK.sub("", unicodedata.normalize("NFKC", text).strip().lower())
    while (shorter := _AROUND.sub("", word).strip(" _.:")) != word:
        word = shorter
    return _SPELLINGS.get(_BETWEEN.sub("", word))


def derive(signal: np.ndarray) -> np.ndarray:
    """Fill III, aVR, aVL and aVF from I and II in rows that are missing, that is all NaN.

    signal   [12, samples] floating, any unit, rows in the order of LEADS, NaN where not measured
    returns  a copy of the same shape and dtype; a derived sample is NaN where I or II is
    """
    _check(signal)
    filled = signal.copy()
    first, second = signal[0].astype(np.float64), signal[1].astype(np.float64)
    for lead, (of_first, of_second) in DERIVED.items():
        row = LEAD_INDEX[lead]
        if np.isnan(signal[row]).all():
            filled[row] = of_first * first + of_second * second
    return filled


def einthoven_error(signal: np.ndarray) -> float:
    """The largest |I + III - II|, in the unit of signal [12, samples]; NaN where no sample has all three.

    About one digital step in a sound recording; more says that gains are wrong or leads are mixed up.
    """
    _check(signal)
    rows = signal[:3].astype(np.float64)
    return _largest(rows[0] + rows[2] - rows[1])


def goldberger_error(signal: np.ndarray) -> float:
    """The largest departure of aVR, aVL and aVF from what I and II say, in the unit of signal [12, samples]; or NaN."""
    _check(signal)
    first, second = signal[0].astype(np.float64), signal[1].astype(np.float64)
    errors = [_largest(signal[LEAD_INDEX[lead]] - (a * first + b * second)) for lead, (a, b) in DERIVED.items()]
    known = [error for lead, error in zip(DERIVED, errors, strict=True) if lead != "III" and not np.isnan(error)]
    return max(known, default=float("nan"))


def _largest(values: np.ndarray) -> float:
    """The largest magnitude of values [samples]; NaN where all are NaN."""
    known = np.abs(values[~np.isnan(values)])
    return float(known.max()) if known.size else float("nan")


def _check(signal: np.ndarray) -> None:
    if signal.ndim != 2 or signal.shape[0] != len(LEADS):
        raise ValueError(
            f"signal: got shape {signal.shape}, expected ({len(LEADS)}, samples), one row a lead in the order "
            f"{' '.join(LEADS)}; transpose it, or put it together with NaN in the rows of missing leads."
        )
