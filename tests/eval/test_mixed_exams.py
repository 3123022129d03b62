"""An exam of choices and open texts: terminal, results, page and figure count the same items in accuracy and chance."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from scipy.stats import binomtest
from small_evaluations import ONE, TWO, evaluation, texts

from medjax.data.qa import Item
from medjax.eval.models import headline
from medjax.eval.reading import read_answers
from medjax.eval.results import results_json
from medjax.eval.samples import Finished
from medjax.eval.scoring import aggregate, in_accuracy
from medjax.eval.settings import EvalSettings, ModelSettings
from medjax.eval.summary import print_summary
from medjax.infer.generator import TOO_LONG
from medjax.infer.scorer import Work
from medjax.report.exam import exam_report
from medjax.report.exam_figure import summary_figure

NUMBER = Item("n", "いくつか。", (), ("7.20",))
TRANSLATED = Item("t", "日本語に翻訳してください。\nFever.", (), ("発熱。",), kind="text", category="訳")
OPEN = Item("o", "治療方針を述べよ。", (), (), kind="text", category="訳")
LISTED = Item("e", "?", (), ("咳", "熱"), kind="entities")
ITEMS = (replace(ONE, category="呼吸器"), TWO, NUMBER, TRANSLATED, replace(TRANSLATED, id="u"), OPEN)
SAID = ("c", "a, d", "8", "発熱。", "熱。", "安静。")  # a choice of two answers, no number; one text to the letter
CHANCE = (1 / 5 + 1 / 10 + 0) / 3


def _finished(items, said, metrics=("accuracy", "chrf"), variant="", **settings):
    made = evaluation("strict", items, **settings)
    made = replace(made, task=replace(made.task, metrics=metrics), variant=variant)
    return Finished(made, read_answers(made, texts(*said)), Work(), 0, 1.0)


def _results(*finished):
    tree = EvalSettings(model=ModelSettings(name="org/model"), resamples=50)
    tokenizer = SimpleNamespace(pad_id=None, bos_id=1, eos_ids=(2,), token_text={1: "<s>", 2: "</s>"}.__getitem__)
    decoder = SimpleNamespace(config=SimpleNamespace(max_length=2048))
    model = SimpleNamespace(name="org/model", digest="m" * 64, tokenizer=tokenizer, decoder=decoder, chat=None)
    record = {"versions": {"medjax": "9.9"}, "model": {"name": "org/model", "parameters": 1234}, "devices": "1 x cpu"}
    record |= {
        "wall_seconds": 1.25,
        "compiled_seconds": {},
        "folder": "runs/eval/x",
        "command": "python -m medjax.eval",
    }
    return results_json(finished, tree, model, record)


@pytest.mark.parametrize(
    ("items", "counted"),
    [
        (ITEMS, [True, True, True, False, False, False]),
        ((NUMBER, LISTED, TRANSLATED), [True, False, False]),
        ((LISTED, TRANSLATED, OPEN), [True, True, False]),  # nothing to pick: those that have an answer
        ((OPEN, replace(OPEN, id="p")), [False, False]),
    ],
)
def test_accuracy_counts_choices_and_numbers_where_there_are_any(items, counted):
    assert in_accuracy((str(item.kind), item.answer) for item in items) == counted
    answers = read_answers(evaluation("strict", items), texts(*["?"] * len(items)))
    score = aggregate(evaluation("strict", items).task, items, [answer.verdict for answer in answers], resamples=10)
    assert (score["accuracy_items"], score["items"]) == (sum(counted), len(items))
    assert score["accuracy"] == (0 if any(counted) else None)


def test_scores_metrics_page_figure_and_terminal_say_the_same(capsys):
    results = _results(_finished(ITEMS, SAID))
    (entry,) = results["medjax"]["evaluations"]
    scores, metric = entry["scores"], entry["metrics"]["accuracy"]
    oracle = binomtest(2, 3).proportion_ci(method="wilson")
    for interval in (scores["accuracy_interval"], metric["interval"], headline(entry)["interval"]):
        assert interval == pytest.approx([oracle.low, oracle.high], abs=1e-12)
    assert scores["accuracy"] == metric["value"] == headline(entry)["value"] == 2 / 3
    assert scores["accuracy_items"] == metric["items"] == headline(entry)["items"] == 3
    for chance in (scores["chance"]["accuracy"], metric["chance"], headline(entry)["chance"]):
        assert chance == pytest.approx(CHANCE)
    assert (scores["correct"], scores["items"], scores["outcomes"]["right"]) == (2, 6, 3)
    assert scores["points"] == ONE.points + TWO.points + TRANSLATED.points  # a text that is right is worth its points
    parts = {name: (part["correct"], part["accuracy"]) for name, part in scores["by_category"].items()}
    assert parts == {"呼吸器": (1, 1.0), "訳": (0, None)}
    print_summary(results)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("exam (ja)"))
    cells = [cell.strip() for cell in row.split("│")]
    shown = f"({100 * oracle.low:.1f} to {100 * oracle.high:.1f})"
    assert cells[1:4] == ["6", f"66.7% {shown} of 3", "10.0%"]
    page, figure = exam_report(results), summary_figure(results)
    shown = f"{100 * oracle.low:.1f} – {100 * oracle.high:.1f}"
    assert f"<b>66.7\u00a0%</b><small>{shown}</small>" in page
    assert '<td class="num" data-label="Questions">3</td>' in page
    assert "2 of 3 questions right; 2 questions without choices, graded by other figures than accuracy" in page
    assert "10.0\u00a0% expected by guessing" in page
    assert "3 items · strict-0shot" in figure
    assert shown in figure


def test_base_and_adapter_are_compared_on_the_items_that_accuracy_counts():
    worse = ("c", "a", "8", "発熱。", "発熱。", "手術。")
    results = _results(*(_finished(ITEMS, said, variant=v) for said, v in ((worse, "base"), (SAID, "adapter"))))
    (entry,) = results["medjax"]["comparisons"]
    assert (entry["items"], entry["first_accuracy"], entry["second_accuracy"]) == (3, 1 / 3, 2 / 3)
    assert (entry["only_first"], entry["only_second"]) == (0, 1)  # and not the text that the base alone got
    assert entry["points_difference"] == TWO.points - TRANSLATED.points
    assert entry["points_difference_interval"] is not None


def test_repeated_asks_have_the_accuracy_of_the_same_items():
    said = [*"cbaea", "a, d", "c, e", "b, d", "a, c", "b, e", *SAID[2:]]
    (entry,) = _results(_finished(ITEMS, said, rotate=True))["medjax"]["evaluations"]
    # of five shifts each: the first is right under all, or not; and so for the second; the number is wrong once
    assert entry["rotation"]["robust_accuracy"] == entry["scores"]["accuracy"]
    assert entry["rotation"]["robust_accuracy_interval"] == entry["scores"]["accuracy_interval"]
    assert len(entry["rotation"]["by_shift"]) == 5
    assert entry["rotation"]["by_shift"][0] == pytest.approx(2 / 3)


@pytest.mark.parametrize("metrics", [("accuracy",), ("accuracy", "chrf")])
def test_choices_that_reached_no_model_leave_no_accuracy_beside_a_text_that_did(metrics, capsys):
    made = evaluation("strict", (ONE, TWO, TRANSLATED))
    made = replace(made, task=replace(made.task, metrics=metrics))
    answers = read_answers(made, [TOO_LONG, TOO_LONG, *texts("発熱。")])
    results = _results(Finished(made, answers, Work(), 0, 1.0))
    print_summary(results)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("exam (ja)"))
    assert [cell.strip() for cell in row.split("│")][1:5] == ["3", "not graded", "15.0%", "1 / 5"]
    page = exam_report(results)
    assert "no accuracy, since of 2 questions that it counts none reached the model; 1 question without" in page
    assert "of 2 questions right" not in page
    assert '<td class="num" data-label="Points">1 / 5' in page


def test_several_asks_of_a_set_for_people_to_judge_have_no_accuracy(capsys):
    open_texts = (OPEN, replace(OPEN, id="p"))
    shifted = _finished(open_texts, ("安静。", "手術。"), ("chrf",), rotate=True)
    drawn = _finished(open_texts, ("安静。", "手術。") * 2, ("chrf",), samples=2, temperature=0.7)
    files = [("one.txt", "{{instruction}}"), ("two.txt", "Q: {{instruction}}")]
    made = evaluation("strict", open_texts, templates=files, template=("one.txt", "two.txt"), majority=True)
    made = replace(made, task=replace(made.task, metrics=("chrf",)))
    voted = Finished(made, read_answers(made, texts(*("安静。", "手術。") * 2)), Work(), 0, 1.0)
    results = _results(shifted, drawn, voted)
    print_summary(results)
    printed, page = capsys.readouterr().out, exam_report(results)
    assert "2 answers drawn for each item at temperature 0.7\n" in printed
    assert "2 answers drawn at temperature 0.7;" in page
    for text in (printed, page):
        assert [said for said in ("mean over shifts", "on average over", "one alone", " alone:") if said in text] == []


def test_a_set_for_people_to_judge_has_no_accuracy(capsys):
    results = _results(_finished((OPEN, replace(OPEN, id="p")), ("安静。", "手術。"), ("chrf",)))
    scores = results["medjax"]["evaluations"][0]["scores"]
    assert (scores["accuracy"], scores["accuracy_interval"], scores["accuracy_items"]) == (None, None, 0)
    print_summary(results)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("exam (ja)"))
    assert [cell.strip() for cell in row.split("│")][2:4] == ["for people to judge", ""]
    assert "for people to judge" in exam_report(results)
