"""A table for terminals whose columns stay straight with Japanese text.

task     │ accuracy
─────────┼─────────
医師国試 │   38.3 %
mini     │    6.7 %
"""

import unicodedata
from collections.abc import Sequence

_PAD = {"l": str.ljust, "r": str.rjust, "c": str.center}


def display_width(text: str) -> int:
    """Return the columns that a text takes in a terminal.

    Wide and full-width characters take two, marks that combine with the character before them none, all others one.
    Characters of ambiguous width (Greek, ±) count as one, as terminals outside East Asian legacy code pages draw them.
    Source: Unicode Standard Annex 11.
    """
    return sum(_character_width(character) for character in text)


def text_table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    *,
    align: str = "",
    ascii_rules: bool = False,
    once: Sequence[str] = (),
) -> str:
    """Lay out rows under a header, without a newline at the end.

    align        a letter a column: l left, r right, c centred; "" puts the first column left and the others right
    ascii_rules  draw the rules with | - + where the output cannot show box characters
    once         columns that a line above the table says ("protocol strict-0shot, items 120") where all rows hold the
                 same, and leaves out where all are empty; the first column stays where it names a single row

    Line breaks and other control characters in a cell become blanks. Raises ValueError when a row or `align` does not
    fit the header.
    """
    align = align or "l" + "r" * (len(header) - 1)
    if len(align) != len(header) or not set(align) <= set(_PAD):
        raise ValueError(
            f"text_table: align: got {align!r}, expected {len(header)} letters out of l, r and c, one a column of "
            f"{', '.join(header)}"
        )
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(
                f"text_table: row {number}: got {len(row)} cells, expected {len(header)}, one a column of "
                f"{', '.join(header)}"
            )
    table = [[_one_line(cell) for cell in row] for row in (header, *rows)]
    said = [
        column
        for column, name in enumerate(table[0])
        if name in once and len({row[column] for row in table[1:]}) == 1 and (column or len(rows) > 1)
    ]
    shared = [f"{table[0][column]} {cell}" for column in said if (cell := table[1][column].strip())]
    above = [", ".join(shared)] if shared else []
    table = [[cell for column, cell in enumerate(row) if column not in said] for row in table]
    align = "".join(side for column, side in enumerate(align) if column not in said)
    widths = [max(map(display_width, column)) for column in zip(*table, strict=True)]
    vertical, horizontal, cross = "|-+" if ascii_rules else "│─┼"
    lines = [
        f" {vertical} ".join(_padded(cell, width, side) for cell, width, side in zip(row, widths, align, strict=True))
        for row in table
    ]
    lines.insert(1, f"{horizontal}{cross}{horizontal}".join(horizontal * width for width in widths))
    return "\n".join([*above, *(line.rstrip() for line in lines)])


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _one_line(cell: str) -> str:
    return "".join(" " if unicodedata.category(character) in ("Cc", "Zl", "Zp") else character for character in cell)


def _padded(cell: str, width: int, side: str) -> str:
    # str methods count characters: take off the columns that wide ones need beyond that
    return _PAD[side](cell, width - display_width(cell) + len(cell))
