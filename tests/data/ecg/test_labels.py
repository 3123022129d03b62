"""Label files: cells, keys, what is refused by line and column, what is left unknown and counted."""

import numpy as np
import pytest

from medjax.data.ecg.labels import code_columns, match, read_code_labels, read_labels


@pytest.fixture
def write(tmp_path):
    def write(text, name="labels.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_cells(write):
    labels = read_labels(
        write(
            "\ufeffID, low_ef ,EF,age\n"
            'a,1,31.5,>89\n"b",yes,,51\n\nc,False,NaN,"90+"\n d ,?,1e2,300\n'
            "e,positive, 7 ,unknown\nf,maybe,<5,6 months\n"
        )
    )
    assert (labels.key, labels.by_path, labels.names) == ("ID", False, ("low_ef", "EF", "age"))
    assert labels.keys == list("abcdef")
    assert labels.lines == [2, 3, 5, 6, 7, 8]
    nan = np.nan
    expected = [[1, 31.5, 90], [1, nan, 51], [0, nan, 90], [nan, 100, 300], [1, 7, nan], [nan, nan, 0.5]]
    np.testing.assert_array_equal(labels.values, expected)
    assert labels.strange == {"low_ef": (1, "line 8: 'maybe'"), "EF": (1, "line 8: '<5'")}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("name,AF\na,1\n", (), r"line 1: got the columns name, AF, expected one of id, path, file, record to name the"),
        ("", (), r"line 1: got the columns none, expected one of id"),
        ("id,AF,AF\na,1,0\n", (), r"line 1: got the column AF twice, expected each once"),
        ("id,AF\na,1\n", ("LVH",), r"got no column LVH, expected one of id, AF; correct it"),
        ("id,AF\na,1,2\n", (), r"line 2: got 3 cells, expected 2, as many as the header has"),
        ("id,AF\n ,1\n", (), r"line 2, id: got nothing, expected the record's name"),
        ("id,AF\na,1\nb,1\na,0\n", (), r"line 4, AF: got another value for a than in line 2, expected one line a rec"),
        ("id,AF,sex\na,1,F\nb,1,M\n", (), r"line 2: 'F': got no number in the column sex, expected numbers, yes or no"),
    ],
)
def test_wrong_files_name_line_and_column(write, text, columns, message):
    with pytest.raises(ValueError, match=message):
        read_labels(write(text), columns)


def test_other_wrong_files(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file, expected a CSV file of labels"):
        read_labels(tmp_path / "none.csv")
    path = tmp_path / "sjis.csv"
    path.write_bytes("id,AF\n患者,1\n".encode("shift_jis"))
    with pytest.raises(ValueError, match=r"sjis\.csv: not CSV in UTF-8 .*; save it as CSV UTF-8"):
        read_labels(path)


def test_columns_are_chosen_and_equal_lines_allowed(write):
    labels = read_labels(write("id,AF,sex,LVH\na,1,F,0\na,1,F,0\nb,0,M,1\n"), ("LVH", "AF"))
    assert labels.names == ("LVH", "AF")
    assert labels.values.tolist() == [[0, 1], [0, 1], [1, 0]]
    found = match(labels, ["b", "a"], ["b.hea", "a.hea"])
    assert {name: column.tolist() for name, column in found.columns.items()} == {"LVH": [1, 0], "AF": [0, 1]}
    assert found.labelled == 2


def test_by_id(write):
    labels = read_labels(write("id,AF\nE1,1\nghost,1\nE2,0\nward/E2,1\n"))
    found = match(
        labels, ["E1", "ward/E2", "other/E2"], ["E1.hea", "ward/E2.hea", "other/E2.hea"], plain_ids=["E1", "E2", "E2"]
    )
    np.testing.assert_array_equal(found.columns["AF"], [1, 1, np.nan])
    assert (found.labelled, found.unknown, found.ambiguous) == (2, ["ghost"], ["E2"])


@pytest.mark.parametrize(
    "key", ["ward/E1.hea", "ward/E1.mat", "ward/E1", "./ward/E1.hea", "ROOT/ward/E1.hea", "export/ward/E1.hea"]
)
def test_by_path(write, tmp_path, key):
    root = tmp_path / "export"
    labels = read_labels(write(f"path,AF\n{key.replace('ROOT', str(root))},1\nward/ghost.hea,0\n"))
    found = match(labels, ["E1", "E1#1", "x"], ["ward/E1.hea", "ward/E1.hea", "E1.hea"], root=root)
    np.testing.assert_array_equal(found.columns["AF"], [1, 1, np.nan])  # a file of two records labels both
    assert (found.labelled, found.unknown, found.ambiguous) == (2, ["ward/ghost.hea"], [])


@pytest.mark.parametrize("second", ["./ward/E1.hea", "ward/E1.dat", "ward/E1", "ROOT/ward/E1.hea"])
def test_two_spellings_of_a_record_must_agree(write, tmp_path, second):
    root = tmp_path / "export"
    second = second.replace("ROOT", str(root))
    lines = f"path,AF,EF\nward/E1.hea,1,\nother.hea,1,3\n{second},0,50\n"
    with pytest.raises(ValueError) as caught:
        match(read_labels(write(lines)), ["E1"], ["ward/E1.hea"], root=root)
    assert str(caught.value) == (
        f"{tmp_path}/labels.csv, line 4, AF: got another value for the record E1, called {second!r} here and "
        "'ward/E1.hea' in line 2, expected one line a record; correct or remove one."
    )
    lines = lines.replace(",0,50", ",,50")  # the rest of the same record
    found = match(read_labels(write(lines)), ["E1"], ["ward/E1.hea"], root=root)
    assert ([found.columns[name].item() for name in ("AF", "EF")], found.labelled) == ([1, 50], 1)


def test_two_ids_of_a_record_must_agree(write):
    labels = read_labels(write("id,AF\nE1,1\ngeorgia/E1,0\n"))
    with pytest.raises(
        ValueError, match=r"line 3, AF: got another value for the record georgia/E1, called 'georgia/E1'"
    ):
        match(labels, ["georgia/E1"], ["georgia/E1.hea"], plain_ids=["E1"])


def test_codes_become_labels():
    told = read_code_labels(["lvh=164873001|Left ventricular hypertrophy", "AF = 164889003"])
    assert list(told) == ["lvh", "AF"]
    codes = [("164873001", "164889003"), ("Left Ventricular hypertrophy.",), ("1648730012",), ()]
    columns = code_columns(told, codes)
    np.testing.assert_array_equal(columns["lvh"], [1, 1, 0, np.nan])
    np.testing.assert_array_equal(columns["AF"], [1, 0, 0, np.nan])


@pytest.mark.parametrize("texts", [["164889003"], ["=1"], ["a="], ["a= | "], ["a=1", "a=2"]])
def test_wrong_code_labels(texts):
    with pytest.raises(ValueError, match=r"code_labels: got .*, expected NAME=CODE or NAME=CODE\|CODE, each name once"):
        read_code_labels(texts)
