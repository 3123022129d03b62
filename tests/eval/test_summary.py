"""What a finished run prints: counts of answers that could not be read, and what to do about it."""

import pytest

from medjax.eval.summary import print_comparisons, print_summary
from medjax.report.table import display_width


def _results(*, unparsed=0, truncated=0, cut_off=0, no_reference=0, unpinned=()):
    scores = {
        **{"items": 100, "accuracy": 0.25, "accuracy_interval": [0.2, 0.3], "chance": {"accuracy": 0.2}},
        **{"points": 30, "points_total": 120, "unparsed": unparsed, "prohibited": 3, "by_exam": {}},
        **{"not_asked": 0, "too_long": 0, "cut_off": cut_off, "no_reference": no_reference},
        "outcomes": {
            **{"right": 25, "wrong": 75 - unparsed - cut_off - no_reference, "unparsed": unparsed, "cut_off": cut_off},
            **{"not_asked": 0, "too_long": 0, "no_reference": no_reference},
        },
    }
    evaluation = {
        **{"id": "exam_en_strict-0shot", "task": "exam", "language": "en", "protocol": "strict-0shot"},
        **{"n_items": 100, "limit": None, "scores": scores, "truncated": truncated},
        "data": {"unpinned": list(unpinned)},
        "work": {"tokens_computed": 1200, "tokens_saved": 800},
    }
    record = {
        **{"evaluations": [evaluation], "compiled_seconds": {}, "wall_seconds": 7.0, "folder": "runs/eval/x"},
        **{"model": {"name": "smollm2-135m"}, "command": "python -m medjax.eval"},
    }
    return {"max_length": 8192, "medjax": record}


def _lines(capsys, **counts):
    print_summary(_results(**counts))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, []),
        (1, ["1 item of the set is left out, as the protocol cannot ask it; it counts in no figure"]),
        (2, ["2 items of the set are left out, as the protocol cannot ask them; they count in no figure"]),
    ],
)
def test_what_the_protocol_leaves_out_is_said(capsys, count, said):
    results = _results()
    results["medjax"]["evaluations"][0]["data"]["left_out_by_protocol"] = count
    print_summary(results)
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert lines == [f"exam_en_strict-0shot: {line} (docs/protocols.md says which)" for line in said]


def test_answers_cut_off_stand_beside_unparsed_ones(capsys):
    lines = _lines(capsys, unparsed=4, truncated=41, cut_off=5)
    (head,), (row,) = ([line for line in lines if line.startswith(start)] for start in ("set ", "exam (en)"))
    cells = [[cell.strip() for cell in line.split("│")] for line in (head, row)]
    # 41 were cut off, of which 36 could be read; nothing is counted twice
    assert dict(zip(*(line[-5:] for line in cells), strict=True)) == {
        **{"right": "25", "wrong": "66", "unparsed": "4", "cut off": "5"},
        "prohibited": "3",
    }


def test_one_answer_is_not_answers(capsys):
    results = _results(cut_off=1)
    results["medjax"]["evaluations"][0]["n_items"] = 10
    print_summary(results)
    printed = capsys.readouterr().out
    assert "exam_en_strict-0shot: 1 answer was cut off (truncated at the limit of new tokens" in printed
    assert "could be read): small models often write prose instead of letters alone; give one that reasons" in printed


@pytest.mark.parametrize(("cut_off", "shown"), [(5, []), (6, ["6"])])
def test_more_than_one_in_twenty_cut_off_and_unread_is_worth_a_hint(capsys, cut_off, shown):
    hints = [line for line in _lines(capsys, unparsed=4, truncated=41, cut_off=cut_off) if "--max-new-tokens" in line]
    assert [line.split()[1] for line in hints] == shown
    assert all(line.startswith("exam_en_strict-0shot: ") for line in hints)


def test_open_questions_without_a_reference_are_for_people_to_judge(capsys):
    assert not [line for line in _lines(capsys) if "reference" in line]
    (line,) = [line for line in _lines(capsys, no_reference=25) if "reference" in line]
    assert line.startswith("exam_en_strict-0shot: 25 open questions have no reference answer and no part in")
    (head,), (row,) = (
        [line for line in _lines(capsys, no_reference=25) if line.startswith(start)] for start in ("set ", "exam (en)")
    )
    cells = [[cell.strip() for cell in line.split("│")] for line in (head, row)]
    shown = dict(zip(*cells, strict=True))
    assert (shown["wrong"], shown["to judge"]) == ("50", "25")


def _table(lines, column):
    """Rows of the table that has this column, each by its header."""
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    start = next(number for number, row in enumerate(cells) if column in row)
    end = next((n for n in range(start + 2, len(cells)) if len(cells[n]) < len(cells[start])), len(cells))
    return [dict(zip(cells[start], row, strict=True)) for row in cells[start + 2 : end]]


def _exam(result, reasons=(), points=(5, 7), prohibited=1, left=None, whole=True):
    """An entry of by_exam; left: points of both parts and prohibited picks that are open."""
    verdict = {"result": result, "reasons": list(reasons)}
    verdict |= {"required_min": 8, "general_min": 6.5, "prohibited_max": 3} if result != "none" else {}
    if left:
        verdict["open"] = dict(zip(("required", "general", "prohibited"), left, strict=True))
    won = {"required_points": points[0], "general_points": points[1], "prohibited": prohibited}
    return {"verdict": verdict, "required_total": 10, "general_total": 9, **won}


def test_every_exam_with_pass_marks_has_a_verdict(capsys):
    results = _results()
    part = "4 of the 400 questions were asked; the pass marks are for all of them"
    results["medjax"]["evaluations"][0]["scores"]["by_exam"] = {
        "2018": _exam("pass", points=(9, 7.5)),
        "2019": _exam("fail", ["required 5 of 10 points, 8 needed"]),
        **{year: _exam("incomplete", [part], points=(1, 0), prohibited=0) for year in ("2020", "2021")},
        "mine": _exam("none", ["no pass mark is known"]),
    }
    print_summary(results)
    lines = capsys.readouterr().out.splitlines()
    names = "exam", "verdict", "required (needed)", "general (needed)", "prohibited (most)"
    assert _table(lines, "verdict") == [
        dict(zip(names, row, strict=True))
        for row in (
            ("2018", "pass", "9 / 10 (8)", "7.5 / 9 (6.5)", "1 (3)"),
            ("2019", "fail", "5 / 10 (8)", "7 / 9 (6.5)", "1 (3)"),
            # the pass marks are for whole exams
            ("2020", "incomplete", "1 / 10", "0 / 9", "0"),
            ("2021", "incomplete", "1 / 10", "0 / 9", "0"),
        )
    ]
    # each once, not in every row
    assert [line for line in lines if "400" in line] == [f"incomplete: {part}"]
    assert not [line for line in lines if line.startswith("+")]
    assert [line for line in lines if "strict-0shot" in line] == [
        "protocol strict-0shot",
        "set exam (en), protocol strict-0shot",
    ]


def test_what_is_open_in_an_exam_stands_beside_its_points(capsys):
    results = _results()
    reasons = ["required 5 of 10 points, 8 needed, and questions worth 4 not asked"]
    results["medjax"]["evaluations"][0]["scores"]["by_exam"] = {"2022": _exam("incomplete", reasons, left=(4, 0, 2))}
    print_summary(results)
    lines = capsys.readouterr().out.splitlines()
    (row,) = _table(lines, "verdict")
    assert list(row.values())[2:] == ["incomplete", "5 +4 / 10 (8)", "7 / 9 (6.5)", "1 +2 (3)"]
    assert "+: worth of questions not asked or too long; a fail stands even with all of them right." in lines
    assert not [line for line in lines if line.startswith("incomplete")]


def test_reasons_of_several_exams_name_them(capsys):
    results = _results()
    exams = {"2020": _exam("incomplete", ["4 of 400"]), "2021": _exam("incomplete", ["5 of 400"])}
    results["medjax"]["evaluations"][0]["scores"]["by_exam"] = exams
    print_summary(results)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if " of 400" in line] == [
        "exam (en) strict-0shot 2020: 4 of 400",
        "exam (en) strict-0shot 2021: 5 of 400",
    ]


def test_what_all_rows_share_is_said_once_and_columns_without_news_are_left_out(capsys):
    results = _results()
    (entry,) = results["medjax"]["evaluations"]
    entry["scores"]["prohibited"] = 0
    other = entry | {"protocol": "choice-logprob-0shot", "id": "exam_en_choice-logprob-0shot"}
    results["medjax"]["evaluations"] = [entry, other]
    print_summary(results)
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("protocol"))
    assert lines[head - 1] == "set exam (en), items 100, chance 20.0%"
    heads = ["protocol", "accuracy (95 %)", "points", "right", "wrong", "unparsed", "cut off"]
    assert [cell.strip() for cell in lines[head].split("│")] == heads
    assert [line.split("│")[0].strip() for line in lines[head + 2 : head + 4]] == [
        "strict-0shot",
        "choice-logprob-0shot",
    ]
    assert "25.0% (20.0 to 30.0)" in lines[head + 2]
    # where choices are scored nothing can be unparsed
    results["medjax"]["evaluations"] = [other]
    print_summary(results)
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("set "))
    assert lines[head - 1] == "protocol choice-logprob-0shot"
    heads = ["set", "items", "accuracy (95 %)", "chance", "points", "right", "wrong"]
    assert [cell.strip() for cell in lines[head].split("│")] == heads


@pytest.mark.parametrize("rows", [1, 2])
def test_ordinary_runs_fit_a_terminal(capsys, rows):
    """An exam of the ministry, all columns that may come, under one protocol and under two."""
    results = _results()
    (entry,) = results["medjax"]["evaluations"]
    entry |= {"task": "igakuqa", "language": "ja"}
    entry["scores"] |= {"accuracy_interval": [0.201, 0.333], "points": 1222, "points_total": 2494}
    entry["scores"]["outcomes"] |= {"not_asked": 3, "too_long": 3 if rows == 1 else 0}
    entry["scores"]["by_exam"] = {"2022": _exam("incomplete", points=(155, 177), left=(135, 190, 20))}
    names = ("choice-logprob-3shot", "strict-3shot")[:rows]
    results["medjax"]["evaluations"] = [entry | {"protocol": name} for name in names]
    print_summary(results)
    tables = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert max(map(display_width, tables)) <= 120


def test_without_pass_marks_there_is_no_table_of_verdicts(capsys):
    assert not [line for line in _lines(capsys) if "verdict" in line]


def test_what_no_model_has_seen_has_no_score(capsys):
    results = _results()
    (entry,) = results["medjax"]["evaluations"]
    none = {"accuracy": None, "accuracy_interval": None, "not_graded": "too long 100/100", "points": 0, "too_long": 100}
    entry["scores"] |= none | {"outcomes": dict.fromkeys(entry["scores"]["outcomes"], 0) | {"too_long": 100}}
    print_summary(results)
    lines = capsys.readouterr().out.splitlines()
    (row,) = _table(lines, "accuracy (95 %)")
    assert (row["accuracy (95 %)"], row["points"]) == ("not graded", "– / 120")
    assert (row["right"], row["too long"]) == ("0", "100")
    (told,) = [line for line in lines if line.startswith("exam_en_strict-0shot: 100 items are longer")]
    assert "and not sent; there is no score; ask with fewer examples" in told


def test_figures_stand_beside_what_could_not_be_read(capsys):
    def graded(value, **counts):
        found = {"value": value, "interval": value and [0.1, 0.3], "items": 9, "chance": 0.0}
        return found | {"unparsed": 0, "cut_off": 0, "too_long": 0} | counts

    results = _results()
    (entry,) = results["medjax"]["evaluations"]
    columns = ["set", "graded by", "items", "value (95 %)", "chance", "unparsed"]
    entry["metrics"] = {"kappa": graded(0.2, unparsed=4)}
    print_summary(results)
    (row,) = _table(capsys.readouterr().out.splitlines(), "graded by")
    assert list(row) == columns  # no columns of zeros
    assert (row["value (95 %)"], row["unparsed"]) == ("0.200 (0.100 to 0.300)", "4")
    entry["metrics"] |= {"f1_macro": graded(0.2, cut_off=3), "pearson": graded(None)}
    entry["metrics"]["bleu"] = graded(None, too_long=9, not_graded="too long 9/9")
    print_summary(results)
    rows = {row["graded by"]: row for row in _table(capsys.readouterr().out.splitlines(), "graded by")}
    assert list(rows["kappa"]) == [*columns, "cut off", "too long"]
    assert [(row["cut off"], row["too long"]) for row in rows.values()] == [
        ("0", "0"),
        ("3", "0"),
        ("0", "0"),
        ("0", "9"),
    ]
    shown = [row["value (95 %)"] for row in rows.values()]
    assert shown[2:] == ["undefined", "not graded: too long 9/9"]


def test_sets_without_right_answers_are_compared_by_their_figure_alone(capsys):
    metric = {"metric": "mae", "items": 9, "first": 1.25, "second": None, "difference": None, "p_value": None}
    metric |= {"difference_interval": None, "higher_is_better": False}
    place = {"task": "exam", "language": "en", "protocol": "strict-0shot", "has_answers": False}
    print_comparisons([place | {"metrics": [metric]}], ("base", "adapter"))
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("exam (en)")]
    assert [cell.strip() for cell in row.split("│")][1:] == [
        *("mae, lower is better", "9", "1.250", "undefined", "undefined", "undefined"),
    ]
    assert not [line for line in lines if "percentage points" in line]
    print_comparisons([place | {"metrics": []}], ("base", "adapter"))
    assert capsys.readouterr().out.startswith("No question has a known right answer to compare by: people have to")


def test_two_languages_are_told_by_what_the_set_is_graded_by(capsys):
    metric = {"metric": "kappa", "items": 9, "first": 0.5, "second": 0.5, "difference": 0.0, "p_value": 1.0}
    metric |= {"difference_interval": None, "no_interval": "the same on every resample", "higher_is_better": True}
    results = _results()
    entry = {"task": "exam", "protocol": "strict-0shot", "first": "ja", "second": "en", "has_answers": False}
    results["medjax"]["languages"] = [entry | {"metrics": [metric]}]
    print_summary(results)
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("exam (ja / en)")]
    assert [cell.strip() for cell in row.split("│")][1:] == [
        *("kappa", "9", "0.500", "0.500", "+0.000 (no interval: the same on every resample)", "1"),
    ]
    assert not [line for line in lines if "both right" in line]


def test_changed_data_are_named(capsys):
    assert not [line for line in _lines(capsys) if "differ" in line]
    assert "data differ from the published files: set/a.jsonl, set/b.jsonl" in _lines(
        capsys, unpinned=("set/a.jsonl", "set/b.jsonl")
    )


def test_the_next_step_after_a_whole_run_is_a_comparison_with_tables_of_questions(capsys):
    (line,) = [line for line in _lines(capsys) if line.startswith("next ")]
    assert line.endswith("then python -m medjax.eval compare runs/eval/x <its folder>")


@pytest.mark.parametrize(
    ("counts", "command", "told"),
    [
        (
            {"too_long": 97, "not_asked": 3},
            "python -m medjax.eval --tasks x --num-fewshot 3 --limit 100",
            "python -m medjax.eval --tasks x --limit 100  (without examples: questions are too long with them)",
        ),
        (
            {"too_long": 100},
            "python -m medjax.eval --tasks x --limit 100",
            "take a model whose context is longer than 8,192 tokens, or leave less room with --max-new-tokens",
        ),
        (
            {"not_asked": 100},
            "python -m medjax.eval --tasks x --protocol choice-logprob --out o",
            "python -m medjax.eval --tasks x --out o --protocol strict  (which asks for numbers, too)",
        ),
        (
            {"no_reference": 100},
            "python -m medjax.eval --tasks x",
            "read the answers in report.html: without reference answers people judge them, nothing is graded",
        ),
    ],
)
def test_the_next_step_after_a_run_without_a_score_is_none_with_another_model(capsys, counts, command, told):
    results = _results()
    record = results["medjax"]
    record["command"] = command
    (entry,) = record["evaluations"]
    entry["scores"] |= counts
    entry["limit"] = 100
    if "no_reference" not in counts:
        entry["scores"] |= {"not_graded": "why", "accuracy": None, "accuracy_interval": None}
    print_summary(results)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("next ")] == [f"next     {told}"]
    said = [line for line in lines if "no choices to score" in line]
    assert all(line.endswith("no choices to score; there is no score") for line in said)
    # beside a set that has a score the step is the one of any run
    scored = _results()["medjax"]["evaluations"]
    record["evaluations"] = [entry, *scored]
    print_summary(results)
    assert told not in capsys.readouterr().out


def test_where_nothing_was_read_nothing_agrees(capsys):
    results = _results()
    (entry,) = results["medjax"]["evaluations"]
    entry |= {"agreement": 0.0, "samples": {"count": 3, "temperature": 0.8, "accuracy": 0.0}}
    print_summary(results)
    told = capsys.readouterr().out
    assert "3 answers drawn for each item at temperature 0.8" in told
    assert "say what counts" not in told
    entry["agreement"] = 0.5
    print_summary(results)
    assert "50.0% of an item's answers say what counts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (
            {"not_asked": 1},
            "1 item that asks for a number was not asked, since there are no choices to score; the accuracy counts it "
            "as not right",
        ),
        (
            {"not_asked": 2, "not_graded": "not asked 2/2"},
            "2 items that ask for a number were not asked, since there are no choices to score; there is no score",
        ),
        (
            {"no_reference": 1},
            "1 open question has no reference answer and no part in the accuracy; for people to judge in samples.jsonl",
        ),
        ({"too_long": 1}, "1 item is longer than the model's context with the answer and not sent; it wins nothing; "),
        (
            {"too_long": 3},
            "3 items are longer than the model's context with the answer and not sent; they win nothing; ",
        ),
    ],
)
def test_what_was_not_graded_is_not_called_wrong(capsys, counts, line):
    results = _results()
    results["medjax"]["evaluations"][0]["scores"] |= counts
    print_summary(results)
    said = capsys.readouterr().out
    assert f"exam_en_strict-0shot: {line}" in said
    assert "counted as wrong" not in said
