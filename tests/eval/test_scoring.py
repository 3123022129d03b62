"""Verdicts and totals: hand-made cases, and the published predictions rescored to the last point."""

import json
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from medjax.data.exams.definition import LoadedTask, PassRule
from medjax.data.exams.tasks import load_task
from medjax.data.qa import Item
from medjax.eval.scoring import Prediction, Verdict, aggregate, chance, judge, judge_kasai

FIVE = ("1", "2", "3", "4", "5")
ITEM = Item("q", "?", FIVE, ("a", "c"), points=3, prohibited=("e",))
SETS = ("gpt4", "chatgpt", "translate_chatgpt-en", "gpt3", "student-majority")
YEARS = ("2018", "2019", "2020", "2021", "2022")
# their prohibited letter is full-width in the published file; the reference figures compare it as it stands
FULL_WIDTH = {"112F66", "113B26", "114F70", "115F46", "116C67"}


@pytest.mark.parametrize(
    ("letters", "verdict"),
    [
        (("a", "c"), Verdict(True, 3, False, False)),
        (("c", "a"), Verdict(True, 3, False, False)),
        (("a",), Verdict(False, 0, False, False)),
        (("a", "c", "e"), Verdict(False, 0, True, False)),
        ((), Verdict(False, 0, False, False)),
        (None, Verdict(False, 0, False, True)),
    ],
)
def test_the_set_of_letters_must_be_the_gold_set(letters, verdict):
    assert judge(ITEM, Prediction("q", letters)) == verdict


def test_special_items():
    number = Item("n", "?", (), ("7.20",))
    assert judge(number, Prediction("n", ("7.20",))).correct
    assert not judge(number, Prediction("n", ("7.2",))).correct
    ordered = Item("o", "?", FIVE, ("c", "a", "b"), ordered=True)
    assert judge(ordered, Prediction("o", ("c", "a", "b"))).correct
    assert not judge(ordered, Prediction("o", ("a", "b", "c"))).correct
    either = Item("x", "?", FIVE, ("a",), accepted=(("a",), ("d",)))
    assert [judge(either, Prediction("x", tuple(text))).correct for text in ("a", "d", "ad", "b")] == [1, 1, 0, 0]
    anything = Item("y", "?", FIVE, ("e",), any_answer=True)
    assert judge(anything, Prediction("y", None)) == Verdict(True, 1, False, True)
    withdrawn = Item("z", "?", FIVE, ("e",), points=0)
    assert judge(withdrawn, Prediction("z", ("e",))) == Verdict(True, 0, False, False)
    with pytest.raises(ValueError, match="got the prediction for 'z', expected 'q'"):
        judge(ITEM, Prediction("z", ("a",)))


@pytest.mark.parametrize(
    ("text", "correct", "prohibited", "unparsed"),
    [
        *[("a,c", True, False, False), ("c,a", True, False, False), ("a, c", False, False, False)],
        *[("a,c,e", False, True, False), ("a, e", False, True, False), ("aとc", False, False, True)],
        *[("a,c.", False, False, True), ("", False, False, True), ("a,a,c", False, False, False)],
    ],
)
def test_the_published_rule_trims_nothing(text, correct, prohibited, unparsed):
    assert judge_kasai(ITEM, text) == Verdict(correct, 3 if correct else 0, prohibited, unparsed)


def test_the_published_rule_on_special_items():
    either = Item("112B30", "?", FIVE, ("a",), accepted=(("a",), ("d",)))
    assert [judge_kasai(either, text).correct for text in ("a", "d", "a,d", "a or d", " a")] == [1, 1, 0, 0, 0]
    assert judge_kasai(Item("116A71", "?", FIVE, ("e",), any_answer=True), "NA").correct
    number = Item("n", "?", (), ("04",))
    assert judge_kasai(number, "04") == Verdict(True, 1, False, False)
    assert judge_kasai(number, "4") == Verdict(False, 0, False, False)
    assert judge_kasai(number, "four").unparsed
    ordered = Item("o", "?", FIVE, ("c", "a", "b"), ordered=True)
    assert [judge_kasai(ordered, text).correct for text in ("c,a,b", "a,b,c")] == [1, 0]


def test_chance_by_hand():
    assert chance(Item("q", "?", FIVE, ("a",))) == 1 / 5
    assert chance(ITEM) == 1 / 10
    assert chance(Item("q", "?", FIVE, ("c", "a", "b"), ordered=True)) == 1 / 60
    assert chance(Item("q", "?", FIVE, ("a",), accepted=(("a",), ("d",)))) == 2 / 5
    assert chance(Item("q", "?", (), ("26",))) == 0
    assert chance(Item("q", "?", FIVE, ("a",), any_answer=True)) == 1


def test_chance_of_igakuqa(shared_data):
    task = load_task("igakuqa", data_dir=shared_data)
    wrong = [Verdict(False, 0, False, True)] * 2000
    score = aggregate(task, task.items, wrong, resamples=10)
    assert round(100 * score["chance"]["accuracy"], 1) == 18.4
    assert round(score["chance"]["points"], 1) == 466.0
    assert (score["correct"], score["unparsed"], score["withdrawn"]) == (0, 2000, 11)


@pytest.fixture(scope="module")
def igakuqa(shared_data):
    return load_task("igakuqa", data_dir=shared_data)


@pytest.fixture(scope="module")
def oracle(shared_data):
    return json.loads((shared_data / "oracles" / "igakuqa_regression.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def predictions(shared_data):
    def read(name):
        folder = shared_data / "igakuqa" / "baseline_results"
        paths = sorted(folder.glob(f"*/???-?_{name}.jsonl"))
        assert len(paths) == 30
        rows = (json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines())
        return {row["problem_id"]: row["prediction"] for row in rows}

    return {name: read(name) for name in SETS}


def as_published(item):
    return replace(item, prohibited=()) if item.id in FULL_WIDTH else item


def score_of(task, items, texts, *, trim=False):
    chosen = {item.id: texts[item.id].replace(" ", "") if trim else texts[item.id] for item in items}
    return aggregate(task, items, [judge_kasai(item, chosen[item.id]) for item in items], resamples=10)


@pytest.mark.parametrize("name", SETS)
def test_published_predictions_score_what_they_scored(igakuqa, oracle, predictions, name):
    items = [as_published(item) for item in igakuqa.items]
    score = score_of(igakuqa, items, predictions[name])
    trimmed = score_of(igakuqa, items, predictions[name], trim=True)
    got = {}
    for year in YEARS:
        exam, clean = score["by_exam"][year], trimmed["by_exam"][year]
        got[year] = {
            "questions": exam["items"],
            "correct": exam["correct"],
            "accuracy": exam["accuracy"],
            "points": exam["points"],
            "points_total": exam["points_total"],
            "required": exam["required_points"],
            "required_total": exam["required_total"],
            "general": exam["general_points"],
            "general_total": exam["general_total"],
            "prohibited_questions": exam["prohibited"],
            "prohibited_problem_ids": exam["prohibited_ids"],
            "text_only_correct": exam["text_only"]["correct"],
            "text_only_questions": exam["text_only"]["items"],
            "by_section_correct_points": {
                section: [part["correct"], part["points"]] for section, part in exam["by_section"].items()
            },
            "if_blanks_around_letters_were_removed": {"correct": clean["correct"], "points": clean["points"]},
        }
    got["all_years"] = {
        "questions": score["items"],
        "correct": score["correct"],
        "accuracy": score["accuracy"],
        "points": score["points"],
        "points_total": score["points_total"],
        "points_mean_per_exam": score["points"] / 5,
        "required": score["required_points"],
        "general": score["general_points"],
        "prohibited_questions": score["prohibited"],
    }
    expected = oracle["results"][name]
    for year in YEARS:
        # what a scorer that does not split glued letters would report
        del expected[year]["prohibited_questions_without_splitting"]
    assert got == expected


@pytest.mark.parametrize("name", SETS)
def test_full_width_prohibited_letters_count(igakuqa, oracle, predictions, name):
    """Five prohibited letters are full-width in the published file; read as letters they catch five more picks."""
    score = score_of(igakuqa, igakuqa.items, predictions[name])
    more = {"chatgpt": {"2020": 1, "2021": 1, "2022": 1}, "translate_chatgpt-en": {"2018": 1, "2022": 1}}
    for year in YEARS:
        published = oracle["results"][name][year]["prohibited_questions"]
        assert score["by_exam"][year]["prohibited"] == published + more.get(name, {}).get(year, 0)


@pytest.mark.parametrize("name", SETS)
def test_official_verdicts(igakuqa, predictions, name):
    score = score_of(igakuqa, igakuqa.items, predictions[name])
    expected = "pass" if name in ("gpt4", "student-majority") else "fail"
    assert [score["by_exam"][year]["verdict"]["result"] for year in YEARS] == [expected] * 5
    if name == "chatgpt":
        assert score["by_exam"]["2018"]["verdict"] == {
            "result": "fail",
            "reasons": [
                "required 123 of 200 points, 160 needed",
                "general 143 of 299 points, 208 needed",
                "4 questions with a prohibited pick, at most 3 allowed",
            ],
            "required_min": 160,
            "general_min": 208,
            "prohibited_max": 3,
        }


def test_the_dataset_itself(igakuqa, oracle):
    for year in YEARS:
        items = [item for item in igakuqa.items if item.exam == year]
        score = aggregate(igakuqa, items, [judge_kasai(item, "") for item in items], resamples=10)["by_exam"][year]
        worth = [item.points for item in items]
        assert oracle["dataset"][year] == {
            "exam": int(year) - 1906,
            "questions": score["items"],
            "text_only": score["text_only"]["items"],
            "five_choice_text_only": sum(len(i.choices) == 5 and not i.needs_image for i in items),
            "multi_answer": sum(item.num_answers > 1 for item in items),
            "no_choices": sum(item.is_numeric for item in items),
            "points_total": score["points_total"],
            "required_total": score["required_total"],
            "general_total": score["general_total"],
            "with_prohibited_choice": sum(bool(item.prohibited) for item in items),
            "points_histogram": {str(p): worth.count(p) for p in sorted(set(worth))},
        }
    special = oracle["special_cases"]
    by_id = {item.id: item for item in igakuqa.items}
    assert [i.id for i in igakuqa.items if i.points == 0] == special["zero_points"]
    assert {i.id: i.answer[0] for i in igakuqa.items if i.is_numeric} == special["numeric_answers"]
    for entry in special["irregular_prohibited_strings"]:
        assert list(by_id[entry["problem_id"]].prohibited) == entry["split"]


@pytest.mark.parametrize(
    ("lost", "prohibited", "result", "reasons"),
    [
        ((0, 0), 3, "pass", []),
        ((0, 0), 4, "fail", ["4 questions with a prohibited pick, at most 3 allowed"]),
        ((1, 5), 0, "pass", []),
        ((2, 5), 0, "fail", ["required 3 of 5 points, 4 needed"]),
        ((1, 6), 0, "fail", ["general 14 of 20 points, 15 needed"]),
    ],
)
def test_the_official_rule_at_its_limits(lost, prohibited, result, reasons):
    """Required 80 % of 5, general 15 of 20, three questions with a prohibited pick pass and four do not."""
    verdict = verdict_of_small_exam(lost, prohibited)
    assert (verdict["result"], verdict["reasons"]) == (result, reasons)
    assert "open" not in verdict


def verdict_of_small_exam(lost, prohibited, unasked=(), way="asked"):
    """25 questions worth a point and four with prohibited picks worth none; unasked: ids, by the way given."""
    items = [Item(f"r{n}", "?", FIVE, ("a",), section="B", exam="2018") for n in range(5)]
    items += [Item(f"g{n}", "?", FIVE, ("a",), section="A", exam="2018") for n in range(20)]
    wrong = {f"r{n}" for n in range(lost[0])} | {f"g{n}" for n in range(lost[1])}
    # worth nothing, so that the points stay as they are
    items += [Item(f"w{n}", "?", FIVE, ("a",), points=0, section="A", exam="2018", prohibited=("e",)) for n in range(4)]
    wrong |= {f"w{n}" for n in range(prohibited)}
    task = LoadedTask(
        **{"name": "x", "language": "ja", "items": tuple(items), "fewshot": (), "pool_is_test": False, "digest": ""},
        **{"files": {}, "required_sections": ("B",), "cuts": {"2018": PassRule({"2018": 15}).cuts("2018", 5, 20)}},
        **{"prohibited_max": 3, "exam_sizes": {"2018": 29}, "dropped": {}, "note": ""},
    )
    verdicts = [judge(item, Prediction(item.id, ("e",) if item.id in wrong else ("a",))) for item in items]
    missing = Verdict(False, 0, False, False, asked=way != "asked", too_long=way == "too_long")
    verdicts = [missing if item.id in unasked else verdict for item, verdict in zip(items, verdicts, strict=True)]
    return aggregate(task, items, verdicts, resamples=10)["by_exam"]["2018"]["verdict"]


@pytest.mark.parametrize("way", ["asked", "too_long"])
@pytest.mark.parametrize(
    ("lost", "prohibited", "unasked", "result", "reasons"),
    [
        # required 4 are needed: 4 and one open, 3 and one open, 3 and none open, 2 and one open
        ((0, 0), 0, ["r4"], "pass", []),
        ((1, 0), 0, ["r4"], "incomplete", ["required 3 of 5 points, 4 needed, and questions worth 1 not asked"]),
        ((2, 0), 0, ["g19"], "fail", ["required 3 of 5 points, 4 needed"]),
        ((2, 0), 0, ["r4"], "fail", ["required 2 of 5 points, 4 needed"]),
        # general 15 are needed: 15 with five open, 14 and one open, 13 and one open, 13 and two open
        ((0, 0), 0, ["g15", "g16", "g17", "g18", "g19"], "pass", []),
        (
            (0, 5),
            0,
            ["g19"],
            "incomplete",
            ["general 14 of 20 points, 15 needed, and questions worth 1 not asked"],
        ),
        ((0, 6), 0, ["g19"], "fail", ["general 13 of 20 points, 15 needed"]),
        (
            (0, 5),
            0,
            ["g18", "g19"],
            "incomplete",
            ["general 13 of 20 points, 15 needed, and questions worth 2 not asked"],
        ),
        # a part that is lost decides, whatever the other could still become
        ((1, 7), 0, ["r4"], "fail", ["general 13 of 20 points, 15 needed"]),
        # four picks in all would be one too many
        ((0, 0), 2, ["w3"], "pass", []),
        (
            (0, 0),
            3,
            ["w3"],
            "incomplete",
            ["3 questions with a prohibited pick, at most 3 allowed, and 1 with such a choice not asked"],
        ),
        ((0, 0), 4, ["g19"], "fail", ["4 questions with a prohibited pick, at most 3 allowed"]),
    ],
)
def test_questions_that_were_not_asked_decide_nothing(lost, prohibited, unasked, result, reasons, way):
    verdict = verdict_of_small_exam(lost, prohibited, unasked, way)
    assert (verdict["result"], verdict["reasons"]) == (result, reasons)
    worth = {
        part: sum(name.startswith(letter) for name in unasked) for part, letter in (("required", "r"), ("general", "g"))
    }
    assert verdict["open"] == worth | {"prohibited": sum(name.startswith("w") for name in unasked)}


def test_a_part_of_an_exam_has_no_verdict(igakuqa):
    items = igakuqa.items[:50]
    score = aggregate(igakuqa, items, [judge_kasai(item, ",".join(item.answer)) for item in items], resamples=10)
    verdict = score["by_exam"]["2018"]["verdict"]
    assert (score["accuracy"], verdict["result"]) == (1.0, "incomplete")
    assert verdict["reasons"] == ["50 of the 400 questions were asked; the pass marks are for all of them"]


def test_tables_and_intervals(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"id": f"q{i}", "question": "?", "choices": list(FIVE), "answer": ["a"], "points": 2.5 if i % 2 else 1}
        | {"section": "required" if i < 4 else "general", "category": "xy"[i % 2], "prohibited": ["e"]}
        for i in range(8)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    task = load_task(str(path))
    picks = ["a", "a", "e", None, "a", "b", "e", "a"]
    verdicts = [
        judge(item, Prediction(item.id, None if pick is None else (pick,)))
        for item, pick in zip(task.items, picks, strict=True)
    ]
    score = aggregate(task, task.items, verdicts)
    assert (score["correct"], score["accuracy"], score["unparsed"]) == (4, 0.5, 1)
    assert (score["points"], score["points_total"], score["points_share"]) == (7.0, 14.0, 0.5)
    assert (score["required_points"], score["required_total"]) == (3.5, 7.0)
    assert (score["general_points"], score["general_total"]) == (3.5, 7.0)
    assert (score["prohibited"], score["prohibited_ids"]) == (2, ["q2", "q6"])
    assert score["by_category"]["y"]["correct"] == 2
    assert score["by_section"]["general"]["points"] == 3.5
    assert score["by_exam"]["own"]["verdict"]["result"] == "none"
    oracle = binomtest(4, 8).proportion_ci(method="wilson")
    assert score["accuracy_interval"] == pytest.approx([oracle.low, oracle.high], abs=1e-12)
    assert json.loads(json.dumps(score)) == score
    with pytest.raises(ValueError, match="got 8 items and 7 verdicts"):
        aggregate(task, task.items, verdicts[:7])


def test_nothing_is_guessed_where_there_are_no_choices():
    for kind, answer in (("entities", ("a",)), ("similarity", ("1",)), ("text", ("a",)), ("number", ("1",))):
        assert chance(Item("x", "?", (), answer, kind=kind)) == 0


def test_what_no_model_has_seen_is_not_graded():
    items = [Item(f"q{n}", "?", FIVE, ("a",), category="xy"[n % 2], exam="2018") for n in range(4)]
    task = LoadedTask(
        **{"name": "x", "language": "ja", "items": tuple(items), "fewshot": (), "pool_is_test": False, "digest": ""},
        **{"files": {}, "required_sections": (), "cuts": {}, "prohibited_max": 0, "exam_sizes": {"2018": 4}},
        **{"dropped": {}, "note": ""},
    )
    long = Verdict(False, 0, False, False, too_long=True)
    unasked, wrong = replace(long, too_long=False, asked=False), replace(long, too_long=False)
    score = aggregate(task, items, [long, long, unasked, long], resamples=10)
    for entry in (score, score["by_exam"]["2018"]):
        assert entry["not_graded"] == "not asked 1/4, too long 3/4"
        shares = ("accuracy", "accuracy_interval", "points_share", "points_share_interval")
        assert [entry[key] for key in shares] == [None] * 4
        assert (entry["correct"], entry["points"], entry["points_total"]) == (0, 0, 4)
    # one that was seen is enough for a score, of the set and of its category
    score = aggregate(task, items, [long, long, wrong, long], resamples=10)
    assert "not_graded" not in score
    # Wilson's, as nothing is right: z^2 / (4 + z^2)
    assert (score["accuracy"], score["accuracy_interval"]) == (0, pytest.approx([0, 0.48990], abs=1e-5))
    assert {name: part["accuracy"] for name, part in score["by_category"].items()} == {"x": 0, "y": None}
