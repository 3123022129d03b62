"""Metrics against hand-computed examples, scikit-learn, scipy and sacrebleu; unparsed answers and chance."""

import builtins
import random
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from small_evaluations import loaded

from medjax.data.exams.catalogue import TASKS
from medjax.data.exams.tasks import load_task
from medjax.data.qa import KINDS, Item
from medjax.eval import translation
from medjax.eval.asking import choose_items
from medjax.eval.metrics import METRICS, grade, item_metrics
from medjax.eval.protocols import Protocol
from medjax.eval.settings import EvalSettings, ProtocolSettings
from medjax.statistics.bootstrap import PatientBootstrap

GRADES = ("never", "rarely", "often", "always")


def items_of(gold, kind="choice"):
    if kind == "choice":
        return [Item(str(n), "?", GRADES, tuple(letters)) for n, letters in enumerate(gold)]
    return [Item(str(n), "?", (), answer, kind=kind) for n, answer in enumerate(gold)]


def value(name, gold, said, kind="choice"):
    return grade([name], items_of(gold, kind), said, resamples=10)[name]["value"]


def letters(text):
    return [None if letter == "-" else (letter,) for letter in text]


def test_kappa_by_hand():
    # agreement 4/6; margins a 3 b 3 and a 3 b 3: expected 1/2; kappa (2/3 - 1/2) / (1/2)
    assert value("kappa", "aaabbb", letters("aabbba")) == pytest.approx(1 / 3)
    # disagreement 0 + 1 + 3 + 0 = 4; expected: gold a a d d, said a b a d -> sum |i - j| * row * column / 4 = 6
    assert value("kappa_linear", "aadd", letters("abad")) == pytest.approx(1 - 4 / 6)
    # unparsed counts 3, the farthest: disagreement 3; expected (2 * (0 + 1 * 0 ...)) by the margins a 1, d 2, none 1
    expected = (2 * (1 * 0 + 2 * 3 + 1 * 3) + 2 * (1 * 3 + 2 * 0 + 1 * 3)) / 4
    assert value("kappa_linear", "aadd", letters("a-dd")) == pytest.approx(1 - 3 / expected)


def test_kappa_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = random.Random(1)
    for _ in range(20):
        gold = "".join(draw.choices("abcd", [5, 1, 2, 3], k=40))
        said = "".join(g if draw.random() < 0.5 else draw.choice("abcd") for g in gold)
        with_none = "".join("-" if draw.random() < 0.1 else s for s in said)
        kappa = metrics.cohen_kappa_score
        assert value("kappa", gold, letters(said)) == pytest.approx(kappa(list(gold), list(said)))
        assert value("kappa", gold, letters(with_none)) == pytest.approx(kappa(list(gold), list(with_none)))
        linear = kappa(list(gold), list(said), weights="linear", labels=list("abcd"))
        assert value("kappa_linear", gold, letters(said)) == pytest.approx(linear)
        f1 = metrics.f1_score(list(gold), list(with_none), labels=sorted(set(gold)), average="macro")
        assert value("f1_macro", gold, letters(with_none)) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("task", "metric", "expected"),
    [
        *[("jmmlu-medical-100", "kappa", 0.5466666666666666), ("jmmlu-medical-100", "accuracy", 0.66)],
        *[("smdis", "kappa", 0.66), ("rrtnm", "kappa", 0.5446021966246986), ("crade", "kappa_linear", 0.524193548387)],
        *[("mrner-disease", "entity_exact_f1", 0.6500344129981255)],
        *[("mrner-medicine", "entity_exact_f1", 0.585760073260073)],
    ],
)
def test_the_metrics_of_jmed_llm_on_its_own_items(shared_data, task, metric, expected):
    """Figures of scikit-learn's cohen_kappa_score, and of set arithmetic, on the csv files read by themselves."""
    items = load_task(task, data_dir=shared_data).items
    said = []
    for number, item in enumerate(items):
        if item.kind == "entities":  # every other one, and in every third report one that is wrong
            said.append((*item.answer[number % 2 :: 2], *["まったく別の語"] * (number % 3 == 0)))
        else:  # every third one is wrong, by one letter or two
            place = item.letters.index(item.answer[0]) + (number % 3 == 0) * (1 + number % 2)
            said.append((item.letters[place % len(item.letters)],))
    assert grade([metric], items, said, resamples=10)[metric]["value"] == pytest.approx(expected, abs=1e-10)


def test_kappa_of_several_letters_and_of_accepted_answers():
    two = Item("2", "?", GRADES, ("a", "b"))
    either = Item("3", "?", GRADES, ("a",), accepted=(("a",), ("c",)))
    items = [*items_of("cd"), two, either]
    said = [("c",), ("d",), ("b", "a"), ("c",)]
    found = grade(["kappa", "accuracy"], items, said, resamples=10)
    assert [entry["value"] for entry in found.values()] == [1.0, 1.0]
    with pytest.raises(ValueError, match=r'kappa_linear: item 2: got the answer \["a", "b"\], expected one grade'):
        grade(["kappa_linear"], items, said, resamples=10)


def test_any_two_of_the_letters_given_are_right():
    """YakugakuQA's "any two of these": each of the pairs, and no one letter, nor all three."""
    item = Item("109196", "?", GRADES, ("a", "b"), accepted=(("a", "b"), ("a", "d"), ("b", "d")))
    said = [("a", "b"), ("d", "a"), ("b", "d"), ("a",), ("a", "b", "d"), ("a", "c"), None]
    assert [item_metrics(["accuracy"], item, one)["accuracy"] for one in said] == [1, 1, 1, 0, 0, 0, 0]


def test_every_published_rule_names_tests_that_there_are():
    root = Path(__file__).resolve().parents[2]
    table = (root / "docs" / "exams.md").read_text("utf-8").partition("### Published rules")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    there = {
        name
        for folder in ("eval", "data/exams")
        for file in (root / "tests" / folder).glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.M)
    }
    assert len(rows) == 15
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row[-1]))
        assert named, row[0]
        assert named <= there


def test_what_is_undefined_is_none():
    assert value("kappa", "aaaa", letters("aaaa")) is None
    assert value("pearson", [("1",), ("2",)], [("3",), ("3",)], "similarity") is None
    found = grade(["pearson"], items_of([("1",), ("2",)], "similarity"), [("3",), ("3",)])["pearson"]
    assert (found["value"], found["interval"]) == (None, None)
    assert grade(["bleu"], [], []) == {}


def test_correlations_agree_with_scipy():
    draw = np.random.default_rng(2)
    gold = draw.integers(0, 6, 60)
    said = np.clip(gold + draw.normal(0, 1.5, 60), 0, 5).round(1)
    golds, readings = [(f"{g}",) for g in gold], [(f"{s:.1f}",) for s in said]
    for name, oracle in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        assert value(name, golds, readings, "similarity") == pytest.approx(oracle(gold, said).statistic)
    assert value("mae", golds, readings, "similarity") == pytest.approx(np.abs(gold - said).mean())


def test_a_resampled_spearman_is_that_of_the_repeated_items():
    gold, said = np.array([0, 1, 1, 3, 4, 5]), np.array([1, 0, 2, 2, 5, 4])
    statistic = METRICS["spearman"].statistic(
        items_of([(f"{g}",) for g in gold], "similarity"), [(f"{s}",) for s in said]
    )
    weights = np.array([[2, 0, 1, 3, 1, 1], [0, 4, 0, 1, 1, 0]], float)
    for row, found in zip(weights, statistic(weights), strict=True):
        again = np.repeat(np.arange(6), row.astype(int))
        assert found == pytest.approx(stats.spearmanr(gold[again], said[again]).statistic)


def test_an_unparsed_similarity_is_the_farther_end_of_the_scale():
    golds = [("1",), ("4",), ("0",)]
    said = [None, ("7",), ("０",)]
    assert value("mae", golds, said, "similarity") == pytest.approx((4 + 4 + 5) / 3)
    assert value("pearson", golds, said, "similarity") == pytest.approx(stats.pearsonr([1, 4, 0], [5, 0, 5]).statistic)
    assert item_metrics(["mae", "pearson"], items_of(golds, "similarity")[0], ("1.5",)) == {"mae": 0.5}


def test_entity_metrics_are_means_over_items():
    golds = [("a", "b", "c", "d"), (), ("x",)]
    assert value("entity_exact_f1", golds, [("a",), (), None], "entities") == pytest.approx((0.4 + 1 + 0) / 3)
    assert value("entity_partial_f1", golds, [("a",), None, ("xy",)], "entities") == pytest.approx(
        (0.4 + 0 + 2 / 3) / 3
    )


def test_the_published_f1_of_jmedbench():
    """Cases worked out by hand from evaluate_ner.py of nii-nlp/med-eval@9e03013."""
    golds = [("発熱, 咳嗽",), ("none",), ("none",), ("Fever",), ("a, b",), ("a, b",), ("a, b, c",), ("1,\u00a02-x, y",)]
    outputs = [
        *("発熱, 咳嗽\n段落: 次の例 => 疾患: 頭痛", None, "なし", " fever ", "a,b", "a、b"),
        *("a, a, x", "1, 2-x, y"),
    ]
    expected = [1, 1, 0, 1, 0, 0, 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3), 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)]
    said = [None if text is None else (text.strip(),) for text in outputs]
    items = items_of(golds, "text")
    found = [item_metrics(["entity_first_line_f1"], item, one) for item, one in zip(items, said, strict=True)]
    assert [one["entity_first_line_f1"] for one in found] == pytest.approx(expected)
    assert value("entity_first_line_f1", golds, said, "text") == pytest.approx(sum(expected) / 8)


def test_the_published_pearson_of_jmedbench_is_of_grades():
    grades = ("0", "1", "2", "3", "4", "5")
    gold, said = "afcbedab", "afdbe-ca"
    items = [Item(str(n), "?", grades, (letter,)) for n, letter in enumerate(gold)]
    found = grade(["grade_pearson"], items, letters(said), resamples=10)["grade_pearson"]
    places = [["abcdef".index(letter) for letter in text] for text in (gold, said.replace("-", "a"))]
    assert found["value"] == pytest.approx(stats.pearsonr(*places).statistic)
    assert (found["chance"], found["unparsed"]) == (0.0, 1)
    with pytest.raises(ValueError, match=r'grade_pearson: item 2: got the answer \["a", "b"\], expected one grade'):
        grade(["grade_pearson"], [Item("2", "?", grades, ("a", "b"))], [None])


def test_the_published_bleu_of_jmedbench_is_the_mean_of_the_sentences():
    sacrebleu = pytest.importorskip("sacrebleu")
    references, outputs = REFERENCES["en"], OUTPUTS["en"]
    first = [text.split("\n")[0].strip() for text in outputs]
    alone = [sacrebleu.corpus_bleu([one], [[two]]).score for one, two in zip(first, references, strict=True)]
    golds, said = [(text,) for text in references], [(text,) for text in outputs]
    assert value("bleu_sentences", golds, said, "text") == pytest.approx(np.mean(alone))
    assert value("bleu", golds, said, "text") != pytest.approx(np.mean(alone), abs=1)


def test_the_published_partial_f1_of_jmed_llm_on_its_own_items(shared_data):
    """What answering only the first gold entity scores by the definition of src/utils.py at 3774a34."""
    for task, published in (("mrner-disease", 1.71), ("mrner-medicine", 1.29)):
        items = load_task(task, data_dir=shared_data).items
        found = grade(["entity_partial_f1_published"], items, [item.answer[:1] for item in items], resamples=10)
        assert found["entity_partial_f1_published"]["value"] == pytest.approx(published, abs=0.005)


REFERENCES = {
    "en": ["The patient has a fever and a cough.", "No lymph nodes are enlarged.", "CT shows a mass."],
    "ja": ["患者には発熱と咳嗽がある。", "リンパ節の腫大は認めない。", "ＣＴで腫瘤を認める。"],
}
OUTPUTS = {
    "en": ["The patient has fever and a cough.", "Lymph nodes are not enlarged in this patient.\n\nNote: x", ""],
    "ja": ["患者は発熱と咳がある。", "\nリンパ節の腫大は認めません。\n以上", "CTで腫瘤を認める。"],
}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_bleu_and_chrf_agree_with_sacrebleu(language):
    sacrebleu = pytest.importorskip("sacrebleu")
    references, outputs = REFERENCES[language], OUTPUTS[language]
    golds, said = [(text,) for text in references], [(text,) for text in outputs]
    assert value("chrf", golds, said, "text") == pytest.approx(sacrebleu.corpus_chrf(outputs, [references]).score)
    first = [next(iter(text.strip().splitlines()), "") for text in outputs]
    tokenizer = "13a"
    if language == "ja":
        pytest.importorskip("MeCab")
        tokenizer, references = "ja-mecab", [text.replace("ＣＴ", "CT") for text in references]
    oracle = sacrebleu.corpus_bleu(first, [references], tokenize=tokenizer).score
    assert value("bleu", golds, said, "text") == pytest.approx(oracle)
    for number, item in enumerate(items_of(golds, "text")):
        alone = sacrebleu.corpus_bleu([first[number]], [[references[number]]], tokenize=tokenizer).score
        assert item_metrics(["bleu"], item, said[number]) == {"bleu": pytest.approx(alone)}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_hundred_kilobytes_are_graded_in_little_time(language):
    pytest.importorskip("sacrebleu")
    gold = REFERENCES[language][0]
    (item,) = items_of([(gold,)], "text")
    start = time.process_time()
    found = item_metrics(["bleu", "chrf"], item, (gold * (100_000 // len(gold)),))
    assert time.process_time() - start < 5
    assert 0 < found["bleu"] < 1  # one part of many is right
    assert 0 < found["chrf"] < 1


def test_resampled_bleu_and_chrf_are_those_of_the_repeated_sentences():
    sacrebleu = pytest.importorskip("sacrebleu")
    references, outputs = REFERENCES["en"], OUTPUTS["en"]
    weights = np.array([[2, 1, 0], [0, 0, 3], [1, 0, 2]], float)
    bleu = translation.bleu_statistic(outputs, references)(weights)
    chrf = translation.chrf_statistic(outputs, references)(weights)
    for number, row in enumerate(weights.astype(int)):
        again = np.repeat(np.arange(3), row)
        said = [outputs[i].split("\n")[0] for i in again]
        gold = [[references[i] for i in again]]
        assert bleu[number] == pytest.approx(sacrebleu.corpus_bleu(said, gold).score)
        assert chrf[number] == pytest.approx(sacrebleu.corpus_chrf([outputs[i] for i in again], gold).score)


def test_open_questions_without_a_reference_are_left_out():
    pytest.importorskip("sacrebleu")
    items = [Item("1", "?", (), (), kind="text"), Item("2", "?", (), ("abcdef",), kind="text")]
    found = grade(["chrf"], items, [("anything",), ("abcdef",)], resamples=10)["chrf"]
    assert (found["items"], found["value"]) == (1, pytest.approx(100))
    assert item_metrics(["chrf"], items[0], ("anything",)) == {}


def test_without_sacrebleu_nothing_is_asked_and_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **more):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    translation._bleu.cache_clear()
    items = items_of([("a",)], "text")
    for name in ("bleu", "chrf"):
        missing = rf"{name}: sacrebleu is not installed; pip install 'medjax\[translation\]'"
        with pytest.raises(ValueError, match=missing):
            grade([name], items, [("a",)], resamples=10)
        task = replace(loaded(items), metrics=(name,))
        with pytest.raises(ValueError, match=missing):
            choose_items(task, Protocol("strict", ProtocolSettings()), EvalSettings())
    choose_items(
        replace(loaded(items_of("a")), metrics=("bleu",)), Protocol("strict", ProtocolSettings()), EvalSettings()
    )


def test_items_that_a_metric_cannot_take_are_named_before_they_are_asked():
    task = replace(loaded([Item("two", "?", GRADES, ("a", "b"))]), metrics=("kappa_linear",))
    with pytest.raises(ValueError, match=r"kappa_linear: item two: got the answer .* expected one grade"):
        choose_items(task, Protocol("strict", ProtocolSettings()), EvalSettings())


def test_intervals_chance_and_counts():
    draw = random.Random(3)
    gold = "".join(draw.choices("abcd", k=200))
    said = letters("".join(g if draw.random() < 0.7 else "-" for g in gold))
    found = grade(["accuracy", "kappa", "chrf"], items_of(gold), said, resamples=500, seed=4)
    assert list(found) == ["accuracy", "kappa"]  # chrf takes none of the items
    accuracy = found["accuracy"]
    right = np.array([float(s is not None) for s in said])
    assert accuracy["value"] == pytest.approx(right.mean())
    assert accuracy["unparsed"] == 200 - right.sum()
    assert accuracy["chance"] == 0.25
    oracle = stats.binomtest(int(right.sum()), 200).proportion_ci(method="wilson")
    assert accuracy["interval"] == pytest.approx([oracle.low, oracle.high], abs=1e-12)
    assert found["kappa"]["chance"] == 0.0
    low, high = found["kappa"]["interval"]
    assert low < found["kappa"]["value"] < high
    drawn = PatientBootstrap(range(200), resamples=500, seed=4).draws(METRICS["kappa"].statistic(items_of(gold), said))
    assert [low, high] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])))


def test_where_every_resample_gives_the_same_there_is_no_interval_and_it_says_so():
    """All of eight read as the same wrong label: kappa 0 and F1 0 whatever is drawn; accuracy has Wilson's interval."""
    found = grade(["accuracy", "kappa", "f1_macro"], items_of("aabbaabb"), letters("c" * 8), resamples=50)
    z2 = 1.959964**2
    assert found["accuracy"]["interval"] == pytest.approx([0, z2 / (8 + z2)], abs=1e-6)
    assert found["accuracy"]["no_interval"] == ""
    for name in ("kappa", "f1_macro"):
        assert (found[name]["value"], found[name]["interval"]) == (0, None)
        assert found[name]["no_interval"] == "the same on every resample"
    (one,) = grade(["mae"], items_of([("3",)], "similarity"), [("2",)], resamples=50).values()
    assert (one["interval"], one["no_interval"]) == (None, "a single item")


def test_mixed_kinds_are_graded_apart():
    items = [*items_of("ab"), *items_of([("x",)], "entities"), *items_of([("3",)], "similarity")]
    said = [("a",), None, ("x",), ("2",)]
    found = grade(["accuracy", "entity_exact_f1", "mae"], items, said, resamples=10)
    assert {name: (entry["value"], entry["items"]) for name, entry in found.items()} == {
        "accuracy": (0.5, 2),
        "entity_exact_f1": (1.0, 1),
        "mae": (1.0, 1),
    }
    assert not found["mae"]["higher_is_better"]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="metric: got 'acc', expected one of accuracy, kappa"):
        grade(["acc"], items_of("a"), [None])
    with pytest.raises(ValueError, match="grade: got 1 items and 0 readings"):
        grade(["accuracy"], items_of("a"), [])


def test_every_task_names_metrics_that_there_are():
    for task in TASKS.values():
        assert set(task.metrics) <= set(METRICS)
    assert {kind for metric in METRICS.values() for kind in metric.kinds} == set(KINDS)
