"""Exam items and the reader of users' own exams."""

import json
import math

import pytest

from medjax.data.qa import Item, read_jsonl

ROW = {
    "id": "q1",
    "question": "胸痛の原因として考えられるのはどれか。2つ選べ。",
    "choices": ["一", "二", "三", "四", "五"],
    "answer": ["D", "a"],
    "points": 3,
    "section": "required",
    "category": "循環器",
    "prohibited": ["E"],
}


def write(folder, *rows, name="exam.jsonl"):
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows), "utf-8")
    return path


def test_a_line_becomes_an_item(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "x.png").write_bytes(b"png")
    number = {"id": "n", "question": "How many?", "choices": [], "answer": ["7.20"], "image": "img/x.png"}
    number["explanation"] = "pH of venous blood"
    first, second = read_jsonl(write(tmp_path, ROW, "", number))
    assert first == Item(
        id="q1",
        question=ROW["question"],
        choices=("一", "二", "三", "四", "五"),
        answer=("a", "d"),
        points=3,
        section="required",
        category="循環器",
        prohibited=("e",),
        exam="exam",
    )
    assert (first.letters, first.num_answers, first.is_numeric) == (("a", "b", "c", "d", "e"), 2, False)
    assert (second.answer, second.letters, second.is_numeric, second.points) == (("7.20",), (), True, 1)
    assert (first.explanation, second.explanation) == ("", "pH of venous blood")
    assert (second.image, second.needs_image) == (str(tmp_path / "img" / "x.png"), True)


def test_a_byte_order_mark_and_windows_line_ends_are_no_obstacle(tmp_path):
    path = tmp_path / "exam.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    assert read_jsonl(path)[0].id == "q1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answr": ["a"]}, "line 2: item q2: answr: unknown field; did you mean answer?"),
        ({"zzz": 1}, "line 2: item q2: zzz: unknown field. Known are id, question, choices"),
        ({"id": 7}, "line 2: id: got 7, expected non-empty text"),
        ({"explanation": 7}, "line 2: item q2: explanation: got 7, expected text"),
        ({"question": "  "}, 'line 2: item q2: question: got "  ", expected non-empty text'),
        ({"choices": ["x"], "answer": ["a"], "prohibited": []}, 'choices: got ["x"], expected no choice'),
        ({"choices": ["x", " "], "answer": ["a"], "prohibited": []}, "choices: choice b is blank"),
        ({"choices": "abc"}, 'item q2: choices: got "abc", expected a list of texts'),
        (
            {"answer": "f"},
            'item q2: answer: got "f", expected letters from a to e such as ["a"], places from 1 to 5, or ',
        ),
        ({"answer": {"a": 1}}, 'item q2: answer: got {"a": 1}, expected letters from a to e'),
        ({"answer": []}, "answer: got [], expected at least one letter"),
        ({"answer": ["f"]}, 'answer: got ["f"], expected letters from a to e'),
        ({"answer": ["a", "A"]}, 'answer: got ["a", "A"], expected every choice once'),
        ({"choices": [], "prohibited": [], "answer": ["about 7"]}, 'answer: got ["about 7"], expected one number'),
        ({"choices": [], "prohibited": [], "answer": ["٢٥"]}, 'answer: got ["٢٥"], expected one number'),
        (
            {"choices": ["一", "二", "一 ", "四", "五"]},
            'choices: choice c repeats choice a ("一 "), expected different texts',
        ),
        ({"choices": [], "prohibited": [], "answer": [7.2]}, "answer: got [7.2], expected one number written as text"),
        ({"id": "a\nb"}, 'line 2: id: got "a\\nb", expected text of one line, without control characters'),
        ({"a\nb": 1}, 'line 2: item q2: "a\\nb": unknown field'),
        ({"section": ["x" * 9000]}, "x ... (9004 characters), expected text"),
        ({"points": "3"}, 'points: got "3", expected a number'),
        ({"points": True}, "points: got true, expected a number"),
        ({"points": -1}, "points: got -1, expected 0, or a number from 0.000001 to 1,000,000"),
        ({"points": 10**400}, f"points: got 1{'0' * 299} ... (401 characters), expected 0, or a number from"),
        ({"points": 1e308}, "points: got 1e+308, expected 0, or a number from 0.000001"),
        ({"points": 1e-320}, "points: got 1e-320, expected 0, or a number from 0.000001"),
        ({"points": math.nan}, "points: got NaN, expected 0, or a number from 0.000001"),
        ({"prohibited": ["de"]}, 'prohibited: got ["de"], expected letters from a to e'),
        ({"prohibited": ["a"]}, 'prohibited: got ["a"], expected no letter of the answer; a is in both'),
        ({"image": "../secret.png"}, 'image: got "../secret.png", which leads out of'),
        ({"image": "/etc/passwd"}, 'image: got "/etc/passwd", which leads out of'),
        ({"image": "none.png"}, ", expected a file beside the exam; put it there"),
    ],
)
def test_a_malformed_line_names_file_line_and_field(tmp_path, change, message):
    path = write(tmp_path, ROW, {**ROW, "id": "q2", **change})
    with pytest.raises(ValueError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert message in str(error.value)


def test_other_mistakes_in_a_file(tmp_path):
    with pytest.raises(ValueError, match=r'line 3: id: got "q1" again \(first on line 1\)'):
        read_jsonl(write(tmp_path, ROW, "", ROW))
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_jsonl(write(tmp_path, "{oops"))
    with pytest.raises(ValueError, match="line 1: got a JSON list, expected one object a line"):
        read_jsonl(write(tmp_path, "[1]"))
    with pytest.raises(
        ValueError, match="line 1: item q1: answer: missing; every line needs id, question, choices, answer"
    ):
        read_jsonl(write(tmp_path, {k: v for k, v in ROW.items() if k != "answer"}))
    with pytest.raises(ValueError, match="got no items"):
        read_jsonl(write(tmp_path, ""))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "sjis.jsonl").write_bytes("問題".encode("shift_jis"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_jsonl(tmp_path / "sjis.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            r'{"id": "q", "question": "\ud842 ?"}',
            r"line 1: got half a character (\ud842), which cannot be",
        ),
        ('{"id": "q", "answer": ["a"], "answer": ["b"]}', "line 1: answer: got this field twice, expected it once"),
        ("[" * 200_000, "line 1: got JSON that is nested too deeply"),
    ],
)
def test_what_json_lets_pass_and_no_exam_may_hold(tmp_path, line, message):
    path = write(tmp_path, line)
    with pytest.raises(ValueError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}, {message}")


def test_a_character_written_in_two_halves_is_one(tmp_path):
    row = r'{"id": "q", "question": "\ud842\udfb7\u91ce?", "choices": [], "answer": ["1"]}'
    assert read_jsonl(write(tmp_path, row))[0].question == "𠮷野?"


def test_an_image_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "outside.png").write_bytes(b"png")
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match="leads out of"):
        read_jsonl(write(tmp_path / "exam", {**ROW, "image": "link.png"}))


def test_item_checks_order_and_alternatives():
    five = ("1", "2", "3", "4", "5")
    assert Item("o", "?", five, ("c", "a", "b"), ordered=True).answer == ("c", "a", "b")
    assert Item("o", "Q", five, ("a",), context="C").asked == ("C", "Q", five)
    with pytest.raises(ValueError, match=r"item o: answer: .* alphabetical order"):
        Item("o", "?", five, ("c", "a"))
    assert Item("x", "?", five, ("a",), accepted=(("a",), ("d",))).num_answers == 1
    with pytest.raises(ValueError, match=r"item x: accepted: .* holds the answer"):
        Item("x", "?", five, ("a",), accepted=(("b",), ("d",)))
    with pytest.raises(ValueError, match=r'item x: prohibited: got .*"d"'):
        Item("x", "?", five, ("a",), accepted=(("a",), ("d",)), prohibited=("d",))
    assert Item("h", "?", five, ("a",), human_accuracy=0.0).human_accuracy == 0
    with pytest.raises(ValueError, match=r"item h: human_accuracy: got 94.2, expected a share from 0 to 1, or nothing"):
        Item("h", "?", five, ("a",), human_accuracy=94.2)


KINDS_OF_ITEMS = [
    {"id": "e", "kind": "entities", "question": "症状は？", "answer": ["発熱", "咳嗽"]},
    {"id": "n", "kind": "entities", "question": "症状は？", "answer": []},
    {"id": "s", "kind": "similarity", "question": "A / B", "answer": ["3.5"], "choices": []},
    {"id": "t", "kind": "text", "question": "訳せ。", "answer": ["It hurts, a lot."], "explanation": "x"},
    {"id": "o", "kind": "text", "question": "治療方針を述べよ。", "answer": []},
    {"id": "c", "kind": "choice", "question": "?", "choices": ["x", "y"], "answer": ["B"]},
    {"id": "m", "kind": "number", "question": "?", "choices": [], "answer": ["04"]},
]


def test_lines_of_every_kind(tmp_path):
    items = read_jsonl(write(tmp_path, *KINDS_OF_ITEMS))
    assert [(item.kind, item.answer) for item in items] == [
        ("entities", ("発熱", "咳嗽")),
        ("entities", ()),
        ("similarity", ("3.5",)),
        ("text", ("It hurts, a lot.",)),
        ("text", ()),
        ("choice", ("b",)),
        ("number", ("04",)),
    ]
    assert [item.is_numeric for item in items] == [False] * 6 + [True]
    assert Item("x", "?", ("1", "2"), ("a",)).kind == "choice"
    assert Item("x", "?", (), ("1",)).kind == "number"


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, {"kind": "entity"}, 'kind: got "entity", expected one of choice, number, entities, similarity, text'),
        (0, {"kind": ["entities"]}, 'kind: got ["entities"], expected one of'),
        (0, {"answer": ["発熱", "発熱"]}, 'answer: got ["発熱", "発熱"], expected different texts, none of them blank'),
        (0, {"answer": [" "]}, 'answer: got [" "], expected different texts, none of them blank'),
        (0, {"choices": ["a", "b"]}, 'choices: got ["a", "b"], expected no choice for an item of kind entities'),
        (2, {"answer": ["5.5"]}, 'answer: got ["5.5"], expected a number from 0 to 5'),
        (2, {"answer": ["高い"]}, "expected one number written as text, because a similarity is asked for"),
        (2, {"answer": []}, "answer: got [], expected one number written as text"),
        (3, {"answer": ["one", "two"]}, 'answer: got ["one", "two"], expected one reference text, or none'),
        (3, {"prohibited": ["a"]}, 'prohibited: got ["a"], expected different lower-case letters (none: the item has'),
        (5, {"choices": []}, "choices: got [], expected 2 to 26 texts for an item of kind choice"),
        (6, {"choices": ["a", "b"]}, 'choices: got ["a", "b"], expected no choice for an item of kind number'),
    ],
)
def test_a_malformed_line_of_a_kind_names_file_line_and_field(tmp_path, index, change, message):
    path = write(tmp_path, ROW, KINDS_OF_ITEMS[index] | change)
    with pytest.raises(ValueError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert message in str(error.value)


def test_a_kind_without_choices_needs_no_such_field(tmp_path):
    with pytest.raises(ValueError, match="line 1: item e: answer: missing; every line needs id, question, answer"):
        read_jsonl(write(tmp_path, {"id": "e", "kind": "entities", "question": "?"}))
    with pytest.raises(
        ValueError, match="line 1: item e: choices: missing; every line needs id, question, choices, answer"
    ):
        read_jsonl(write(tmp_path, {"id": "e", "kind": "number", "question": "?", "answer": ["1"]}))


def test_choices_may_hold_commas(tmp_path):
    (item,) = read_jsonl(write(tmp_path, {"id": "c", "question": "?", "choices": ["1,000", "a, b"], "answer": ["b"]}))
    assert item.choices == ("1,000", "a, b")


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"answer": "アスピリン"}, ("a",)),
        ({"answer": "ac"}, ("a", "c")),
        ({"answer": [3, "Ａ"], "prohibited": "b"}, ("a", "c")),
        ({"choices": [], "answer": ["２５．０"]}, ("25.0",)),
        ({"choices": [], "answer": "7.20"}, ("7.20",)),
        ({"choices": [], "answer": 120}, ("120",)),
        ({"kind": "similarity", "choices": [], "answer": 3.5}, ("3.5",)),
        ({"kind": "text", "choices": [], "answer": "It hurts."}, ("It hurts.",)),
    ],
)
def test_golds_in_other_forms_that_have_one_meaning(tmp_path, change, answer):
    row = {"id": "q", "question": "?", "choices": ["アスピリン", "ヘパリン", "ワルファリン"], "answer": ["b"]}
    (item,) = read_jsonl(write(tmp_path, row | change))
    assert (item.answer, item.prohibited) == (answer, ("b",) if "prohibited" in change else ())


def test_no_message_shows_a_python_tuple(tmp_path):
    for change in (
        *({"answer": value} for value in (["f"], [], ["a", "a"], None, [None], ["a", 9], {"x": ("a",)})),
        *({"choices": value} for value in (["x"], [], "abc", None, [1, 2], ["x", "x"])),
        *({"prohibited": value} for value in (["a"], ["D"], ["9"], [["a"]])),
        *({"choices": [], "prohibited": [], "answer": value} for value in ([], ["x"], ["1", "2"], [[1]])),
        *({"id": ["q"]}, {"question": ["?"]}, {"points": [1]}, {"section": ("s",)}, {"image": ["x"]}, {"kind": ["c"]}),
    ):
        with pytest.raises(ValueError) as error:
            read_jsonl(write(tmp_path, {**ROW, **change}))
        assert "('" not in str(error.value)
        assert "()" not in str(error.value)
        assert "['" not in str(error.value)
