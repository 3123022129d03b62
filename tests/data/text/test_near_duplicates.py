"""Near duplicates of exam items: closed forms on small texts, a plain version, and mutated questions of a real exam."""

import random
import re

import numpy as np
import pytest

from medjax.data.exams.tasks import load_task
from medjax.data.exams.training import asked_of
from medjax.data.text.near_duplicates import NearIndex, densest
from medjax.data.text.overlap import Asked, normalise, rolling_hashes

STEM = "72歳の男性。突然の胸痛を主訴に来院した。意識は清明。脈拍108/分、不整。血圧150/90mmHg。まず行う検査はどれか。"
LETTERS = normalise(STEM)


def ngrams(text, size):
    """Sets of n-grams with all digits as one, by slicing."""
    text = re.sub("[0-9]", "0", text)
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def found(index, *texts):
    return [(n.text, n.item, round(n.containment, 3), round(n.jaccard, 3)) for n in index.find(texts)]


def test_digits_are_alike_where_asked():
    same = rolling_hashes("ab12cd", 3, same_digits=True)
    assert (same == rolling_hashes("ab97cd", 3, same_digits=True)).all()
    assert (same[[0, 3]] != rolling_hashes("ab1xcd", 3, same_digits=True)[[0, 3]]).tolist() == [False, True]
    assert (rolling_hashes("ab12cd", 3) != rolling_hashes("ab97cd", 3)).all()
    assert (rolling_hashes("ab00cd", 3) == same).all()


@pytest.mark.parametrize("seed", range(5))
def test_densest_stretch_against_a_plain_version(seed):
    rng = np.random.default_rng(seed)
    length, window = 60, 13
    places = np.flatnonzero(rng.random(length) < 0.6)
    worth = rng.integers(1, 5, 10).astype(float)
    values = rng.integers(0, 10, len(places))
    sums = [sum(worth[list(set(values[(places >= i) & (places < i + window)].tolist()))]) for i in range(length)]
    first, weight = densest(values, worth[values], places, window, length)
    assert weight == pytest.approx(max(sums))
    assert sums[first] == pytest.approx(max(sums))
    assert densest(values[:0], worth[:0], places[:0], window, length) == (0, 0.0)


def test_containment_and_jaccard_of_one_item_are_those_of_its_ngrams():
    index = NearIndex([Asked("q", STEM)])
    changed = LETTERS.replace("胸痛", "腹痛").replace("108", "72")
    item, text = ngrams(LETTERS, 5), ngrams(changed, 5)
    ((_, _, containment, jaccard),) = found(index, "別の話" * 200 + changed + "別の話" * 200)
    assert containment == pytest.approx(len(item & text) / len(item), abs=1e-3)
    assert jaccard == pytest.approx(len(item & text) / len(item | text), abs=1e-3)
    near = index.find(["別の話" * 200 + changed])[0]
    assert (near.start, near.end) == (600, 600 + len(changed))
    assert found(index, "別の話" * 200, "") == []


def test_numbers_cost_nothing_and_order_of_choices_little():
    items = [
        Asked("a", STEM),
        Asked(
            "b",
            "正しいのはどれか。",
            ("僧帽弁閉鎖不全症の聴診所見", "大動脈弁狭窄症の身体所見", "三尖弁逸脱症の心エコー図"),
        ),
    ]
    index = NearIndex(items)
    assert index.needs_choices == [False, True]
    assert found(index, LETTERS.replace("72", "68").replace("150", "141")) == [(0, 0, 1.0, 1.0)]
    turned = normalise(
        "大動脈弁狭窄症の身体所見 三尖弁逸脱症の心エコー図 僧帽弁閉鎖不全症の聴診所見 正しいのはどれか。"
    )
    ((text, item, containment, jaccard),) = found(index, turned)
    assert (text, item, containment) == (0, 1, 1.0)
    assert 0.6 < jaccard < 1  # n-grams over the seams are the text's alone


def test_phrases_of_many_items_weigh_little():
    phrase = "意識は清明であり眼瞼結膜に貧血を認めず心音と呼吸音とに異常を認めない腹部は平坦で軟である"
    own = ["潰瘍性大腸炎の家族歴がある若年女性で", "石綿を扱う工場に三十年勤めた高齢男性で"]
    items = [Asked(f"q{i}", text + phrase + end) for i, (text, end) in enumerate(zip(own, ("甲", "乙"), strict=True))]
    index = NearIndex(items)
    # two thirds of the letters are the phrase's
    assert [near[:2] for near in found(index, phrase * 2)] == [(0, 0), (0, 1)]
    kana = "".join(chr(ord("あ") + i) for i in range(80))
    items += [Asked(f"r{i}", f"{kana[7 * i :]}{kana[: 7 * i]}{phrase}") for i in range(10)]
    index = NearIndex(items)
    # now twelve items have it: 1 / 12 of the weight of their own
    assert found(index, phrase * 2) == []
    assert [near[:2] for near in found(index, own[1] + phrase)] == [(0, 1)]


def test_a_place_that_holds_another_item_better_is_that_one_alone():
    first = "六五歳の女性が歩行時の右膝の痛みを訴えて来院した。"
    items = [
        Asked("x", first + "半月板損傷を疑わせる身体所見として最も適切なのはどれか答えよ。"),
        Asked("y", STEM + first),
    ]
    index = NearIndex(items, containment=0.3)
    assert [near[:2] for near in found(index, normalise(STEM + first))] == [(0, 1)]
    assert [near[:2] for near in found(index, normalise(items[0].stem))] == [(0, 0)]


def test_short_stems_count_to_the_letter_and_the_shortest_are_listed():
    items = [
        Asked("a", "手段的日常生活動作に含まれるのはどれか。", ("移動", "炊事")),
        Asked("b", "誤りはどれか。", ("1", "2")),
    ]
    index = NearIndex(items)
    assert index.unchecked == [1]
    assert found(index, "前置き手段的日常生活動作に含まれるのはどれか後") == [(0, 0, 1.0, 1.0)]
    assert found(index, "前置き手段的日常生活様式に含まれるのはどれか後") == []
    assert NearIndex([]).find(["text"]) == []


def test_a_word_said_often_does_not_hide_an_item():
    index = NearIndex([Asked("q", STEM)])
    copy = LETTERS.replace("胸痛", "腹痛").replace("清明", "混濁").replace("検査", "処置")
    ((_, _, containment, _),) = found(index, copy)
    # the phrase has a fifth of the item's n-grams; said over and over, more of them than the copy
    phrase = LETTERS[10:26]
    text = phrase * 60 + "別の話" * 300 + copy
    assert [(n.item, round(n.containment, 3)) for n in index.find([text])] == [(0, containment)]
    assert found(index, phrase * 60) == []


def test_marks_are_the_letters_that_agree():
    index = NearIndex([Asked("q", STEM)])
    text = "序" + LETTERS[:10] + "〇" + LETTERS[10:20]
    assert index.marks(text, 0).tolist() == [False] + [True] * 10 + [False] + [True] * 10
    marked = index.held_marks(0, LETTERS, text)
    assert marked[:20].all()
    assert not marked[20:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"containment": 0.0}, r"containment: got 0\.0, expected a share above 0 and at most 1"),
        ({"jaccard": 1.5}, r"jaccard: got 1\.5, expected a share"),
        ({"ngram": 1}, "ngram: got 1, expected 2 or more, such as 5"),
        ({"sketch": 0}, "sketch: got 0, expected 2 or more, such as 64"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NearIndex([], **options)


def mutated(text, share, pool, rng):
    return "".join(rng.choice(pool) if rng.random() < share else letter for letter in text)


# recall over the items that can be looked for, and items found in the records of others: docs/audit.md
@pytest.mark.parametrize(
    ("language", "least_changed", "least_numbers", "others"), [("ja", 0.85, 0.93, 8), ("en", 0.88, 0.98, 8)]
)
def test_mutated_igakuqa_is_found(shared_data, language, least_changed, least_numbers, others):
    task = load_task("igakuqa", language=language, years=("2022",), data_dir=shared_data)
    items = list(asked_of(task, "igakuqa"))
    index = NearIndex(items)
    rng = random.Random(0)
    pool = "".join(item.stem for item in items)

    def turned(item):
        choices = list(item.details)
        rng.shuffle(choices)
        return "\n".join([item.stem, *(f"{letter}. {c}" for letter, c in zip("abcde", choices, strict=False))])

    def other_numbers(text):
        return re.sub(r"\d+", lambda number: str(int(number[0]) + rng.randint(1, 9)), text)

    novel = (shared_data / "sentencepiece" / "wagahaiwa_nekodearu.txt").read_text("utf-8")
    checked = len(items) - len(index.unchecked)
    for change, least in (
        (turned, 1.0),
        (lambda item: mutated(turned(item), 0.1, pool, rng), least_changed),
        (lambda item: mutated(other_numbers(turned(item)), 0.05, pool, rng), least_numbers),
        (lambda item: novel[:900] + turned(item) + novel[900:1500], 1.0),
    ):
        pairs = index.find([normalise(change(item)) for item in items])
        assert sum(near.text == near.item for near in pairs) >= least * checked
        assert sum(near.text != near.item for near in pairs) <= others
    assert index.find([normalise(novel)]) == []


def test_sets_and_changes_that_no_threshold_was_chosen_on(shared_data):
    items = list(asked_of(load_task("denqa", data_dir=shared_data), "denqa"))
    index, rng = NearIndex(items), random.Random(1)
    checked = len(items) - len(index.unchecked)
    assert (len(items), checked) == (699, 696)

    def whole(item):
        return "\n".join([item.stem, *item.details])

    def left_out(item):
        return "".join(letter for letter in whole(item) if rng.random() >= 0.1)

    def turned(item):
        sentences = [part for part in re.split(r"(?<=[。?\n])", whole(item)) if part.strip()]
        return " ".join(rng.sample(sentences, len(sentences)))

    for change, least in ((left_out, 0.72), (turned, 0.96)):  # docs/audit.md
        pairs = index.find([normalise(change(item)) for item in items])
        assert sum(near.text == near.item for near in pairs) >= least * checked
        assert sum(near.text != near.item for near in pairs) < 12
