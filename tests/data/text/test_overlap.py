"""Overlap of training records and exam items, on small cases, against a plain version, and on real sets."""

import json
import random
import tracemalloc
import unicodedata

import numpy as np
import pytest

from medjax.data.text.overlap import (
    NOTHING,
    Asked,
    Overlap,
    OverlapIndex,
    divide,
    normalise,
    question_hash,
    refuse_overlap,
    rolling_hashes,
)
from medjax.data.text.records import Conversation, Message, Pair, Passage

STEM = (
    "A 72-year-old man comes to the emergency department because of chest pain for two hours. His pulse is irregular "
    "and his blood pressure is 150/90 mmHg. Which of the following is the most appropriate next step?"
)
JAPANESE = (
    "72歳の男性。突然の胸痛を主訴に来院した。意識は清明。脈拍108/分、不整。血圧150/90mmHg。まず行う検査はどれか。"
)


def passages(*texts):
    return [Passage(f"r{i}", f"a.jsonl, line {i + 1}", text) for i, text in enumerate(texts)]


def found(items, *texts, **options):
    return [(o.record, o.item, round(o.share, 2)) for o in OverlapIndex(items).find(passages(*texts), **options)]


def test_normalised_text():
    assert normalise("ＥＣＧ: 3.5 mV\n(「心電図」, ｼﾝﾃﾞﾝｽﾞ_—Ⅲ誘導)") == "ecg35mv心電図シンデンズiii誘導"


def test_rolling_hashes_equal_exactly_where_the_text_does():
    random.seed(0)
    text = "".join(random.choices("ab心\U0001f600", k=400))
    for length in (1, 3, 7, 400):
        hashes = rolling_hashes(text, length)
        runs = [text[i : i + length] for i in range(len(text) - length + 1)]
        assert len(hashes) == len(runs)
        # the same hash for the same run, in this text and alone, and another for another
        assert len(set(zip(hashes.tolist(), runs, strict=True))) == len(set(runs)) == len(set(hashes.tolist()))
        assert hashes[-1] == rolling_hashes(runs[-1], length)[0]
    assert len(rolling_hashes("abc", 4)) == 0


def test_stem_is_found_however_it_is_written():
    items = [Asked("q1", STEM), Asked("q2", JAPANESE)]
    assert found(items, "Question: " + STEM.upper().replace(" ", "\n"), "other", f"問題 {JAPANESE}答え d") == [
        ("r0", "q1", 1.0),
        ("r2", "q2", 1.0),
    ]
    assert found(items, unicodedata.normalize("NFKD", JAPANESE).replace("72", "７２")) == [("r0", "q2", 1.0)]
    split = Pair("p", "w", STEM[:90], STEM[90:], "b")
    talk = Conversation("c", "w", (Message("user", JAPANESE), Message("assistant", "a")))
    assert OverlapIndex(items).find([split, talk]) == [Overlap("p", "q1", 1.0), Overlap("c", "q2", 1.0)]


def test_share_is_what_common_runs_cover():
    stem = normalise(STEM)
    size = len(stem)

    def share(text):
        """Letters of the stem that lie in a run of 50 that the text holds."""
        text = normalise(text)
        covered = np.zeros(size, bool)
        for i in range(size - 49):
            if stem[i : i + 50] in text:
                covered[i : i + 50] = True
        return covered.mean()

    one_word = STEM.replace("emergency", "urgent care")
    half = STEM[: len(STEM) // 2]
    torn = STEM[:70] + " and his wife says that " + STEM[70:]
    for text in (STEM, one_word, half, torn, STEM[100:] + STEM[:100]):
        expected = share(text)
        assert found([Asked("q", STEM)], text, share=0.05) == [("r0", "q", round(expected, 2))]
        assert bool(found([Asked("q", STEM)], text)) == (expected >= 0.7)
    assert 0.7 < share(one_word) < 1
    assert 0.3 < share(half) < 0.7


def test_phrases_of_many_items_do_not_count():
    ending = " Which of the following is the most likely diagnosis of the patient described above?"
    items = [Asked(f"q{i}", f"Case {i}: " + "xyz"[i % 3] * 9 + str(i) * 12 + ending) for i in range(20)]
    assert found(items, "Something else entirely." + ending) == []


def test_short_stems_need_their_choices():
    choices = ("Furosemide is given twice a day", "Digoxin is contraindicated", "None")
    items = [Asked("q", "Which of the following is true?", choices)]
    text = "Which of the following is true?"
    assert found(items, text, f"{text} Aspirin is given once a day.") == []
    assert found(items, f"Q. {text}\nA. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}") == [("r0", "q", 1.0)]
    # a changed word of a short stem is not enough to hide it
    assert found(items, "Which of the following is correct? " + " / ".join(choices)) == [("r0", "q", 0.84)]
    assert (
        found([Asked("q", "診断は?", ("急性心筋梗塞", "肺血栓塞栓症", "急性大動脈解離"))], "急性大動脈解離の診断は?")
        == []
    )
    assert found(
        [Asked("q", "診断は?", ("急性心筋梗塞の疑い", "肺血栓塞栓症", "急性大動脈解離"))],
        "診断は? 急性心筋梗塞の疑い 肺血栓塞栓症 急性大動脈解離",
    ) == [("r0", "q", 1.0)]


def test_items_of_too_little_text_are_listed():
    index = OverlapIndex(
        [Asked("a", "正しいのはどれか。", ("1", "2")), Asked("b", JAPANESE), Asked("c", "Dose in mg?")]
    )
    assert index.unchecked == ["a", "c"]
    assert OverlapIndex([]).find(passages("a" * 100)) == []


def test_refusal_names_records_and_items():
    items = [Asked("113A1", JAPANESE), Asked("x", "Dose?")]
    assert refuse_overlap(passages("胸痛の患者"), items) == ["x"]
    with pytest.raises(
        ValueError, match=r"got 2 training records that hold 1 items .*: 113A1 in r0 \(100 %\); 113A1 in r2"
    ):
        refuse_overlap(passages(JAPANESE, "b", JAPANESE), items)


def test_long_files_are_searched_in_blocks():
    filler = [f"記録{i}" * 2000 for i in range(300)]  # several blocks
    filler[177] += JAPANESE
    assert found([Asked("q", JAPANESE)], *filler) == [("r177", "q", 1.0)]


FILLER = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"


def exam(count):
    """Items that differ in most of their letters, with choices."""
    rng = random.Random(1)
    kanji = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    return [
        Asked(f"q{n}", "".join(rng.choices(kanji, k=30)), tuple("".join(rng.choices(kanji, k=9)) for _ in range(3)))
        for n in range(count)
    ]


def edited(item, offset):
    """The item with every sixth letter of its stem another, so that no run of 20 is left."""
    letters = ["猫" if n % 6 == offset else letter for n, letter in enumerate(item.stem)]
    return " ".join(("".join(letters), *item.details))


def slow_share(item, text):
    """Share of the stem that pieces of 4 letters cover, if all choices are there: by looking for every one."""
    text, stem = normalise(text), normalise(item.stem)
    if not all(normalise(part) in text for part in item.details):
        return 0.0
    covered = np.zeros(len(stem), bool)
    for i in range(len(stem) - 3):
        if stem[i : i + 4] in text:
            covered[i : i + 4] = True
    return covered.mean()


def test_pieces_of_a_stem_are_those_that_a_slow_search_finds():
    items = exam(40)
    text = FILLER.join(edited(item, n % 6) for n, item in enumerate(items[:25]))
    expected = [(item.id, share) for item in items if (share := slow_share(item, text)) >= 0.5]
    assert [(o.item, o.share) for o in OverlapIndex(items).find(passages(text), share=0.5)] == expected
    assert len(expected) == 25
    assert {round(share, 2) for _, share in expected} > {0.83}


def test_long_records_are_searched_in_windows_and_nothing_is_cut(monkeypatch):
    items = exam(40)
    lap = 4 * (30 + 27)
    window = 2 * lap
    monkeypatch.setattr("medjax.data.text.overlap._WINDOW", 0)  # the least there can be
    index = OverlapIndex(items)
    # copies that begin at every place of a window, those over its end too
    texts = [FILLER * 20 + FILLER[:n] + edited(items[n], 0) + FILLER * 20 for n in range(34)]
    assert min(map(len, texts)) > 2 * window
    whole = [(f"r{n}", f"q{n}", slow_share(items[n], text)) for n, text in enumerate(texts)]
    assert [tuple(each) for each in index.find(passages(*texts), share=0.5)] == whole
    # an item that stands twice in a record is found once, with its better share
    twice = FILLER * 20 + edited(items[0], 0) + FILLER * 40 + " ".join((items[0].stem, *items[0].details)) + FILLER * 20
    assert [tuple(each) for each in index.find(passages("a", twice))] == [("r1", "q0", 1.0)]
    # stem and choices in places far apart are no item
    torn = FILLER * 20 + items[0].stem[:19] + FILLER * 40 + " ".join(items[0].details)
    assert index.find(passages(torn), share=0.5) == []


def test_a_long_record_takes_the_memory_of_a_block(monkeypatch):
    monkeypatch.setattr("medjax.data.text.overlap._BLOCK", 1 << 16)
    index = OverlapIndex(exam(10))
    peaks = []
    for times in (5_000, 40_000):
        record = passages(FILLER * times)
        tracemalloc.start()
        assert index.find(record) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_copies_of_a_question_are_on_one_side():
    records = [Pair(f"{i}", "w", f"Question {i % 300}?", "", f"answer {i}") for i in range(900)]
    for division in (divide([], fraction=0.2), divide(records, count=150)):
        held = {record.instruction for record in records if division.holds_out(record)}
        kept = {record.instruction for record in records if not division.holds_out(record)}
        assert not held & kept
        assert 35 <= len(held) <= 85
    assert not any(map(NOTHING.holds_out, records))
    asked = Pair("a", "w", "どれか。 A", "", "x"), Pair("b", "w", "どれか", "ａ", "y")
    talk = Conversation("c", "w", (Message("system", "医師"), Message("user", "どれか a"), Message("assistant", "z")))
    assert len({question_hash(record) for record in (*asked, talk)}) == 1


def test_fraction_and_count_are_kept():
    records = [Passage(str(i), "w", f"text number {i}") for i in range(4000)]
    for fraction in (0.01, 0.3):
        held = sum(map(divide([], fraction=fraction).holds_out, records))
        assert abs(held - 4000 * fraction) < 5 * (4000 * fraction * (1 - fraction)) ** 0.5
    for count in (1, 250, 3999):
        assert sum(map(divide(records, count=count).holds_out, records)) == count
    copies = records[:10] * 3
    assert sum(map(divide(copies, count=4).holds_out, copies)) == 6
    with pytest.raises(ValueError, match="got a count of 28, expected fewer than the 10 different questions of the 30"):
        divide(copies, count=28)
    with pytest.raises(ValueError, match=r"got the fraction 0\.5 and the count 3, expected one of them"):
        divide(copies, fraction=0.5, count=3)


def benchmark(shared_data, name):
    lines = (shared_data / "medllm_qa_benchmark" / name).read_text("utf-8").splitlines()
    rows = map(json.loads, lines)
    return [
        Asked(str(row["problem_id"]), row["problem_text"], (*row["choices"], row.get("context") or "")) for row in rows
    ]


def own(items, records):
    """Items found in the record of the same id, and all other pairs."""
    pairs = OverlapIndex(items).find(records)
    return len({o.item for o in pairs if o.item == o.record}), [o for o in pairs if o.item != o.record]


def test_pubmedqa_train_and_test_do_not_overlap(shared_data):
    test = benchmark(shared_data, "pubmedqa.jsonl")
    ids = {item.id for item in test}
    rows = json.loads((shared_data / "pubmedqa" / "ori_pqal.json").read_text("utf-8"))
    train = [
        Pair(name, "w", row["QUESTION"], " ".join(row["CONTEXTS"]), row["LONG_ANSWER"])
        for name, row in rows.items()
        if name not in ids
    ]
    assert (len(test), len(train)) == (500, 500)
    assert refuse_overlap(train, test) == []
    assert own(test, [Pair(i.id, "w", i.stem, i.details[-1], "yes") for i in test]) == (500, [])


def test_medqa_with_four_and_with_five_choices_is_one_exam(shared_data):
    five, four = (benchmark(shared_data, name) for name in ("medqa_en.jsonl", "medqa_en_4op.jsonl"))
    count, others = own(five, [Pair(i.id, "w", "\n".join((i.stem, *i.details)), "", "a") for i in four])
    assert count == len(five) == 1273
    assert len(others) < 10, "cases that differ in a few words"


def test_edited_igakuqa_is_still_found(shared_data):
    items = benchmark(shared_data, "igakuqa.jsonl")

    def edited(text, edits):
        letters = list(text)
        for _ in range(edits):
            letters[random.randrange(len(letters))] = random.choice("患者医師の")
        return "".join(letters)

    random.seed(0)
    for edits, least in ((0, 2000), (2, 1850)):
        records = [Pair(i.id, "w", "\n".join((edited(i.stem, edits), *i.details)), "", "a") for i in items]
        count, others = own(items, records)
        assert count >= least
        assert len(others) < 20, "questions that come again in another year"
