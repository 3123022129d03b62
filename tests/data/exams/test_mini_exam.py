"""The shipped mini exam: both languages hold the same 120 items, well formed and with a balanced key."""

import json
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

KEYS = ["id", "question", "choices", "answer", "points", "section", "category"]
LETTERS = "abcde"
# ending of the question that asks for so many letters
ASKS_FOR = {"ja": {2: "2つ選べ。", 3: "3つ選べ。"}, "en": {2: "Choose two.", 3: "Choose three."}}
# the eight numeric items, computed here from the quantities their questions state
NUMERIC = {
    "mini-113": f"{140 - (100 + 15):.0f}",  # anion gap: Na - (Cl + HCO3)
    "mini-114": f"{64 / 1.60**2:.0f}",  # body mass index
    "mini-115": f"{100 * (70 / 140) / (50 / 2):.0f}",  # fractional excretion of sodium, %
    "mini-116": f"{70 * 80 / 1000:.1f}",  # stroke volume x heart rate, L/min
    "mini-117": f"{90 + (120 - 90) / 3:.0f}",  # mean arterial pressure, mmHg
    "mini-118": f"{250 / 50:.0f}",  # Fick: oxygen uptake / arteriovenous difference, L/min
    "mini-119": f"{8.0 + 1.0 * (4.0 - 2.0):.0f}",  # albumin-corrected calcium, mg/dL
    "mini-120": f"{600 * 20 / (5 * 60):.0f}",  # drops a minute
}


def read_exam(language: str) -> list[dict[str, Any]]:
    text = files("medjax.data.exams").joinpath(f"mini_{language}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


EXAMS = {language: read_exam(language) for language in ("ja", "en")}
BOTH = pytest.mark.parametrize("language", ["ja", "en"])


def single_answer(exam: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in exam if item["choices"] and len(item["answer"]) == 1]


@BOTH
def test_keys_come_in_order_and_ids_count_up(language: str) -> None:
    exam = EXAMS[language]
    assert [item["id"] for item in exam] == [f"mini-{n:03d}" for n in range(1, 121)]
    for item in exam:
        assert list(item) == KEYS + ["prohibited"] * ("prohibited" in item), item["id"]
        assert item.get("prohibited") != [], item["id"]


def test_languages_share_everything_but_the_words() -> None:
    for ja, en in zip(EXAMS["ja"], EXAMS["en"], strict=True):
        words = {"question", "choices"}
        assert {k: v for k, v in ja.items() if k not in words} == {k: v for k, v in en.items() if k not in words}
        assert len(ja["choices"]) == len(en["choices"]), ja["id"]


@BOTH
def test_counts_of_answers_sections_and_points(language: str) -> None:
    exam = EXAMS[language]
    assert Counter(len(item["answer"]) if item["choices"] else 0 for item in exam) == {1: 92, 2: 16, 3: 4, 0: 8}
    assert Counter((item["section"], item["points"]) for item in exam) == {
        ("required", 1): 36,
        ("required", 3): 12,
        ("general", 1): 72,
    }
    assert sum(item["points"] for item in exam) == 144
    assert len({item["category"] for item in exam}) == 32


@BOTH
def test_letters_are_valid_sorted_and_never_gold_and_prohibited(language: str) -> None:
    exam = EXAMS[language]
    for item in exam:
        if not item["choices"]:
            assert "prohibited" not in item, item["id"]
            continue
        gold, prohibited = item["answer"], item.get("prohibited", [])
        assert len(item["choices"]) == 5, item["id"]
        for letters in (gold, prohibited):
            assert letters == sorted(set(letters) & set(LETTERS)), item["id"]
        assert not set(gold) & set(prohibited), item["id"]
    assert sum("prohibited" in item for item in exam) == 15
    assert sum(len(item.get("prohibited", [])) for item in exam) == 16


@BOTH
def test_question_says_how_many_to_choose(language: str) -> None:
    endings = ASKS_FOR[language]
    for item in EXAMS[language]:
        asked = [n for n, ending in endings.items() if item["question"].endswith(ending)]
        expected = [len(item["answer"])] if len(item["answer"]) > 1 else []
        assert asked == expected, item["id"]


@BOTH
def test_no_question_or_choice_is_repeated_or_padded(language: str) -> None:
    exam = EXAMS[language]
    assert len({item["question"].casefold() for item in exam}) == len(exam)
    for item in exam:
        choices = [choice.casefold() for choice in item["choices"]]
        assert len(set(choices)) == len(choices), item["id"]
        for text in (item["question"], *item["choices"]):
            assert text, item["id"]
            assert text == text.strip(), item["id"]


def test_key_is_balanced_over_letters() -> None:
    exam = single_answer(EXAMS["ja"])
    counts = Counter(item["answer"][0] for item in exam)
    assert {letter: 0.16 <= counts[letter] / len(exam) <= 0.24 for letter in LETTERS} == dict.fromkeys(LETTERS, True)


@BOTH
def test_longest_choice_is_no_shortcut(language: str) -> None:
    exam = single_answer(EXAMS[language])
    hits = 0.0
    for item in exam:
        lengths = [len(choice) for choice in item["choices"]]
        if lengths[LETTERS.index(item["answer"][0])] == max(lengths):
            hits += 1 / lengths.count(max(lengths))
    assert hits / len(exam) < 0.30  # 0.20 is chance


def test_texts_stay_short() -> None:
    """Run time is set by tokens: the exam is meant for a laptop CPU."""
    exam = EXAMS["ja"]
    assert max(len(item["question"]) for item in exam) <= 70
    assert sum(len(item["question"]) for item in exam) / len(exam) <= 30
    choices = [choice for item in exam for choice in item["choices"]]
    assert max(map(len, choices)) <= 15
    assert sum(map(len, choices)) / len(choices) <= 6


@BOTH
def test_numeric_answers_follow_from_their_formulas(language: str) -> None:
    assert {item["id"]: item["answer"] for item in EXAMS[language] if not item["choices"]} == {
        key: [value] for key, value in NUMERIC.items()
    }


def test_corrected_calcium_does_not_depend_on_the_factor() -> None:
    assert f"{8.0 + 0.8 * (4.0 - 2.0):.0f}" == NUMERIC["mini-119"]  # both 0.8 and 1.0 per g/dL are in use


def test_english_text_holds_no_japanese_letters() -> None:
    for item in EXAMS["en"]:
        text = item["question"] + "".join(item["choices"])
        assert not [c for c in text if "\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"], item["id"]
