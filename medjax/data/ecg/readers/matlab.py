"""Numbers and texts of MATLAB files, versions 4 and 5, in plain Python and NumPy.

scipy.io.loadmat crashes the whole process on some damaged files (seen with scipy 1.17), which would end a run over a
million files; here every length is checked before it is used, and a damaged file is a ValueError.

  version 4   20-byte header (type, rows, columns, imaginary, length of the name), name, numbers; also the .mat of WFDB
  version 5   128-byte header, then elements: tag (kind, bytes), data, padded to 8 bytes; 14 is an array of sub-elements
              (flags, shape, name, numbers), 15 a zlib-compressed element; tags of up to 4 bytes of data are packed
Source: MathWorks, MAT-File Format (R2023b).
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LARGEST_BYTES = 500_000_000  # of a file, and of one element once decompressed
_ARRAY, _COMPRESSED = 14, 15
_CELL, _CHAR, _NUMBERS = 1, 4, range(6, 16)  # classes of arrays
_COMPLEX = 0x0800
_KINDS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_UTF_16 = (4, 17)  # kinds of texts; the others are UTF-8
_KINDS_4 = ("f8", "f4", "i4", "i2", "u2", "u1")


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of every variable that is real numbers, texts or a list of texts. Raises ValueError."""
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"got {path.stat().st_size} bytes, expected at most {LARGEST_BYTES}; cut the recording.")
    data = path.read_bytes()
    if data[:6] != b"MATLAB":
        return dict(_version_4(data))
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError(f"got {data[126:128]!r} as byte order, expected IM or MI.")
    found: dict[str, np.ndarray] = {}
    for kind, content in _elements(data[128:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            try:
                content = unpacker.decompress(content, LARGEST_BYTES)
            except zlib.error as error:
                raise ValueError(f"damaged compression: {error}.") from error
            if not unpacker.eof:
                raise ValueError("a compressed element is cut short or too large.")
            kind, content = next(_elements(content, order), (0, b""))
        if kind == _ARRAY and (variable := _array(content, order)):
            found[variable[0]] = variable[1]
    return found


def _version_4(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    at = 0
    while at < len(data):
        if len(data) < at + 20:
            raise ValueError(f"got {len(data) - at} bytes of a header, expected 20.")
        order = "<" if struct.unpack_from("<i", data, at)[0] in range(5000) else ">"
        kind, rows, columns, imaginary, length = struct.unpack_from(f"{order}5i", data, at)
        number, table = kind % 100 // 10, kind % 10
        known = 0 <= number < len(_KINDS_4) and table in (0, 1) and kind // 1000 == (order == ">")
        if not known or min(rows, columns) < 0 or not 1 <= length <= 64 or imaginary:
            raise ValueError("neither version 4 nor 5 of MATLAB.")
        name = data[at + 20 : at + 20 + length].rstrip(b"\0").decode("latin-1")
        at += 20 + length
        dtype = np.dtype(order + _KINDS_4[number])
        end = at + rows * columns * dtype.itemsize
        if end > len(data):
            raise ValueError(f"{name}: got {len(data) - at} bytes, expected {end - at} for {rows} x {columns}.")
        array = np.frombuffer(data, dtype, rows * columns, at).reshape((rows, columns), order="F")
        yield name, _texts(array) if table == 1 else array
        at = end


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each element."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # up to four bytes, packed into the tag
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
            if size > 4:
                raise ValueError(f"got {size} bytes in a packed element, expected at most 4.")
        else:
            start, step = at + 8, 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError(f"an element states {size} bytes, {len(data) - start} are there; cut short.")
        yield kind, data[start : start + size]
        at += step


def _array(content: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Name and value of an array; None for what is neither real numbers nor texts."""
    parts = list(_elements(content, order))
    if len(parts) < 3 or len(parts[0][1]) < 4:
        return None
    flags = struct.unpack_from(f"{order}I", parts[0][1])[0]
    shape = tuple(np.frombuffer(parts[1][1], f"{order}i4", len(parts[1][1]) // 4).tolist())
    name = parts[2][1].decode("latin-1")
    if flags & 0xFF == _CELL:
        cells = [value for kind, part in parts[3:] if kind == _ARRAY and (value := _array(part, order))]
        if len(cells) == math.prod(shape) and all(cell[1].dtype.kind == "U" for cell in cells):
            return name, np.array([text for _, cell in cells for text in np.ravel(cell)])
        return None
    if len(parts) < 4 or flags & _COMPLEX or flags & 0xFF not in (_CHAR, *_NUMBERS):
        return None
    kind, raw = parts[3]
    if flags & 0xFF == _CHAR:
        wide = "utf-16-le" if order == "<" else "utf-16-be"
        text = raw.decode(wide if kind in _UTF_16 else "utf-8", "replace")
        values = np.array([ord(letter) for letter in text], np.uint32)
    elif kind in _KINDS:
        dtype = np.dtype(order + _KINDS[kind])
        values = np.frombuffer(raw, dtype, len(raw) // dtype.itemsize)
    else:
        raise ValueError(f"{name}: got elements of kind {kind}, expected numbers.")
    if min(shape, default=0) < 0 or values.size != math.prod(shape):
        raise ValueError(f"{name}: got {values.size} values, expected {math.prod(shape)} for the shape {shape}.")
    array = values.reshape(shape, order="F")
    return name, _texts(array) if flags & 0xFF == _CHAR else array


def _texts(letters: np.ndarray) -> np.ndarray:
    """Rows of a matrix of letters as texts."""
    codes = np.clip(letters.astype(np.int64), 0, 0x10FFFF)
    return np.array(["".join(map(chr, row)).rstrip(" \0") for row in np.atleast_2d(codes)])
