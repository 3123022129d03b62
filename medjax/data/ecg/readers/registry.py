"""Any ECG file to records: what a file is says its content first, its name only where content cannot.

A name may lie: a DICOM file called .xml is read as DICOM, and an .xml that is no ECG is refused with a sentence.
"""

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medjax.data.ecg.readers.arrays import looks_like_leads, read_csv, read_mat, read_npy
from medjax.data.ecg.readers.dicom import read_dicom
from medjax.data.ecg.readers.edf import read_edf
from medjax.data.ecg.readers.kit import read_ishne, read_mfer, read_scp
from medjax.data.ecg.readers.physionet import header_of, read_wfdb, signal_files
from medjax.data.ecg.readers.stated import TABLE, Stated, stated_beside
from medjax.data.ecg.readers.xml_files import read_xml
from medjax.data.ecg.record import EcgFileError, EcgRecord

_Reader = Callable[[Path, Stated], list[EcgRecord]]
_SUFFIXES: dict[str, _Reader] = {
    **dict.fromkeys((".dcm", ".dicom"), read_dicom),
    **dict.fromkeys((".mwf", ".mfer", ".mfr"), read_mfer),
    **dict.fromkeys((".edf", ".bdf"), read_edf),
    **dict.fromkeys((".npy", ".npz"), read_npy),
    **dict.fromkeys((".csv", ".tsv"), read_csv),
    ".xml": read_xml,
    ".scp": read_scp,
    ".ecg": read_ishne,
    ".mat": read_mat,
}
_READ_BY_CONTENT = (  # offset, bytes that stand there, reader
    (128, b"DICM", read_dicom),
    (0, b"0       ", read_edf),
    (0, b"\xffBIOSEMI", read_edf),
    (0, b"ISHNE1.0", read_ishne),
    (0, b"\x93NUMPY", read_npy),
    (0, b"MATLAB 5.0", read_mat),
    (0, b"MATLAB 7.3", read_mat),
    (0, b"\x89HDF", read_mat),
    (2, b"MFR ", read_mfer),
    (16, b"SCPECG", read_scp),
)
_XML_STARTS = (b"<", b"\xef\xbb\xbf<", b"\xff\xfe<\x00", b"\xfe\xff\x00<")
_FEWEST_SAMPLES = 100  # a .npy with fewer is a table of something else


@dataclass
class Survey:
    """What a folder holds.

    files        ECG files, in order
    passed_over  ending of a name -> how many files that are no ECG by name or content
    """

    files: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def read_ecg(path: str | Path, stated: Stated | None = None) -> list[EcgRecord]:
    """Read every ECG of a file, of any supported format.

    stated  what the file itself does not say (rate, unit, leads; patient, age, sex); besides, ecg_files.csv beside it

    Raises EcgFileError naming file, record and field; ImportError where a package of the extra `ecg` is missing.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing there"
        raise EcgFileError(str(path), f"got {what}, expected an ECG file; see the path.")
    if not path.stat().st_size:
        raise EcgFileError(str(path), "got an empty file, expected an ECG; copy it again.")
    reader = _reader_of(path)
    if reader is None:
        raise EcgFileError(
            str(path),
            "neither name nor content is of a known format, expected WFDB, DICOM, XML of GE, HL7, Philips, Mortara or "
            "Schiller, MFER, SCP-ECG, EDF, ISHNE, CSV, .mat, .npy or .npz; convert it to one of these.",
        )
    over = (stated or Stated()).over(stated_beside(path))
    try:
        return [over.complete(record) for record in reader(path, over)]
    except EcgFileError:
        raise
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{path}: reading it needs {error.name}; pip install 'medjax[ecg]'.", name=error.name
        ) from error
    except MemoryError as error:
        reason = "needs more memory than a reader may take, expected a shorter recording; cut it."
        raise EcgFileError(str(path), reason, path.stem) from error
    except Exception as error:  # whatever a library does with bytes that nobody foresaw
        what = f"{type(error).__name__}: {' '.join(str(error).split())}" if str(error) else type(error).__name__
        raise EcgFileError(str(path), f"cannot be read: {what}; export it again.", path.stem) from error


def find_ecgs(folder: str | Path) -> Iterator[Path]:
    """Every ECG file below a folder, in order; a signal file that belongs to a .hea is not a second one.

    XML, .mat and .dat files are listed by name, whatever they hold, so that a run says why one is refused; tables
    (.csv, .npy) only where they look like leads. Raises FileNotFoundError where there is no such folder.
    """
    yield from survey(folder).files


def survey(folder: str | Path) -> Survey:
    """The ECG files below a folder, and how many other files there are, by the ends of their names.

    Raises FileNotFoundError where there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: got no folder, expected one with ECG files; correct the path.")
    found = Survey()
    named: dict[Path, set[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        header = header_of(path)
        if header == path or (header is None and path.name != TABLE and _is_ecg(path)):
            if path.suffix.lower() == ".dat" and _reader_by_content(path) is None:
                names = named.get(path.parent)
                if names is None:
                    names = named[path.parent] = signal_files(path.parent)
                if path.name in names:  # of a header with another name
                    continue
            found.files.append(path)
        elif header is None and path.name != TABLE:
            found.passed_over[_ending(path)] += 1
    return found


def _ending(path: Path) -> str:
    """What a file is counted under: "x.xml.gz" under ".xml.gz", a name without an ending under "none", annotations and
    the like of a WFDB record together."""
    if path.with_suffix(".hea").is_file():
        return "beside a .hea"
    packed = path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst")
    return "".join(path.suffixes[-2:] if packed else path.suffixes[-1:]).lower() or "none"


def _is_ecg(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return looks_like_leads(path)
    if suffix == ".npy":
        return _has_signal_shape(path)
    return suffix in _SUFFIXES or suffix == ".dat" or (suffix in ("", ".img") and _reader_by_content(path) is not None)


def _has_signal_shape(path: Path) -> bool:
    import numpy as np

    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (ValueError, OSError, EOFError):
        return True  # so that a run says why it is refused
    return len(shape) == 2 and min(shape) <= 12 and max(shape) >= _FEWEST_SAMPLES


def _reader_of(path: Path) -> _Reader | None:
    if header_of(path) or path.suffix.lower() == ".hea":
        return read_wfdb
    by_content = _reader_by_content(path) or _SUFFIXES.get(path.suffix.lower())
    return by_content or (read_wfdb if path.suffix.lower() == ".dat" else None)


def _reader_by_content(path: Path) -> _Reader | None:
    with path.open("rb") as file:
        start = file.read(512)
    for offset, magic, reader in _READ_BY_CONTENT:
        if start[offset : offset + len(magic)] == magic:
            return reader
    if start.startswith(_XML_STARTS) or start.lstrip()[:1] == b"<":
        return read_xml
    return read_npy if start.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path) else None
