"""Which items an audit finds, and how surely: contexts apart, short questions, what is there to the letter."""

import json

import numpy as np
import pytest
from small_runs import write_graded

from medjax.data.exams.tasks import load_task
from medjax.data.qa import Item
from medjax.data.text.near_duplicates import NearIndex
from medjax.data.text.overlap import Asked, normalise
from medjax.data.text.stretches import Stretch
from medjax.eval.__main__ import main
from medjax.eval.found_items import ItemFinder, letter_places

CHOICES = ["第一の選択肢である", "第二の選択肢である"]
CASES = {
    "alone": "A 58-year-old farmer came in after three days of fever and a cough that brought up rusty sputum.",
    "passage": "The trial followed 412 nurses over nine winters and counted every day that each stayed at home.",
    "both": "Seven litres of water were lost in a night on the ward for burns, as the charts of the shift have shown.",
    "apart": "Her gait had become broad and unsteady since spring, and at night she saw two lamps where one was hung.",
    "short": "An infant of five weeks vomits in an arc after each feed, is hungry again at once and has lost weight.",
    "short_with": "On the third day after the hip was replaced he was short of breath and his left calf was swollen.",
    "short_passage": "A diver surfaced too fast from forty metres and felt pain in both shoulders within the hour.",
    "alike": "We wanted to know whether early walking shortens the stay of older patients after surgery of the colon.",
}
ASKED = {
    "alone": "Which organism grows most often from such sputum in people who work on the land all year?",
    "passage": "Did vaccination in autumn lower the number of absences from work over all of these years?",
    "both": "How much fluid should have been given in the first eight hours by the formula of Parkland?",
    "apart": "In which part of the brain does the lesion lie that explains double vision and ataxia here?",
    "short": "What is the diagnosis?",
    "short_with": "What comes first?",
    "short_passage": "How is he treated?",
    "alike": "Does early walking shorten the stay of older patients after surgery of the colon?",
}


def test_questions_and_the_contexts_they_refer_to_are_looked_for_apart(tmp_path, capsys):
    exam, data, out = tmp_path / "cases.jsonl", tmp_path / "notes.jsonl", tmp_path / "out"
    choices = {name: [f"the first way for {name} cases", f"another one, known for {name}"] for name in CASES}
    rows = [
        {"id": name, "question": ASKED[name], "context": CASES[name], "choices": choices[name], "answer": ["a"]}
        for name in CASES
    ]
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    filler = "Nothing of all that has been written on these pages is of any use to a reader. " * 3
    texts = [
        *(ASKED["alone"], CASES["passage"], CASES["both"] + "\n" + ASKED["both"]),
        *(CASES["apart"], filler + ASKED["apart"].upper(), "\n".join((ASKED["short"], *choices["short"]))),
        *(filler + CASES["short_with"] + " " + ASKED["short_with"] + filler, CASES["short_passage"], CASES["alike"]),
        CASES["passage"] + filler,
    ]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    run = write_graded(tmp_path / "graded", exam)
    assert main(["audit", "--train", str(data), "--tasks", str(exam), "--run", str(run), "--out", str(out)]) == 0
    found = json.loads((out / "audit.json").read_text("utf-8"))
    assert {match["item"]: (match["level"], match["context"], match["records"]) for match in found["matches"]} == {
        "alone": ("exact", "not found", 1),
        "passage": ("context", None, 2),
        "both": ("exact", "same record", 1),
        "apart": ("normalised", "another record", 1),
        "short": ("exact", "not found", 1),
        "short_with": ("exact", "same record", 1),
        "short_passage": ("context", None, 1),
        "alike": ("context", None, 1),
    }
    (task,) = found["tasks"]
    counts = {key: task[key] for key in ("exact", "normalised", "near", "context", "contexts", "records", "unchecked")}
    assert counts == {"exact": 4, "normalised": 1, "near": 0, "context": 3, "contexts": 8, "records": 5, "unchecked": 0}
    # an item whose context alone is there keeps its place among the others
    (score,) = found["runs"]
    assert (score["matched"]["items"], score["without"]["items"]) == (5, 3)
    (held,) = (match for match in found["matches"] if match["item"] == "short_with")
    marked = [held["excerpt"]["text"][slice(*span)] for span in held["excerpt"]["marks"]]
    assert "".join(marked).startswith("On the third day")
    assert "What comes first" in "".join(marked)
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines()]
    assert ["set", "items", "exact", "normalised", "near", "context alone", "records", "too short"] in lines
    assert ["cases (en)", *"8410350"] in lines
    assert (
        "cases (en): 5 questions found that refer to a context; of the contexts 2 in the same record, 1 in another, "
        "2 nowhere"
        "\nContext alone: what an item refers to is there, its question is not; not counted as found.\n"
    ) in printed
    html = (out / "audit.html").read_text("utf-8")
    assert html.count('<span class="tag context">context alone</span>') == 3
    assert html.count("<span>without its context</span>") == html.count("<span>with its context</span>") == 2
    assert '<td class="num" data-label="Context alone">3</td>' in html
    data.write_text(json.dumps({"text": CASES["passage"]}) + "\n", "utf-8")
    assert main(["audit", "--train", str(data), "--tasks", str(exam), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "look at audit.html: contexts stand in the training data, none of their questions does" in printed
    assert "refer to a context" not in printed


@pytest.mark.parametrize("order", [("question", "context"), ("context", "question")])
@pytest.mark.parametrize("before", [(), ("question",)])
def test_stretches_of_one_record_are_one_record(before, order):
    item = Item("q", ASKED["both"], ("the first way", "another way"), ("a",), context=CASES["both"])
    finder = ItemFinder([item], [Asked("q", item.question, item.choices)], NearIndex)
    texts = {"question": item.question, "context": item.context}
    records = [("first", name) for name in before] + [("second", name) for name in order]
    for where, name in records:
        assert len(list(finder.look([Stretch(where, where, texts[name], 0, len(texts[name]), 0)]))) == 1
    assert (finder.found[0].level, finder.found[0].context) == ("exact", "same record")
    assert finder.found[0].records == len(before) + 1


def test_a_context_too_short_to_be_told_is_part_of_the_question(tmp_path):
    exam, data, out = tmp_path / "short.jsonl", tmp_path / "notes.jsonl", tmp_path / "out"
    row = {
        "id": "q",
        "question": "診断はどれか。",
        "context": "58歳の男性、胸痛。",
        "choices": CHOICES,
        "answer": ["a"],
    }
    exam.write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    text = "\n".join((row["context"], row["question"], *CHOICES))
    data.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", "utf-8")
    assert main(["audit", "--train", str(data), "--tasks", str(exam), "--out", str(out)]) == 0
    (match,) = json.loads((out / "audit.json").read_text("utf-8"))["matches"]
    assert (match["level"], match["context"]) == ("exact", None)


def test_short_questions_are_exact_with_all_their_choices_alone_they_are_not_looked_for(tmp_path, capsys):
    long = [
        f"{disease}では{sign}が上昇し、回復の後も長く続く" for disease, sign in zip("甲乙丙丁", "子丑寅卯", strict=True)
    ]
    rows = [
        {"id": "short", "question": "正しいのはどれか。", "choices": [*long, "上のいずれでもない"], "answer": ["a"]},
        {
            "id": "table",
            "question": "検査所見を示す。\n\n\n赤血球\n白血球\n\n\n次に行う処置はどれか。",
            "choices": CHOICES,
            "answer": ["a"],
        },
        *(
            {"id": f"other-{n}", "question": f"第{n}の問い\n\n続き{n}", "choices": CHOICES, "answer": ["a"]}
            for n in range(60)
        ),
    ]
    exam, data = tmp_path / "exam.jsonl", tmp_path / "notes.jsonl"
    exam.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")

    def audited(*texts):
        data.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
        assert main(["audit", "--train", str(data), "--tasks", str(exam), "--out", str(tmp_path / "out")]) == 0
        found = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))
        return {match["item"]: match["level"] for match in found["matches"]}, found["tasks"][0]

    whole = ["\n".join((row["question"], *row["choices"])) for row in rows[:2]]
    levels, task = audited(*whole)
    assert levels == {"short": "exact", "table": "exact"}
    assert "short" in task["not_alone_ids"]
    assert task["not_alone"] == len(task["not_alone_ids"]) == 1
    assert "exam (ja): 1 question too short to be told from other text" in capsys.readouterr().out
    levels, _ = audited(
        "問題集から。正しいのはどれか。答えは後で。", whole[0].replace("いずれでもない", "どれでもない")
    )
    assert levels == {"short": "near"}


def test_licensing_exams_to_the_letter_are_exact(shared_data, tmp_path):
    """Wherever the window of a match ends, within the choices too."""
    items = load_task("igakuqa", language="ja", years=("2018", "2022"), data_dir=shared_data).items
    exam, data = tmp_path / "exam.jsonl", tmp_path / "notes.jsonl"
    rows = [
        {"id": item.id, "question": item.question, "choices": list(item.choices), "answer": ["a"]} for item in items
    ]
    rows = [row for row in rows if row["choices"]]
    exam.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    texts = ["\n".join((row["question"], *row["choices"])) for row in rows]
    data.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    assert main(["audit", "--train", str(data), "--tasks", str(exam), "--out", str(tmp_path / "out")]) == 0
    (task,) = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))["tasks"]
    assert task["exact"] + task["unchecked"] == len(rows) > 700
    assert task["unchecked"] <= 3


def test_the_mini_exam_is_found_in_itself_in_both_languages(tmp_path):
    rows = [
        {"text": "\n".join((item.question, *item.choices))}
        for language in ("ja", "en")
        for item in load_task("mini", language=language).items
    ]
    data = tmp_path / "all.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert main(["audit", "--train", str(data), "--tasks", "mini", "--out", str(tmp_path / "out")]) == 0
    tasks = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))["tasks"]
    assert [(task["language"], task["items"]) for task in tasks] == [("ja", 120), ("en", 120)]
    for task in tasks:
        assert task["exact"] + task["unchecked"] == 120


def test_letters_know_where_they_come_from():
    text = "ＥＣＧ: 3.5 mV㎎ (心)"
    letters = normalise(text)
    assert letters == "ecg35mvmg心"
    assert [text[place] for place in letter_places(text, len(letters))] == list("ＥＣＧ35mV㎎㎎心")
    half = "ｼﾞｷﾞﾀﾘｽ"
    places = letter_places(half, len(normalise(half)))
    assert len(places) == len(normalise(half))
    assert (np.diff(places) > 0).all()
