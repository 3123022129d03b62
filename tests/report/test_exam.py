"""The report of a run: every number in the page and the figure comes from the dict, and nothing in it can act."""

import json
import re
from xml.etree import ElementTree

import pytest
from report_pages import FAIL, SVG, cells, evaluation, numbers, page, results, score, total

from medjax.data.exams.tasks import load_task
from medjax.eval.scoring import aggregate, judge_kasai
from medjax.report.comparison import _answer
from medjax.report.exam import exam_report, wilson_interval
from medjax.report.exam_figure import summary_figure
from medjax.report.table import display_width

HOSTILE = "</pre></style></title><script>alert('x')</script><img src=x onerror=\"y()\"> & {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def igakuqa(shared_data):
    """Real scores: the predictions that IgakuQA ships for two models."""
    task, found = load_task("igakuqa", data_dir=shared_data), []
    for name in ("gpt4", "chatgpt"):
        paths = sorted((shared_data / "igakuqa" / "baseline_results").glob(f"*/???-?_{name}.jsonl"))
        rows = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
        texts = {row["problem_id"]: row["prediction"] for row in rows}
        verdicts = [judge_kasai(item, texts[item.id]) for item in task.items]
        scores = aggregate(task, task.items, verdicts, resamples=200)
        found.append(evaluation(scores=scores, id=name, task="igakuqa", protocol=f"kasai-3shot-{name}"))
    return results(*found)


def assert_row(row, expected):
    """A row of the summary or of the exams against the scores it shows."""
    _, items, accuracy, _, points, required, general, prohibited, unparsed, _ = row
    low, high = expected["accuracy_interval"]
    assert numbers(items) == [expected["items"]]
    assert numbers(accuracy) == [round(100 * share, 1) for share in (expected["accuracy"], low, high)]
    share = round(100 * expected["points_share"], 1)
    assert numbers(points) == [expected["points"], expected["points_total"], share]
    cut = expected.get("verdict", {})
    for text, name in ((required, "required"), (general, "general")):
        needed = [cut[f"{name}_min"]] if f"{name}_min" in cut else []
        assert numbers(text) == [expected[f"{name}_points"], expected[f"{name}_total"], *needed]
    assert (numbers(prohibited), numbers(unparsed)) == ([expected["prohibited"]], [expected["unparsed"]])


@pytest.mark.parametrize(
    ("correct", "items", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(correct, items, low, high):
    assert [round(bound, 4) for bound in wilson_interval(correct, items)] == [low, high]


def test_wilson_interval_solves_its_equation():
    for correct, items in ((1, 2), (3, 7), (99, 100), (1080, 2000)):
        for bound in wilson_interval(correct, items):
            z_squared = (correct / items - bound) ** 2 / (bound * (1 - bound) / items)
            assert z_squared == pytest.approx(3.841458820694124, rel=1e-9)
    assert wilson_interval(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match="got 0 of 0 items, expected"):
        wilson_interval(0, 0)


def test_summary_of_real_scores(igakuqa):
    entries = igakuqa["medjax"]["evaluations"]
    rows = cells(page(igakuqa).one("table", id="summary"))
    assert len(rows) == 2
    for row, entry in zip(rows, entries, strict=True):
        assert row[0] == f"igakuqa · ja {entry['protocol']}"
        assert_row(row, entry["scores"])
    assert [row[-1] for row in rows] == ["5 of 5 passed", "0 of 5 passed"]
    assert numbers(rows[0][4])[:2] == [1944, 2485]  # 388.8 points an exam


def test_every_exam_of_real_scores(igakuqa):
    root = page(igakuqa)
    for entry, section in zip(igakuqa["medjax"]["evaluations"], root.all("section", class_="evaluation"), strict=True):
        by_exam = entry["scores"]["by_exam"]
        rows = cells(section.one("table", class_="exams"))
        exams = [row for row in rows if len(row) == 10]
        assert [row[0] for row in exams] == list(by_exam) == ["2018", "2019", "2020", "2021", "2022"]
        for row, expected in zip(exams, by_exam.values(), strict=True):
            assert_row(row, expected)
            assert row[-1] == expected["verdict"]["result"]
        reasons = [[("; ").join(e["verdict"]["reasons"])] for e in by_exam.values() if e["verdict"]["reasons"]]
        assert [row for row in rows if len(row) == 1] == reasons


def test_breakdowns_of_real_scores(igakuqa):
    root = page(igakuqa)
    for entry, section in zip(igakuqa["medjax"]["evaluations"], root.all("section", class_="evaluation"), strict=True):
        by_section, *by_category = (cells(table) for table in section.all("table", class_="bars"))
        assert [len(rows) for rows in by_category] == [14, 14]
        shown = {"by_section": by_section, "by_category": by_category[0] + by_category[1]}
        for key, rows in shown.items():
            parts = entry["scores"][key]
            assert {row[0] for row in rows} == set(parts)
            for label, right, _, accuracy, interval in rows:
                correct, items = parts[label]["correct"], parts[label]["items"]
                assert numbers(right) == [correct, items]
                assert numbers(accuracy) == [round(100 * correct / items, 1)]
                assert numbers(interval) == [round(100 * bound, 1) for bound in wilson_interval(correct, items)]
        sizes = [numbers(row[1])[1] for row in shown["by_category"]]
        assert sizes == sorted(sizes, reverse=True)


def test_bars_and_intervals_stand_where_their_numbers_are():
    rows = page(results()).all("table", class_="bars")[-1].one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == ["循環器", "神経", "免疫"]
    assert {row.one("th").attributes["lang"] for row in rows} == {"ja"}
    for row, (correct, items) in zip(rows, [(2, 8), (4, 8), (0, 1)], strict=True):
        low, high = (f"{100 * bound:.2f}%" for bound in wilson_interval(correct, items))
        assert row.one("rect").attributes["width"] == f"{100 * correct / items:.2f}%"
        span = row.one("line", class_="interval").attributes
        assert (span["x1"], span["x2"]) == (low, high)
        assert [cap.attributes["x1"] for cap in row.all("line", class_="cap")] == [low, high]
        assert row.one("line", class_="chance").attributes["x1"] == "17.00%"


def test_summary_plot_stands_where_its_numbers_are():
    plot = page(results()).one("table", id="summary").one("svg", class_="plot")
    assert plot.one("circle").attributes["cx"] == "38.33%"
    span = plot.one("line", class_="interval").attributes
    assert (span["x1"], span["x2"]) == ("30.00%", "47.50%")
    assert [line.attributes["x1"] for line in plot.all("line", class_="grid")] == ["0%", "25%", "50%", "75%", "100%"]
    assert numbers(plot.attributes["aria-label"]) == [38.3, 95, 30.0, 47.5, 17.0]


def test_one_exam_shows_its_cuts_and_reasons_in_the_summary():
    root = page(results())
    row, reasons = cells(root.one("table", id="summary"))
    assert_row(row, {**score(), "verdict": FAIL})
    assert row[-1] == "fail"
    assert reasons == ["required 30 of 72 points, 58 needed; general 27.5 of 72 points, 51 needed"]
    assert root.all("table", class_="exams") == []


@pytest.mark.parametrize(
    ("verdicts", "label", "reasons"),
    [
        (["pass"], "pass", []),
        (["incomplete"], "incomplete", [["because"]]),
        (["none"], "no pass mark", []),
        ([], "no pass mark", []),
        (["pass", "fail", "pass"], "2 of 3 passed", []),
        (["pass", "incomplete", "incomplete"], "1 of 3 passed", [["2 incomplete"]]),
    ],
)
def test_verdict_of_an_evaluation(verdicts, label, reasons):
    by_exam = {
        str(year): score(verdict={"result": result, "reasons": ["because"] if result != "pass" else []})
        for year, result in enumerate(verdicts, start=2018)
    }
    row, *below = cells(page(results(evaluation(scores=score(by_exam=by_exam)))).one("table", id="summary"))
    assert (row[-1], below) == (label, reasons)


def test_normalisations_and_remarks():
    shares = {"sum": 46 / 120, "token": 0.35, "byte": 0.25, "character": 30 / 120}
    scores = score(by_exam={}, withdrawn=2, text_only=total(20, 50))
    made = evaluation(scores=scores | {"not_asked": 8}, limit=120, normalised=shares, truncated=4)
    section = page(results(made)).one("section", class_="evaluation")
    _, table, _ = section.all("table", class_="bars")
    assert [(row[0], numbers(row[1]), numbers(row[3])) for row in cells(table)] == [
        ("sum", [46, 120], [38.3]),
        ("per token", [42, 120], [35.0]),
        ("per byte", [30, 120], [25.0]),
        ("per character", [30, 120], [25.0]),
    ]
    assert section.one("p", class_="remarks").text == (
        "46 of 120 questions right; 17.0 % expected by guessing; limited to 120 questions; "
        "8 questions without choices not asked (not right in the accuracy); "
        "4 answers truncated at the limit of new tokens; 20 of the 50 without an image "
        "right (40.0 %); 2 withdrawn questions in the accuracy, not in the points; "
        "1,234,567 tokens computed, 75.3 % saved by sharing."
    )


def test_no_column_for_sections_that_no_evaluation_has():
    scores = {key: value for key, value in score(by_exam={}).items() if not key.startswith(("required", "general"))}
    (row,) = cells(page(results(evaluation(scores=scores))).one("table", id="summary"))
    assert row[4:] == ["57.5 / 144 39.9 %", "2", "3", "no pass mark"]


def _facts(root):
    head = root.one("dl", class_="facts")
    return dict(zip([n.text for n in head.all("dt")], [n.text for n in head.all("dd")], strict=True))


def test_head_of_the_page():
    root = page(results())
    assert root.one("h1").text == "SmolLM2-135M-Instruct"
    assert root.one("p", class_="eyebrow").text == "Exam report · 2025-11-21 20:13 UTC"
    facts = _facts(root)
    assert facts == {
        **{"Parameters": "134.5 M", "Computed in": "float32", "Devices": "8 x cpu", "medjax": "0.1.0"},
        "Wall time": "1 h 2 min",
    }
    assert root.one("pre", class_="command").text == "python -m medjax.eval --tasks mini"
    changed = [evaluation(n, data={"unpinned": names}) for n, names in enumerate((["a.csv"], ["b.csv", "a.csv"]))]
    root = page(results(*changed))
    facts = _facts(root)
    assert facts["Data differ from the published files"] == "a.csv, b.csv"


def test_record_holds_every_leaf():
    made = results(evaluation(future={"key": [1, 2]}), other={"deep": {"deeper": 0.5}})
    run, entry = (cells(table) for table in page(made).all("table", class_="record"))

    def leaves(value, path=""):
        if isinstance(value, dict) and value:
            return [leaf for key in value for leaf in leaves(value[key], f"{path}.{key}".lstrip("."))]
        return [[path, ", ".join(map(str, value)) if isinstance(value, list) else str(value or "none")]]

    record = made["medjax"]
    assert run == leaves({key: value for key, value in record.items() if key != "evaluations"})
    assert entry == leaves({key: value for key, value in record["evaluations"][0].items() if key != "scores"})
    assert ["other.deep.deeper", "0.5"] in run
    assert ["future.key", "1, 2"] in entry


def example(picked, answer=("a", "c"), **more):
    item = {"id": "q1", "question": "どれか。", "choices": ["一", "二", "三", ""], "answer": list(answer)}
    outcome = "unparsed" if picked is None else "right" if set(picked) == set(answer) else "wrong"
    item |= more.pop("item", {})
    return {"evaluation": "mini_ja_strict-0shot", "item": item, "picked": picked, "text": "", "outcome": outcome} | more


def test_examples():
    shown = [
        example(["c", "a"]),
        example(["b", "a"], item={"prohibited": ["b"]}),
        example(None, text="一行目\n二行目"),
        example(["12"], ["7.20"], item={"choices": [], "context": "表"}),
        example(None, outcome="not_asked"),
        example(["輸液"], [], item={"choices": []}, outcome="no_reference"),
    ]
    first, second, third, fourth, fifth, sixth = page(results(examples=shown)).all("article")

    def marks(article):
        return [[span.text for span in row.all("span")] for row in article.all("li")]

    assert marks(first) == [
        ["a", "一", "✓ correct · picked"],
        ["b", "二", ""],
        ["c", "三", "✓ correct · picked"],
        ["d", "(blank)", ""],
    ]
    assert [row[2] for row in marks(second)] == ["✓ correct · picked", "prohibited · picked", "✓ correct", ""]
    assert [a.one("span", class_="tag").text for a in (first, second, third, fourth, fifth, sixth)] == [
        *("right", "wrong", "unparsed", "wrong", "not asked", "for people to judge"),
    ]
    assert third.one("span", class_="read-answer").text == "nothing that could be read"
    assert third.one("pre").children == ["一行目\n二行目"]
    assert (marks(fourth), fourth.one("span", class_="gold-answer").text) == ([], "7.20")
    assert (fourth.one("span", class_="read-answer").text, fourth.one("p", class_="muted").text) == ("12", "表")


def test_at_most_twelve_examples():
    section = page(results(examples=[example(["a"], item={"id": f"q{i}"}) for i in range(20)])).one(
        "section", id="examples"
    )
    ids = [article.one("header").all("span")[0].text.split()[0] for article in section.all("article")]
    assert ids == [f"q{i}" for i in range(12)]
    assert section.all("p")[0].text == "The first 12 of 20 given."


def test_hostile_text_stays_text():
    by_category = {HOSTILE: total(1, 2)}
    scores = score(by_category=by_category, by_exam={HOSTILE: score(verdict={"result": "fail", "reasons": [HOSTILE]})})
    made = results(
        evaluation(scores=scores, task=HOSTILE, protocol=HOSTILE, data={"note": HOSTILE}),
        examples=[example(["a"], text=HOSTILE, item={"question": HOSTILE, "choices": [HOSTILE], "id": HOSTILE})],
        command=HOSTILE,
    )
    made["medjax"]["model"]["name"] = HOSTILE
    root = page(made)
    assert root.all("script") + root.all("img") == []
    assert not [node for node in root.all("*") if any(name.startswith("on") for name in node.attributes)]
    flat = " ".join(HOSTILE.split())
    assert root.one("h1").text == flat
    assert root.one("article").one("pre").children == [HOSTILE]
    assert root.one("table", id="summary").one("tr", class_="reasons").text == flat
    assert flat in root.one("title").text
    figure = ElementTree.fromstring(summary_figure(made))
    assert figure.find(f"{SVG}title").text == f"Scores of {HOSTILE}"
    assert {node.tag.removeprefix(SVG) for node in figure.iter()} <= {"svg", "title", "rect", "text", "line", "circle"}


def test_page_asks_for_nothing_from_outside():
    root = page(results(evaluation(), evaluation(3), examples=[example(["a"])]))
    ids = {node.attributes["id"] for node in root.all("*") if "id" in node.attributes}
    for node in root.all("*"):
        assert "src" not in node.attributes
        assert node.attributes.get("href", "#summary").removeprefix("#") in ids
    style = root.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    policy = root.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert root.one("html").attributes["lang"] == "en"


def test_breakdowns_fold_when_there_are_many():
    for count, folded in ((4, 0), (5, 5)):
        root = page(results(*(evaluation(number) for number in range(count))))
        assert [len(s.all("details")) for s in root.all("section", class_="evaluation")] == [folded // count] * count
        assert len(root.all("table", class_="bars")) == 2 * count


def test_figure_maps_values_to_its_axis(igakuqa):
    made = results(evaluation(), *igakuqa["medjax"]["evaluations"])
    figure = ElementTree.fromstring(summary_figure(made))
    width, height = float(figure.get("width")), float(figure.get("height"))
    assert figure.get("viewBox") == f"0 0 {width:g} {height:g}"
    ground = figure.find(f"{SVG}rect")
    assert [ground.get(key) for key in ("width", "height", "fill")] == [f"{width:g}", f"{height:g}", "#ffffff"]
    texts = figure.findall(f"{SVG}text")
    ticks = {t.text: float(t.get("x")) for t in texts if re.fullmatch(r"\d+ %", t.text)}
    left, right = ticks["0 %"], ticks["100 %"]
    assert ticks == {f"{share} %": pytest.approx(left + share / 100 * (right - left)) for share in (0, 25, 50, 75, 100)}
    lines = figure.findall(f"{SVG}line")
    thick = [line for line in lines if line.get("stroke-width") == "3"]
    dashed = [line for line in lines if line.get("stroke-dasharray")]
    rows = zip(made["medjax"]["evaluations"], figure.findall(f"{SVG}circle"), thick, dashed, strict=True)
    heights = []
    for entry, dot, span, chance in rows:
        scores = entry["scores"]
        at = [float(value) for value in (dot.get("cx"), span.get("x1"), span.get("x2"), chance.get("x1"))]
        shares = [scores["accuracy"], *scores["accuracy_interval"], scores["chance"]["accuracy"]]
        assert at == [pytest.approx(left + share * (right - left), abs=0.01) for share in shares]
        assert float(span.get("y1")) == float(span.get("y2")) == float(dot.get("cy"))
        heights.append(float(dot.get("cy")))
    assert heights[1] - heights[0] == heights[2] - heights[1] > 30
    verdicts = [t.text for t in texts if t.text in ("fail", "5 of 5 passed", "0 of 5 passed")]
    assert verdicts == ["fail", "5 of 5 passed", "0 of 5 passed"]
    assert [t.text for t in texts if t.text.startswith("76.7")] == ["76.7\u00a0%"]


def test_labels_of_the_figure_stop_before_the_axis():
    name = "厚生労働省医師国家試験" * 5
    figure = ElementTree.fromstring(summary_figure(results(evaluation(task=name, protocol="x" * 90))))
    texts = figure.findall(f"{SVG}text")
    left = min(float(t.get("x")) for t in texts if t.text == "0 %")
    (label,) = (t.text for t in texts if t.text.startswith("厚"))
    assert label == "厚生労働省医師国家試験厚生労働省医…"
    assert display_width(label) <= 36
    assert left > 24 + 14 * 0.5 * 36  # a wide character is as wide as the font size
    (remark,) = (t.text for t in texts if t.text.startswith("120 items"))
    assert remark == "120 items · " + "x" * 27 + "…"


def test_incomplete_results_are_refused():
    with pytest.raises(ValueError, match="results: got the keys config, expected 'medjax'"):
        exam_report({"config": {}})
    broken = evaluation()
    del broken["protocol"], broken["scores"]
    with pytest.raises(ValueError, match=r"medjax.evaluations\[1\]: got no protocol, scores, expected id, task"):
        summary_figure(results(evaluation(), broken))


def test_truncated_answers_and_those_cut_off_are_told_apart():
    made = evaluation(scores=score(by_exam={}, cut_off=1), truncated=4)
    remarks = page(results(made)).one("p", class_="remarks").text
    assert "4 answers truncated at the limit of new tokens, 1 of them unread (cut off); " in remarks
    read = [_answer({"picked": picked, "truncated": cut}, "A")["read"] for picked in (None, ["a"]) for cut in (1, 0)]
    assert read == ["nothing that could be read (cut off)", "nothing that could be read", "a (truncated)", "a"]


def test_one_question_is_not_questions():
    one = score(1, 1, (0.2, 1.0), by_exam={}, **{"withdrawn": 1, "not_asked": 1, "too_long": 1, "no_reference": 0})
    made = evaluation(scores=one, limit=1, truncated=1, forced=1)
    root = page(results(made))
    remarks = root.one("p", class_="remarks").text
    for said in (
        *("1 of 1 question right;", "limited to 1 question;", "1 question without choices not asked (not right in the"),
        *("1 question longer than the model's context, not sent (no points, not right);", "1 answer truncated at"),
        *("1 withdrawn question in the accuracy, not in the points;", "1 answer forced after reasoning"),
    ):
        assert said in remarks
    judged = evaluation(scores=one | {"no_reference": 1, "accuracy": None, "accuracy_interval": None}, headline=[])
    assert "1 open question without a reference answer" in page(results(judged)).one("p", class_="judge").text
    assert "1 item · strict-0shot" in summary_figure(results(made))
