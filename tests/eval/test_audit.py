"""The audit of training data: what is found at which level, its report, and scores without the items found."""

import json

import pytest
from small_runs import write_graded

from medjax.data.exams.tasks import load_task
from medjax.eval.__main__ import main
from medjax.eval.audit import load_tasks
from medjax.eval.subcommands import gathered
from medjax.report.audit import marked
from medjax.statistics.differences import independent
from medjax.statistics.intervals import wilson

QUESTIONS = {
    "a": "58歳の男性。3日前からの発熱と咳嗽とを主訴に来院した。胸部X線で右下肺野に浸潤影を認める。起炎菌はどれか。",
    "b": "A 34-year-old woman has had palpitations and weight loss for three months. Which test comes first here?",
    "c": "小児の鉄欠乏性貧血の検査所見として特徴的でないのはどれか、すべての選択肢をよく読んでから選べ。",
    "d": "産褥期の子宮復古について、経過の記載として誤っているのはどれか、もっとも当てはまるものを選べ。",
}
CHOICES = ["第一の選択肢である", "第二の選択肢である"]


@pytest.fixture
def ward(tmp_path):
    """An exam, and training data that hold three of its four items, among other texts."""
    exam = tmp_path / "ward.jsonl"
    rows = [
        {"id": name, "question": text, "choices": CHOICES, "answer": ["a"], "points": points}
        for (name, text), points in zip(QUESTIONS.items(), (1, 2, 0, 4), strict=True)
    ]
    exam.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    data = tmp_path / "data"
    data.mkdir()
    filler = "吾輩は猫である。名前はまだ無い。<b>どこで生れたか</b>とんと見当がつかぬ。" * 30
    wide = QUESTIONS["b"].upper().replace(" ", "\u3000").replace("-", "－")
    other_case = QUESTIONS["a"].replace("58", "71").replace("3日前", "5日前").replace("右下", "左上")
    records = [
        {"text": filler + QUESTIONS["c"] + filler},
        {"prompt": wide, "response": "TSH"},
        {"text": filler},
        {"messages": [{"role": "user", "content": other_case}, {"role": "assistant", "content": "肺炎球菌"}]},
        {"prompt": "もう一度。" + QUESTIONS["c"], "response": "x"},
    ]
    (data / "notes.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records), "utf-8")
    (data / "book.txt").write_text(filler * 3, "utf-8")
    return exam, data


def test_levels_places_and_scores(ward, tmp_path, capsys):
    exam, data = ward
    run, out = write_graded(tmp_path / "graded", exam), tmp_path / "out"
    arguments = ["--train", str(data), "--tasks", str(exam), "--run", str(run), "--out", str(out)]
    assert main(["audit", *arguments, "--resamples", "200"]) == 0
    found = json.loads((out / "audit.json").read_text("utf-8"))
    assert found["records"] == 6
    (task,) = found["tasks"]
    assert {key: task[key] for key in ("items", "exact", "normalised", "near", "records", "unchecked")} == {
        **{"items": 4, "exact": 1, "normalised": 1, "near": 1, "records": 4, "unchecked": 0}
    }
    by_id = {match["item"]: match for match in found["matches"]}
    assert {name: match["level"] for name, match in by_id.items()} == {"a": "near", "b": "normalised", "c": "exact"}
    notes = str(data / "notes.jsonl")
    assert (by_id["a"]["where"], by_id["b"]["where"]) == (f"{notes}, line 4", f"{notes}, line 2")
    assert (by_id["c"]["where"], by_id["c"]["records"], by_id["c"]["others"]) == (
        *(f"{notes}, line 1", 2),
        [f"{notes}, line 5"],
    )
    excerpt, asked = by_id["c"]["excerpt"], by_id["c"]["asked"]
    (span,) = excerpt["marks"]
    assert excerpt["text"][slice(*span)] + "。" == QUESTIONS["c"]
    assert asked["question"]["marks"] == [[0, len(QUESTIONS["c"]) - 1]]
    # the numbers agree, the lung field does not
    agree = "".join(by_id["a"]["excerpt"]["text"][slice(*span)] for span in by_id["a"]["excerpt"]["marks"])
    assert agree.startswith("71歳の男性")
    assert "左上" not in agree

    (score,) = found["runs"]
    assert (score["all"]["items"], score["all"]["correct"], score["all"]["points"], score["all"]["points_total"]) == (
        *(4, 3),
        *(5, 7),
    )
    assert (score["without"]["items"], score["without"]["accuracy"], score["without"]["points_total"]) == (1, 1.0, 4)
    # the one item left is right: Wilson's interval, as every resample is the same
    share = wilson(1, 1)
    assert score["without"]["accuracy_interval"] == [share.low, share.high]
    assert share.low < 0.21
    assert (score["matched"]["accuracy"], score["matched"]["points"]) == (pytest.approx(2 / 3), 1)
    assert score["matched"]["points_total"] == 3
    gap = independent((1, 1), (2, 3))
    (moved,) = score["differences"]
    assert (moved["metric"], moved["items"]) == ("accuracy", [1, 3])
    assert moved["matched_minus_without"]["interval"] == [gap.low, gap.high]
    printed = capsys.readouterr().out
    assert f"looking for 4 items in 2 files, {sum(f.stat().st_size for f in data.iterdir()) / 1e6:.1f} MB" in printed
    assert f"\n6 records, {found['letters']:,} letters read" in printed
    lines = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines()]
    assert next(line for line in lines if line[0] == "ward (ja)") == ["ward (ja)", *"411140"]
    shown = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    assert next(line for line in lines if line[1:2] == ["found - without"])[3] == f"-33.3 ({shown})"
    part = f"{75 * gap.low:+.1f} to {75 * gap.high:+.1f}"
    assert next(line for line in lines if line[1:2] == ["all - without"])[3] == f"-25.0 ({part})"
    html = (out / "audit.html").read_text("utf-8")
    assert f'<b>−33.3</b></td><td class="num" data-label="95 %">{shown.replace("-", "−")}</td>' in html
    assert html.count('<article class="match">') == 3
    assert "&lt;b&gt;どこで" in html
    assert "<script" not in html


def test_a_run_without_an_item_found_has_one_row(ward, tmp_path, capsys):
    exam, data = ward
    run, out = write_graded(tmp_path / "graded", exam), tmp_path / "out"
    arguments = ["--train", str(data / "book.txt"), "--tasks", str(exam), "--run", str(run), "--out", str(out)]
    assert main(["audit", *arguments, "--resamples", "50"]) == 0
    (score,) = json.loads((out / "audit.json").read_text("utf-8"))["runs"]
    assert (score["differences"], score["without"]["items"], score["matched"]["items"]) == ([], 4, 0)
    printed = capsys.readouterr().out
    assert [line.split("│")[1].strip() for line in printed.splitlines() if "│ 5 / 7" in line.replace("  ", " ")] == [
        "all, none found"
    ]
    assert "found - without" not in printed
    html = (out / "audit.html").read_text("utf-8")
    assert "all items, none found" in html
    assert "without those found" not in html


def test_a_set_that_no_model_has_seen_is_not_scored_again(ward, tmp_path, capsys):
    exam, data = ward
    run, out = write_graded(tmp_path / "graded", exam), tmp_path / "out"
    record = json.loads((run / "results.json").read_text())
    record["medjax"]["evaluations"][0]["scores"] = {"not_graded": "too long 4/4"}
    (run / "results.json").write_text(json.dumps(record))
    assert main(["audit", "--train", str(data), "--tasks", str(exam), "--run", str(run), "--out", str(out)]) == 0
    assert json.loads((out / "audit.json").read_text("utf-8"))["runs"] == []
    assert (
        "graded: ward (ja) strict-0shot is not scored again, since no item reached the model: too long 4/4\n"
        in capsys.readouterr().out
    )


def test_a_set_graded_by_f1_is_scored_by_that_with_and_without_the_items_found(tmp_path, capsys):
    exam, data, run = tmp_path / "lists.jsonl", tmp_path / "notes.jsonl", tmp_path / "graded"
    texts = [
        "発熱と咳嗽が三日前から続き、右下肺野に浸潤影を認めたため入院した。",
        "激しい頭痛と嘔吐があり、頭部CTで高吸収域を認めた。",
    ]
    texts += ["動悸と体重減少とを訴え、甲状腺のびまん性腫大を認めたため精査となった。"]
    gold = [["発熱", "咳嗽"], ["頭痛", "嘔吐"], ["動悸", "体重減少"]]
    rows = [
        {"id": f"n{i}", "kind": "entities", "question": text, "answer": answer}
        for i, (text, answer) in enumerate(zip(texts, gold, strict=True))
    ]
    exam.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    data.write_text(json.dumps({"text": "前文。" + texts[1]}, ensure_ascii=False) + "\n", "utf-8")
    task = load_task(str(exam))
    run.mkdir()
    entry = {"id": "x", "task": "lists", "language": task.language, "protocol": "strict-0shot"}
    (run / "results.json").write_text(
        json.dumps({"medjax": {"evaluations": [entry | {"data": {"digest": task.digest}}]}})
    )
    said = [["発熱"], ["頭痛", "嘔吐"], None]
    lines = [
        {
            "task": "x",
            "doc": {"id": f"n{i}"},
            "doc_hash": "",
            "prompt_hash": "",
            "correct": i == 1,
            "points": int(i == 1),
        }
        | {"picked": picked}
        for i, picked in enumerate(said)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = ["--out", str(tmp_path / "out"), "--resamples", "200"]
    assert main(["audit", "--train", str(data), "--tasks", str(exam), "--run", str(run), *out]) == 0
    (score,) = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))["runs"]
    assert {part: score[part]["items"] for part in ("all", "without", "matched")} == {
        "all": 3,
        "without": 2,
        "matched": 1,
    }
    # F1 of one of two found, nothing beside it: 2/3; of an answer that could not be read: 0
    f1 = {part: score[part]["metrics"]["entity_partial_f1"]["value"] for part in ("all", "without", "matched")}
    assert f1 == {"all": pytest.approx((2 / 3 + 1) / 3), "without": pytest.approx(1 / 3), "matched": 1.0}
    assert score["matched"]["metrics"]["entity_partial_f1"]["interval"] is None
    printed = capsys.readouterr().out
    assert "looking for 3 items in 1 file" in printed
    assert "entity_partial_f1 +0.667 (no interval: a single item)" in printed
    assert "graded by (95 % interval)" in printed
    assert "entity_partial_f1 0.333 (0.000 to 0.667)" in printed
    assert "entity_partial_f1 1.000 (no interval: a single item)" in printed
    assert "entity partial F1 <b>0.333</b><small>0.000 – 0.667</small>" in (tmp_path / "out" / "audit.html").read_text(
        "utf-8"
    )


def test_a_run_of_a_part_is_scored_by_what_its_accuracy_counted(tmp_path, capsys):
    """Of an exam of choices and lists a run that asked lists alone has the accuracy of lists, in every part."""
    exam, data, run = tmp_path / "ward.jsonl", tmp_path / "notes.jsonl", tmp_path / "graded"
    rows = [
        {"id": name, "question": QUESTIONS[name], "kind": "entities", "answer": [name]}
        if name in "bc"
        else {"id": name, "question": QUESTIONS[name], "choices": CHOICES, "answer": ["a"]}
        for name in QUESTIONS
    ]
    exam.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    data.write_text(json.dumps({"text": QUESTIONS["c"]}, ensure_ascii=False) + "\n", "utf-8")
    lines = (write_graded(run, exam) / "samples.jsonl").read_text().splitlines(keepends=True)
    arguments = ["--train", str(data), "--tasks", str(exam), "--run", str(run), "--out", str(tmp_path / "out")]
    assert main(["audit", *arguments, "--resamples", "50"]) == 0
    share = wilson(2, 2)  # a and d, the choices
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    (row,) = (row for row in rows if row[1:2] == ["all"])
    assert row[2:4] == ["4", f"100.0% ({share.low:.1%} to 100.0%) of 2"]
    page = (tmp_path / "out" / "audit.html").read_text("utf-8")
    assert "<b>100.0\u00a0%</b> of 2</td>" in page
    (run / "samples.jsonl").write_text("".join(lines[1:3]))  # b, which is wrong, and c
    assert main(["audit", *arguments, "--resamples", "50"]) == 0
    (score,) = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))["runs"]
    parts = [score[part] for part in ("all", "without", "matched")]
    assert [(part["accuracy_items"], part["accuracy"]) for part in parts] == [(2, 0.5), (1, 0), (1, 1)]
    moved = next(each for each in score["differences"] if each["metric"] == "accuracy")
    assert (moved["items"], moved["matched_minus_without"]["value"]) == ([1, 1], 1)


def test_an_exam_of_any_form_may_be_training_data(ward, tmp_path, capsys):
    exam, data = ward
    own, out = tmp_path / "Own.CSV", ["--out", str(tmp_path / "out")]
    own.write_text(f"id,question,a,b,answer\n7,{QUESTIONS['c']},は い,いいえ,a\n", "utf-8")
    (data / "passed_over.csv").write_text("name,age\nx,3\n", "utf-8")
    assert main(["audit", "--train", str(data / "book.txt"), str(own), "--tasks", str(exam), *out]) == 0
    (match,) = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))["matches"]
    assert (match["item"], match["level"], match["where"]) == ("c", "exact", f"{own}, item 7")
    assert main(["audit", "--train", str(data), "--tasks", str(exam), *out]) == 0
    capsys.readouterr()
    assert main(["audit", "--train", str(data / "passed_over.csv"), "--tasks", str(exam), *out]) == 2
    said = capsys.readouterr().err
    assert (
        f'{data / "passed_over.csv"}, row 1: got the columns name, age, of which "name" is not known, expected ' in said
    )
    assert said.endswith(" (a .csv is read as an exam; write other data as .jsonl)\n")
    assert main(["audit", "--train", str(tmp_path / "own.cvs"), "--tasks", str(exam), *out]) == 2
    assert "own.cvs: no such file or folder" in capsys.readouterr().err


def test_groups_stand_for_their_sets_on_this_machine(monkeypatch, ward):
    exam, _ = ward
    said = []
    monkeypatch.setattr(
        "medjax.eval.audit.expand", lambda names, data_dir: ((str(exam), "mini:en"), ("x is left out",))
    )
    tasks = load_tasks(("japanese-medical",), None, said.append)
    assert [(task.name, task.language) for task in tasks] == [("ward", "ja"), ("mini", "en")]
    assert said == ["x is left out"]


def test_a_language_of_an_exam_in_any_form(tmp_path):
    (tmp_path / "own.json").write_text('[{"id": "1", "question": "q", "choices": ["x", "y"], "answer": "a"}]')
    (found,) = load_tasks((f"{tmp_path / 'own.json'}:en",), None)
    assert (found.language, [item.id for item in found.items]) == ("en", ["1"])


def test_clean_data_and_wrong_calls(ward, tmp_path, capsys):
    exam, data = ward
    out = ["--out", str(tmp_path / "out")]
    assert main(["audit", "--train", str(data / "book.txt"), "--tasks", str(exam), *out]) == 0
    assert "No item was found." in (tmp_path / "out" / "audit.html").read_text("utf-8")
    printed = capsys.readouterr().out
    assert "next " not in printed
    assert "context" not in printed
    assert "looking for 4 items in 1 file, 0.0 MB\n" in printed
    assert "\n1 record, " in printed
    assert main(["audit", "--train", str(data / "none.jsonl"), "--tasks", str(exam), *out]) == 2
    assert "none.jsonl: no such file or folder" in capsys.readouterr().err
    assert main(["audit", "--train", str(data), "--tasks", "igakuqua", *out]) == 2
    assert "did you mean igakuqa?" in capsys.readouterr().err
    assert main(["audit", "--train", str(data), "--tasks", str(exam), "--containment", "2", *out]) == 2
    assert "containment: got 2.0, expected a share above 0 and at most 1" in capsys.readouterr().err
    run = write_graded(tmp_path / "graded", exam)
    assert main(["audit", "--train", str(data), "--tasks", "mini:ja", "--run", str(run), *out]) == 2
    assert "graded ward:ja, expected one of the sets looked for (mini:ja)" in capsys.readouterr().err
    exam.write_text(exam.read_text("utf-8").replace("58", "59"), "utf-8")
    assert main(["audit", "--train", str(data), "--tasks", str(exam), "--run", str(run), *out]) == 2
    assert "graded: ward: got data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["audit", "--tasks", "mini"])
    assert "train: got no training data" in capsys.readouterr().err


def test_marked_text_is_escaped():
    assert str(marked("<a>bc", [[0, 2], [4, 5]])) == "<mark>&lt;a</mark>&gt;b<mark>c</mark>"
    assert str(marked("a&b", [])) == "a&amp;b"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["A", "B", "--anyway"], ["--anyway", "--runs", '["A", "B"]']),
        (["--anyway", "A", "B", "--out", "o"], ["--anyway", "--out", "o", "--runs", '["A", "B"]']),
        (["A", "--seed=3", "医,師"], ["--seed=3", "--runs", '["A", "医,師"]']),
        (["A,B"], ["--runs", "A,B"]),
        (["settings.toml", "--runs", "A", "B"], ["settings.toml", "--runs", '["A", "B"]']),
        (["--runs"], ["--runs"]),
        (["--runs=A", "B", "--anyway"], ["--anyway", "--runs", '["A", "B"]']),
        (["--runs=A,B"], ["--runs", "A,B"]),
    ],
)
def test_words_are_gathered_to_lists(argv, expected):
    assert gathered(argv, lists=("--runs",), flags=("--anyway",), rest_is="--runs") == expected


def test_help_lists_every_option(capsys):
    for name, options in (
        ("compare", ("--runs", "--anyway", "--out", "--resamples", "--seed")),
        ("audit", ("--train", "--tasks", "--run ", "--containment", "--jaccard", "--ngram_japanese", "--sketch")),
    ):
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: python -m medjax.eval {name}")
        assert [option for option in options if option not in printed] == []
