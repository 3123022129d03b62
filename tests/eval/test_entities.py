"""Reading entities from outputs, and how they are compared: by hand, by brute force, and the published defect."""

import ast
import itertools
import random
import time
import unicodedata

import pytest

from medjax.data.exams.tasks import load_task
from medjax.eval.entities import exact_f1, first_line_f1, overlap, parse_entities, partial_f1, published_partial_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["発熱", "咳嗽"]', ("発熱", "咳嗽")),
        ("['発熱', '咳嗽']", ("発熱", "咳嗽")),
        ("答えは次の通りです。\n```python\n['発熱',\n '咳嗽',]\n```", ("発熱", "咳嗽")),
        ('{"entities": ["a", "b"]}', ("a", "b")),
        ("['a'、'b'，「c」]", ("a", "b", "c")),
        (r'["say \"x\"", "\u767a\u71b1", "a\\b", "\x41"]', ('say "x"', "発熱", "a\\b", "A")),
        (r'["\ud842\udfb7\u91ce", "𠮷"]', ("𠮷野", "𠮷")),
        (r"['\ud842', 'a\udfb7b']", ("\ufffd", "a\ufffdb")),
        ("['a', 'a ', 'b']", ("a", "b")),
        ("['a'] そして ['a']", ("a",)),
        ("[[['a', 'b']]]", ("a", "b")),
        ("['ＣＤ８陽性，ＣＤ４陽性リンパ球', '１，０００㎎']", ("ＣＤ８陽性，ＣＤ４陽性リンパ球", "１，０００㎎")),
        ("['Crohn's disease', 'fever']", ("Crohn's disease", "fever")),
        ("[発熱, 咳嗽]", ("発熱", "咳嗽")),
        ("発熱、咳嗽, 嘔吐，発熱", ("発熱", "咳嗽", "嘔吐")),
        ("1,000 mg, ５，０００単位", ("1,000 mg", "５，０００単位")),
        ("- 発熱\n・咳嗽\n1. 嘔吐\n(2) 下痢\n3) 腹痛", ("発熱", "咳嗽", "嘔吐", "下痢", "腹痛")),
        ("1.5 mg", ("1.5 mg",)),
        ("答え: 発熱、咳嗽", ("発熱", "咳嗽")),
        ("病変:\n「発熱」\n「咳嗽」", ("発熱", "咳嗽")),
        ("プレドニン", ("プレドニン",)),
        ("[]", ()),
        ("[ ]", ()),
        ("該当なし。", ()),
        ("None", ()),
        ("", None),
        (" \n ", None),
        ("患者は発熱を訴えています。", None),
        ("the patient had fever " * 20, None),
        ("['a'] ['b']", None),
        ("['a', 'b", None),
        ("['a', 'b', ", None),
        ("['a'", None),
        ("__import__('os').system('x')", ("__import__('os').system('x')",)),
    ],
)
def test_what_is_read_as_entities(text, expected):
    assert parse_entities(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 50_000 + "]" * 50_000,
        "[「" * 50_000 + "]",
        "['" * 50_000 + "]",
        "['a'," * 20_000 + "]",
        "['a'   " * 15_000,
        "[\\" * 50_000,
        "a" * 100_000,
        "、" * 100_000,
        "[" + "'x', " * 20_000 + "'y']",
        "\n".join("- 1," for _ in range(20_000)),
        "{" * 50_000 + "(" * 50_000,
    ],
    ids=range(12),
)
def test_a_long_output_is_read_in_linear_time_and_never_run(text):
    start = time.process_time()
    parse_entities(text)
    assert time.process_time() - start < 2  # a quadratic reader takes minutes


def test_an_output_beyond_any_answer_is_unparsed():
    assert parse_entities("['a']" + " " * 999_995) == ("a",)
    assert parse_entities("['a']" + " " * 999_996) is None


def test_published_golds_are_read_back(shared_data):
    for name in ("mrner-disease", "mrner-medicine"):
        for item in load_task(name, data_dir=shared_data).items:
            assert parse_entities(str(list(item.answer))) == item.answer


def test_exact_f1_by_hand():
    assert exact_f1(["a", "b", "c", "d"], ["a"]) == pytest.approx(2 * 1 * 0.25 / 1.25)
    assert exact_f1(["a", "b"], ["b ", "c"]) == 0.5
    assert exact_f1(["ＢＣＧ"], ["BCG"]) == 0.0  # byte for byte, as published
    assert (exact_f1([], []), exact_f1(["a"], []), exact_f1([], ["a"])) == (1.0, 0.0, 0.0)


def test_partial_f1_by_hand():
    # 肺癌 in 非小細胞肺癌: 2 of 2 and 7 characters -> 4/9; 発熱 agrees; two gold, three predicted
    assert partial_f1(["非小細胞肺癌", "発熱"], ["肺癌", "発熱", "x"]) == pytest.approx(2 * (4 / 8 + 1) / 5)
    assert partial_f1(["ＢＣＧ", "Fever"], ["bcg", "fever"]) == 1.0
    assert (partial_f1([], []), partial_f1(["a"], []), partial_f1([], ["a"])) == (1.0, 0.0, 0.0)
    assert overlap("abcd", "xbcy") == 0.5
    assert overlap("", "a") == 0.0


def test_one_right_answer_of_four_is_no_more_than_that():
    # the published script: recall 4/4, precision 4/1, F1 1.6
    assert partial_f1(["a", "b", "c", "d"], ["a"]) == pytest.approx(0.4)


def test_naming_the_first_gold_entity_scores_below_one(shared_data):
    for name in ("mrner-disease", "mrner-medicine"):
        items = load_task(name, data_dir=shared_data).items
        found = [partial_f1(item.answer, item.answer[:1]) for item in items]
        assert max(found) <= 1
        # one match of n, where full-width and half-width forms are one entity
        sizes = [len({unicodedata.normalize("NFKC", text).lower() for text in item.answer}) for item in items]
        assert found == [pytest.approx(2 / (size + 1)) for size in sizes]


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        (["a", "b", "c", "d"], ["a"], 1.6),
        (["a", "b", "c", "d"], ["a", "x"], 2 * 2 / 3),
        (["a", "b"], ["a", "x", "y", "z"], 2 * 0.5 / 1.5),
        (["ab"], ["a"], 0.0),  # parts of a text are never found
        (["a"], ["a", "a"], 1.0),
        (["a"], [], 0.0),
        ([], ["a"], 0.0),
        ([], [], 1.0),
    ],
)
def test_the_published_partial_f1_of_jmed_llm(gold, predicted, expected):
    """By hand, from the lines of src/utils.py: any exact hit finds every gold entity."""
    assert published_partial_f1(gold, predicted) == pytest.approx(expected)


def test_the_published_reading_of_jmedbench():
    assert first_line_f1("none", "") == 1.0
    assert first_line_f1("none", "\n発熱") == 1.0  # an empty first line says none
    assert first_line_f1("A, b", "  B, a \nc") == 1.0
    assert first_line_f1("a, b", "a, b.") == 0.5
    assert first_line_f1("a, b", "['a', 'b']") == 0.0


def _slow_partial(gold, predicted):
    def common(a, b):
        runs = {a[i:j] for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
        return max((len(run) for run in runs if run in b), default=0)

    short, long = sorted((gold, predicted), key=len)
    best = max(
        sum(2 * common(a, b) / (len(a) + len(b)) for a, b in zip(short, chosen, strict=True))
        for chosen in itertools.permutations(long, len(short))
    )
    precision, recall = best / len(predicted), best / len(gold)
    return 2 * precision * recall / (precision + recall) if best else 0.0


def test_partial_f1_is_the_best_of_all_matchings():
    draw = random.Random(0)
    for _ in range(200):
        gold, predicted = (
            list({"".join(draw.choices("abc", k=draw.randint(1, 5))) for _ in range(draw.randint(1, 4))})
            for _ in range(2)
        )
        assert partial_f1(gold, predicted) == pytest.approx(_slow_partial(gold, predicted))


def test_many_predictions_cost_precision_and_little_time():
    start = time.process_time()
    predicted = [f"x{number}" for number in range(20_000)]
    assert partial_f1(["x7"], predicted) == pytest.approx(2 / 20_001)
    assert time.process_time() - start < 2


def test_golds_are_python_lists_of_strings_as_published(shared_data):
    text = str(["a'b", 'c"d', "e\nf"])
    assert parse_entities(text) == tuple(ast.literal_eval(text))
