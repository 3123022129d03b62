"""Exams of the user's in .json and .csv: what is read, and what is said of what is not."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from medjax.data.exams import exam_table
from medjax.data.exams.own_exam import is_exam_file, read_exam

ROW = {"id": "q1", "question": "正しいのは？", "choices": ["ア", "イ", "ウ"], "answer": "イ"}
HEADER = "id,question,a,b,c,answer"


def write(folder, name, text):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, indent=1), "utf-8")
    return path


def test_the_endings_that_are_exams():
    assert [is_exam_file(name) for name in ("a.jsonl", "b/c.JSON", "d.csv", "e.tsv", "igakuqa", "f.xlsx")] == [
        *[True] * 4,
        *[False] * 2,
    ]


def test_an_array_and_an_object_with_one_array(tmp_path):
    rows = [ROW, ROW | {"id": "q2", "answer": 3}]
    for whole in (rows, {"title": "[", "years": [2024], "items": rows, "notes": []}):
        items = read_exam(write(tmp_path, "ward.json", whole))
        assert [(item.id, item.answer, item.exam) for item in items] == [("q1", ("b",), "ward"), ("q2", ("c",), "ward")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            [ROW, ROW | {"id": "q2", "answer": "エ"}],
            ', line 12: item q2: answer: got "エ", expected letters from a to c',
        ),
        ({"n": 1, "items": [ROW, ROW]}, ', line 14: id: got "q1" again (first on line 4), expected every id once'),
        ([ROW, 5], ", line 12: got 5, expected an object with the fields of a question"),
        ('[{"id": "a",\n "id": "b"}]', ", line 1: id: got this field twice"),
        ('[\n{"id": "\\ud842"}]', ", line 2: got half a character (\\ud842)"),
        (
            {"q1": ROW},
            ": got an object without an array of objects, expected an array of objects or an object in which",
        ),
        ('{"items": [{"id": "q1"}], "items": [{"id": "q2"}]}', ": got an object with several arrays of objects"),
        ('[{"points": ' + "1" * 5000 + "}]", ": Exceeds the limit (4300 digits) for integer string conversion"),
        ([ROW | {"choices": ["x"] * 27}], ', line 2: item q1: choices: got ["x", "x", '),
        ([ROW | {"choices": ["x"]}], ', line 2: item q1: choices: got ["x"], expected no choice'),
        ({"a": [ROW], "b": [ROW]}, ": got an object with several arrays of objects, expected an array of objects or"),
        ('"x"', ": got a JSON str, expected an array of objects or"),
        (
            '{"id": 1}\n{"id": 2}\n',
            ", line 2: got a second object, expected one array of objects; name a file with one",
        ),
        ("[{]", ", line 1: not JSON (Expecting property name"),
        ("", ", line 1: not JSON (Expecting value"),
        ("[" * 100_000, ": got JSON that is nested too deeply"),
        ([], ": got no items, expected one JSON object a line, or an array of them in a .json"),
    ],
)
def test_a_json_that_cannot_be_used(tmp_path, text, message):
    path = write(tmp_path, "ward.json", text)
    with pytest.raises(ValueError) as error:
        read_exam(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_a_table(tmp_path):
    table = "ID,Question,選択肢１,選択肢２,option_3,answer,points,kind,section\n"
    table += 'q1,"ア, それとも\nイ？",ア,イ,,1,0.5,,required\n,,,,,,,,\nq2,いくつ？,,,,7.20,3,,\n'
    table += "q3,訳せ。,,,,It hurts.,,text,\nq4,述べよ。,,,,,,text,\nq5,似ているか。,,,,3.5,,similarity,\n"
    items = read_exam(write(tmp_path, "ward.csv", table))
    assert [(item.id, item.kind, item.choices, item.answer, item.points, item.section) for item in items] == [
        ("q1", "choice", ("ア", "イ"), ("a",), 0.5, "required"),
        ("q2", "number", (), ("7.20",), 3, ""),
        ("q3", "text", (), ("It hurts.",), 1, ""),
        ("q4", "text", (), (), 1, ""),
        ("q5", "similarity", (), ("3.5",), 1, ""),
    ]
    assert items[0].question == "ア, それとも\nイ？"


@pytest.mark.parametrize(
    ("name", "separator", "header"),
    [
        ("a.csv", ",", "\ufeff問題番号,問題文,選択肢１,選択肢２,正解,配点"),
        ("b.csv", ";", 'No.,設問,選択肢①,"選択肢\n2",解答,配点'),
        ("c.csv", "\t", "ＩＤ,ＱＵＥＳＴＩＯＮ,Ａ,Ｂ,Ａｎｓｗｅｒ,Points"),
        ("d.tsv", "\t", "id,question,選択肢A,選択肢B,正答,配点"),
        ("e.csv", ";", '"id","question","Choice-1","Choice-2","answer","points"'),
    ],
)
def test_tables_with_other_separators_and_headers(tmp_path, name, separator, header):
    rows = f"{header}\nq1,ア？ それともイ,ア,イ,2,3\n".replace(",", separator)
    path = write(tmp_path, name, rows.replace("？ ", "？, " if separator != "," else "？ "))
    (item,) = read_exam(path)
    asked = "ア？ それともイ" if separator == "," else "ア？, それともイ"
    assert (item.id, item.question, item.choices, item.answer, item.points) == ("q1", asked, ("ア", "イ"), ("b",), 3)


def test_a_tsv_is_separated_by_tabs_alone(tmp_path):
    with pytest.raises(ValueError, match=r"; separate the columns by tabs, or call the file \.csv$"):
        read_exam(write(tmp_path, "a.tsv", "id,question,a,b,answer\nq1,?,x,y,a\n"))


def test_every_japanese_name_that_the_docs_list_is_a_column(tmp_path):
    docs = (Path(__file__).resolve().parents[3] / "docs" / "exams.md").read_text("utf-8")
    table = docs.partition("| field | also called |")[2].partition("\n\n")[0]
    found = {
        cells[0].strip("` "): cells[1] for cells in (line.strip("|").split("|") for line in table.splitlines()[2:])
    }
    shown = {field: tuple(re.findall("`(.*?)`", names)) for field, names in found.items()}
    assert shown == exam_table._JAPANESE


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "id|question|a|answer\n",
            ', row 1: got the columns id|question|a|answer, of which "id|question|a|answer" is not known, '
            "expected some of id, question, answer, kind, points, section, category, prohibited, context, image, "
            "explanation, and the choices in a, b, c ... or 選択肢1, 選択肢2 ...; separate the columns by commas, "
            "semicolons or tabs",
        ),
        (
            "id,question,a,c,answer\n",
            ", row 1: got the choices a, c, expected a, b, c ... (or 1, 2, 3 ... after 選択肢) without a gap, each",
        ),
        (
            "id,question,選択肢2,選択肢１,選択肢4,answer\n",
            ", row 1: got the choices 選択肢１, 選択肢2, 選択肢4, expected a",
        ),
        ("id,question,a,b,a,answer\n", ", row 1: got the choices a, a, b, expected a, b, c ... "),
        (
            "id,問題,a,b,回答,answer\n",
            ', row 1: got the columns id, 問題, a, b, 回答, answer, of which "回答" is not known, expected some',
        ),
        (
            "id,question,a,b,正解,answer\n",
            ', row 1: got the columns id, question, a, b, 正解, answer, of which "正解" and "answer" both mean answer, '
            "expected every column once; drop one of them",
        ),
        (
            "id,question,a,b\n",
            ", row 1: got the columns id, question, a, b, expected one for answer (正解, 解答, 正答, 答え) too; add",
        ),
        (
            "id,question,a,b,anwser\n",
            ', row 1: got the columns id, question, a, b, anwser, of which "anwser" is not known',
        ),
        (
            'id;question;a;b;answer\n1;"two\nlines";x;y;a\n2;?;x;y\n',
            ", row 3 (line 4): got 4 columns, expected 5 as in the header; a text that holds a semicolon stands in",
        ),
        (
            f'{HEADER}\r\n1,"two\r\nlines",x,y,,a\r\n2,"other\r\nlines",x,y,,c\r\n',
            ', row 3 (line 4): item 2: answer: got "c", expected letters from a to b',
        ),
        (
            f'{HEADER}\n1,"two\nlines",x,y,,a\n2,?,x,"y,,c\n3,?,x,y,,a\n',
            ", row 3 (line 4): unexpected end of data; look for a double quote",
        ),
        (
            f'{HEADER}\n1,"two\nlines",x,y,,a\n\n2,?,x,y,,a\n2,?,x,y,,a\n',
            ', row 5 (line 6): id: got "2" again (first on row 4 (line 5)), expected every id once',
        ),
        (
            f"{HEADER}\n1,?,x,y\n",
            ", row 2: got 4 columns, expected 6 as in the header; a text that holds a comma stands",
        ),
        (f"{HEADER}\n1,?,x,,z,a\n", ", row 2: item 1: choices: choice b is blank"),
        (
            f"{HEADER}\n1,?,x,y,z,w\n",
            ', row 2: item 1: answer: got "w", expected letters from a to c such as a, places',
        ),
        (
            f"{HEADER}\n1,?,x,y,,\n",
            ", row 2: item 1: answer: got an empty cell, expected text; every row needs id, question, answer",
        ),
        (
            f"{HEADER}\n,?,x,y,,a\n",
            ", row 2: id: got an empty cell, expected text; every row needs id, question, answer",
        ),
        (f"{HEADER}\n1,,x,y,,a\n", ", row 2: item 1: question: got an empty cell, expected text; every row needs id"),
        (
            f"{HEADER},kind\n1,,,,,x,text\n",
            ", row 2: item 1: question: got an empty cell, expected text; every row needs id, question",
        ),
        (
            f"{HEADER}\n1,?,2,3,,2\n",
            ', row 2: item 1: answer: got "2", which is a place (b) and the text of a choice (a), expected one '
            "meaning; write b or a",
        ),
        (f"{HEADER},prohibited\n1,?,,,,25,b\n", ', row 2: item 1: prohibited: got "b", expected an empty cell: there'),
        (f'{HEADER}\n1,?,x,"y,z,a\n2,?,x,y,z,b\n', ", row 2: unexpected end of data; look for a double quote that is"),
        (
            'id,question,answer,a,b\n1,?,a,x,"y\n2,?,a,x,"z"\n',
            ", row 2: ',' expected after '\"'; look for a double quote",
        ),
        (f"{HEADER},points\n1,?,x,y,,a,1_0\n", ', row 2: points: got "1_0", expected a number'),
        (f"{HEADER},points\n1,?,x,y,,a,three\n", ', row 2: points: got "three", expected a number'),
        (
            f"{HEADER},kind\n1,?,,,,発熱,entities\n",
            ", row 2: kind: got entities, expected another kind in a table; give",
        ),
        (
            f"{HEADER},kind\n1,?,x,y,,x,text\n",
            ', row 2: item 1: choices: got ["x", "y"], expected no choice for an item',
        ),
        (f"{HEADER}\n1,?,x,y,,a\n1,?,x,y,,a\n", ', row 3: id: got "1" again (first on row 2), expected every id once'),
        (
            ",id,question,a,b,answer,\n0,1,?,x,y,a,\n1,2,?,x,y,a,z\n",
            ', row 3: got "z" in a column without a name, expected a name in the header; choices are a, b, c ...',
        ),
        ("", ": got no questions, expected a header such as id,question,a,b,answer and below it one row a question"),
        (f"{HEADER}\n", ": got no questions, expected a header such as id,question,a,b,answer and below it one row a"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, table, message):
    path = write(tmp_path, "ward.csv", table)
    with pytest.raises(ValueError) as error:
        read_exam(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert not re.search(r"JSON|every line|(such as|write) \[", str(error.value).removeprefix(str(path)))


def test_columns_of_remarks_are_not_read(tmp_path):
    plain = write(tmp_path, "ward.csv", f"{HEADER},解説\n1,?,x,y,z,b,理由\n")
    more = write(tmp_path, "more.csv", f"備考,{HEADER},解説,メモ, Notes ,出典\n古い,1,?,x,y,z,b,理由,,see p. 3,117A1\n")
    (item,), (same,) = read_exam(plain), read_exam(more)
    assert same == dataclasses.replace(item, exam="more")
    assert same.explanation == "理由"
    with pytest.raises(ValueError, match='of which "難易度" is not known'):
        read_exam(write(tmp_path, "other.csv", f"{HEADER},備考,難易度\n1,?,x,y,z,b,,\n"))


def test_the_docs_name_the_columns_of_remarks():
    docs = (Path(__file__).resolve().parents[3] / "docs" / "exams.md").read_text("utf-8")
    line = re.search(r"Columns of remarks are left unread: (.*)\.\n", docs)
    assert tuple(re.findall("`(.+?)`", line[1])) == exam_table._REMARKS


def test_a_table_from_japanese_office_software_names_its_encoding(tmp_path):
    path = tmp_path / "ward.csv"
    path.write_bytes(f"{HEADER}\r\n1,どれか。,ア,イ,,a\r\n".encode("cp932"))
    with pytest.raises(
        ValueError, match=r"ward.csv, line 2: got bytes that are not UTF-8 .* it looks like CP932: save it .*: iconv"
    ):
        read_exam(path)
    with pytest.raises(FileNotFoundError, match=r"none.csv: got no such file, expected an exam: a table; correct"):
        read_exam(tmp_path / "none.csv")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"folder.jsonl: got a folder, expected an exam: one JSON object a line"
    ):
        read_exam(tmp_path / "folder.jsonl")
    with pytest.raises(
        ValueError, match=r"deep.jsonl, line 1: got JSON that is nested too deeply, expected one object"
    ):
        read_exam(write(tmp_path, "deep.jsonl", '{"id": ' + "[" * 100_000))


def test_the_table_in_the_docs_is_read(tmp_path):
    docs = (Path(__file__).resolve().parents[3] / "docs" / "exams.md").read_text("utf-8")
    table = docs.partition("```csv\n")[2].partition("```")[0]
    one, two = read_exam(write(tmp_path, "ward.csv", table))
    assert (one.choices, one.answer, one.points, one.section) == (
        ("トロポニンT", "アミラーゼ", "CEA"),
        ("a",),
        3,
        "required",
    )
    assert (two.is_numeric, two.answer) == (True, ("25.0",))
