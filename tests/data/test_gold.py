"""Gold answers in the forms that people write, and those that could mean two things."""

import json

import pytest

from medjax.data.gold import read_letters

DRUGS = ("アスピリン", "ヘパリン", "CEA", "TSH", "尿 酸")
GROUPS = ("A", "B", "O", "AB")


@pytest.mark.parametrize(
    ("value", "choices", "expected"),
    [
        (["c", "A"], DRUGS, "ac"),
        ("a", DRUGS, "a"),
        ("Ｅ", DRUGS, "e"),
        ("ca", DRUGS, "ac"),
        ("ａＣ", DRUGS, "ac"),
        ("A、C", DRUGS, "ac"),
        ("a / c", DRUGS, "ac"),
        (3, DRUGS, "c"),
        ([1, "３"], DRUGS, "ac"),
        ("①", DRUGS, "a"),
        ("1,3", DRUGS, "ac"),
        ("ｱｽﾋﾟﾘﾝ", DRUGS, "a"),
        (["tsh", "尿酸"], DRUGS, "de"),
        ("ヘパリン,アスピリン", DRUGS, "ab"),
        (["CEA"], DRUGS, "c"),
        ("O", GROUPS, "c"),
        ("A", GROUPS, "a"),
        (["AB"], GROUPS, "d"),
        ("b", ("b", "a"), "b"),  # the form of the schema has its meaning whatever the texts are
        ("c", ("x", "c", "y"), "c"),
        (["c"], ("C", "b", "a"), "c"),
        ("e", ("x", "e"), "b"),  # no letter of the item: only its text is left
        ("2", ("1", "2"), "b"),
        (3, ("1", "2", "3"), "c"),
        ("3", ("1.0", "2.0", "3.0"), "c"),
        ("3", ("10", "20", "30"), "c"),
        ("20", ("10", "20", "30"), "b"),
        (12, tuple("甲乙丙丁戊己庚辛壬癸子丑"), "l"),
        ("myocardial infarction", ("angina", "Myocardial  infarction"), "b"),
        ("1,000", ("1,000", "10"), "a"),
        ([], DRUGS, ""),
    ],
)
def test_one_meaning(value, choices, expected):
    assert read_letters(value, choices) == tuple(expected)


@pytest.mark.parametrize(
    ("value", "choices", "message"),
    [
        (
            "AB",
            GROUPS,
            'is the text of a choice (d) and letters (a, b), expected one meaning; write ["d"] or ["a", "b"]',
        ),
        ("CEA", DRUGS, 'is the text of a choice (c) and letters (a, c, e), expected one meaning; write ["c"] or'),
        (
            "2",
            ("1", "3", "2"),
            'is a place (b) and the text of a choice (c), expected one meaning; write ["b"] or ["c"]',
        ),
        ("B", ("b", "a"), None),
        ("A", ("b", "A"), 'is a letter (a) and the text of a choice (b), expected one meaning; write ["a"] or ["b"]'),
        (
            3,
            ("3", "1", "2"),
            'is a place (c) and the text of a choice (a), expected one meaning; write ["c"] or ["a"]',
        ),
        (
            "2",
            ("2.0", "３．５", "5.0"),
            'is a place (b) and the text of a choice (a), expected one meaning; write ["b"] or ["a"]',
        ),
        (
            "C",
            ("x", "c", "y"),
            'is a letter (c) and the text of a choice (b), expected one meaning; write ["c"] or ["b"]',
        ),
        (
            "1,2",
            ("1,2", "3"),
            'is the text of a choice (a) and several answers (a, b), expected one meaning; write ["a"]',
        ),
        (
            "A,B",
            ("B", "A", "A,B"),
            'is the text of a choice (c) and several answers (a, b), expected one meaning; write ["c"]',
        ),
        (
            "2,3",
            ("2", "3", "1"),
            'is several answers (b, c) and several answers (a, b), expected one meaning; write ["b", "c"] or',
        ),
    ],
)
def test_two_meanings_are_refused_and_named(value, choices, message):
    if message is None:  # the choice "b" is choice a: the letter b and the text b
        message = 'is a letter (b) and the text of a choice (a), expected one meaning; write ["b"] or ["a"]'
    with pytest.raises(ValueError) as error:
        read_letters(value, choices)
    assert str(error.value).startswith(f"got {json.dumps(value)}, which {message}")


@pytest.mark.parametrize(
    ("value", "end"),
    [
        *[(value, "or texts of the choices") for value in ("f", 6, True, None, 2.0, "", "aa", "13", {"a": 1}, "a,f")],
        *[("0", "; places count from 1"), (0, "; places count from 1")],
        ("アスピリソ", '; did you mean "アスピリン", choice a?'),
    ],
)
def test_no_meaning(value, end):
    with pytest.raises(ValueError) as error:
        read_letters(value, DRUGS)
    got = json.dumps(value, ensure_ascii=False)
    assert str(error.value).startswith(f'got {got}, expected letters from a to e such as ["a"], places from 1 to 5, or')
    assert str(error.value).endswith(end)


def test_what_is_wrong_in_a_list_is_named():
    with pytest.raises(ValueError, match=r'^got "ac" in \["ac", "d"\], expected letters from a to e'):
        read_letters(["ac", "d"], DRUGS)
    with pytest.raises(ValueError, match=r'^got \["a", "アスピリン"\], expected every choice once; drop one'):
        read_letters(["a", "アスピリン"], DRUGS)
