"""results.json and samples.jsonl: lm-evaluation-harness's keys, hashes and errors, and the verdict on each answer."""

import hashlib
import json
import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
from small_evaluations import ONE, TWO, evaluation, texts

from medjax.data.exams.tasks import LoadedTask
from medjax.data.qa import Item
from medjax.data.text.chat import ChatTemplate
from medjax.eval.asking import Evaluation, ask
from medjax.eval.demonstrations import Demonstrations
from medjax.eval.metric_differences import metric_differences
from medjax.eval.metrics import METRICS
from medjax.eval.protocols import Protocol
from medjax.eval.reading import read_answers
from medjax.eval.results import results_json
from medjax.eval.samples import Finished, sample_lines
from medjax.eval.settings import EvalSettings, ModelSettings, ProtocolSettings, TaskSettings
from medjax.infer.generator import TOO_LONG, Generation
from medjax.infer.scorer import Score, Work

FIVE = ("肺炎", "喘息", "肺塞栓", "気胸", "心不全")
ITEMS = (
    Item("one", "一つはどれか。", FIVE, ("c",), points=3, section="required", category="呼吸器", prohibited=("e",)),
    Item("two", "二つはどれか。", FIVE, ("a", "d"), context="症例。"),
    Item("number", "いくつか。", (), ("7.20",)),
)


def _sha(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _evaluation(name, items=ITEMS, language="ja", chat=None, task="exam", **settings):
    loaded = LoadedTask(
        name=task,
        language=language,
        items=items,
        fewshot=items,
        pool_is_test=True,
        digest="data-digest",
        files={"exam.jsonl": "f" * 64},
        required_sections=("required",),
        cuts={},
        prohibited_max=0,
        exam_sizes={},
        dropped={},
        note="a note",
        unpinned=("exam.jsonl",),
    )
    protocol = Protocol(name, ProtocolSettings(**settings))
    shots = Demonstrations(loaded, settings.get("num_fewshot", 0), "fixed")
    return ask(Evaluation(loaded, protocol, items, (), unasked=0), shots, chat)


def _texts(name, texts, **options):
    evaluation = _evaluation(name, **options)
    return read_answers(evaluation, [Generation((1,), text, "stop") for text in texts])


def _finish(evaluation, outputs):
    return Finished(evaluation, read_answers(evaluation, outputs), Work(100, 60), 1, 4.0)


def _scores(*rows):
    """Scores of one item's choices from rows of token log-probabilities."""
    return [Score(tuple(row), False) for row in rows]


# the sum, bytes and characters say c, tokens say e
ROWS = _scores((-9.0,), (-3.1, -3.1), (-4.0, -2.0), (-8.0,), (-2.0, -2.0, -2.0, -2.0))
SCORING = _evaluation("choice-logprob")
TWO_ROWS = _scores((-2.0,), (-5.0,), (-9.0,), (-2.5,), (-8.0,))


def _results(*finished, chat=None, **settings):
    tree = EvalSettings(model=ModelSettings(name="org/model"), resamples=200, **settings)
    tokenizer = SimpleNamespace(pad_id=None, bos_id=1, eos_ids=(2, 7), token_text={1: "<s>", 2: "</s>"}.__getitem__)
    decoder = SimpleNamespace(config=SimpleNamespace(max_length=2048))
    model = SimpleNamespace(name="org/model", digest="m" * 64, tokenizer=tokenizer, decoder=decoder, chat=chat)
    record = {
        "versions": {"medjax": "9.9"},
        "model": {"parameters": 1234},
        "devices": "1 x cpu",
        "wall_seconds": 1.25,
    }
    return results_json(finished, tree, model, record)


def test_choices_are_ranked_by_every_normalisation():
    one, two, number = read_answers(SCORING, [ROWS, TWO_ROWS, []])
    # sums -9, -6.2, -6, -8, -8; per token -9, -3.1, -3, -8, -2; characters 2, 2, 3, 2, 3; three bytes each
    assert (one.picked, one.metrics) == (
        ("c",),
        {"acc": 1.0, "acc_norm": 1.0, "acc_bytes": 1.0, "acc_per_token": 0.0},
    )
    assert (one.verdict.points, one.verdict.prohibited, one.text) == (3, False, "")
    # the two best are the gold set, whatever their order
    assert (two.picked, two.verdict.correct) == (("a", "d"), True)
    assert two.metrics["acc"] == 1.0
    # nothing to score: not asked, and wrong
    verdict = number.verdict
    assert (number.picked, verdict.correct, verdict.unparsed, verdict.asked) == (None, False, False, False)
    assert number.metrics == dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_per_token"), 0.0)
    assert one.resps == [[[repr(sum(score.token_logprobs)), "False"]] for score in ROWS]
    assert one.filtered == [pair for (pair,) in one.resps]
    assert list(one.metrics) == list(number.metrics)


def test_the_protocol_says_which_normalisation_counts():
    evaluation = _evaluation("choice-logprob", items=ITEMS[:1], normalise="token")
    (answer,) = read_answers(evaluation, [ROWS])
    assert answer.picked == ("e",)
    assert (answer.verdict.correct, answer.verdict.prohibited, answer.metrics["acc"]) == (False, True, 1.0)


def test_a_byte_and_a_character_are_not_the_same_in_japanese():
    item = Item("q", "?", ("abcd", "心電図"), ("a",))
    evaluation = _evaluation("choice-logprob", items=(item,))
    # per character -1, -0.9; per byte -1, -0.3 or -1 against 2.7 / 9
    (answer,) = read_answers(evaluation, [_scores((-4.0,), (-3.3,))])
    assert (answer.metrics["acc"], answer.metrics["acc_norm"], answer.metrics["acc_bytes"]) == (0.0, 1.0, 0.0)


def test_strict_answers():
    one, two, number = _texts("strict", [" c", "a, d", "答え: 7.20"])
    assert [a.picked for a in (one, two, number)] == [("c",), ("a", "d"), ("7.20",)]
    assert [a.verdict.correct for a in (one, two, number)] == [True, True, True]
    assert (one.resps, one.filtered, one.metrics) == ([[" c"]], ["c"], {"exact_match": 1.0})
    bad = _texts("strict", ["e", "aだと思うがdかも知れない", "7.2"])
    assert [a.verdict.correct for a in bad] == [False] * 3
    assert [a.verdict.prohibited for a in bad] == [True, False, False]
    assert [a.verdict.unparsed for a in bad] == [False, True, False]
    assert (bad[1].picked, bad[1].filtered) == (None, ["[unparsed]"])


def test_kasai_answers_trim_nothing_but_a_completion():
    one, two, number = _texts("kasai", [" Ｃ\n", "ｄ，ａ", "７．２０"])
    assert [a.verdict.correct for a in (one, two, number)] == [True, True, True]
    assert [a.filtered for a in (one, two, number)] == [["c"], ["d,a"], ["7.20"]]
    spaced = _texts("kasai", ["c", "a, d", "7.20"])[1]
    assert (spaced.verdict.correct, spaced.verdict.unparsed, spaced.picked) == (False, False, ("a", "d"))
    chat = ChatTemplate("{{ messages | tojson }}", None, None)
    untrimmed = _texts("kasai", [" c", "a,d", "7.20"], chat=chat)
    assert [a.verdict.correct for a in untrimmed] == [False, True, True]


def test_kasai_specials():
    items = (
        Item("116A71", "?", FIVE, ("e",), any_answer=True),
        Item("112B30", "?", FIVE, ("a",), points=3, accepted=(("a",), ("d",))),
    )
    for said, correct in ((["何か", "d"], [True, True]), (["", "a"], [True, True]), (["e", "a,d"], [True, False])):
        answers = _texts("kasai", said, items=items)
        assert [a.verdict.correct for a in answers] == correct
    assert [a.verdict.unparsed for a in _texts("kasai", ["何か", "b"], items=items)] == [True, False]


def test_the_order_of_letters_is_kept_where_it_is_the_answer():
    item = Item("o", "順に並べよ。", FIVE, ("c", "a", "b"), ordered=True)
    (right,) = _texts("kasai", ["c,a,b"], items=(item,))
    (wrong,) = _texts("kasai", ["a,b,c"], items=(item,))
    assert (right.verdict.correct, right.picked) == (True, ("c", "a", "b"))
    assert (wrong.verdict.correct, wrong.picked) == (False, ("a", "b", "c"))


def test_gestalt_answers():
    one, two = _texts("gestalt", ["肺塞栓\n以上", "肺炎,気胸"], items=ITEMS[:2])
    assert (one.picked, one.metrics) == (("c",), {"exact_match": 1.0, "gestalt": 1.0})
    assert (two.picked, two.metrics, two.verdict.points) == (("a", "d"), {"exact_match": 1.0, "gestalt": 1.0}, 1)
    (near,) = _texts("gestalt", ["心不全です"], items=ITEMS[:1])
    assert (near.picked, near.verdict.prohibited, near.verdict.unparsed) == (("e",), True, False)
    assert near.metrics == {"exact_match": 0.0, "gestalt": 0.0}
    twice = Item("t", "?", ("肺炎", "気胸", "喘息", "気胸", "心不全"), ("b", "d"))
    (same,) = _texts("gestalt", ["気胸,気胸"], items=(twice,))
    assert (same.picked, same.verdict.correct) == (("b", "d"), True)
    (empty,) = _texts("gestalt", [""], items=ITEMS[:1])
    assert (empty.picked, empty.verdict.unparsed) == (("a",), False)  # nothing is ever unparsed there


def test_samples_carry_the_harness_keys_and_hashes():
    lines = list(sample_lines([_finish(SCORING, [ROWS, TWO_ROWS, []])]))
    assert all(line.endswith("}\n") and line.count("\n") == 1 for line in lines)
    first, second, third = (json.loads(line) for line in lines)
    assert [s["doc_id"] for s in (first, second, third)] == [0, 1, 2]
    assert [s["doc"]["id"] for s in (first, second, third)] == ["one", "two", "number"]
    assert list(first)[:13] == [
        *("task", "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
        *("doc_hash", "prompt_hash", "target_hash", "acc"),
    ]
    assert first["doc"] == {
        "id": "one",
        "question": "一つはどれか。",
        "choices": list(FIVE),
        "answer": ["c"],
        "points": 3,
        "section": "required",
        "category": "呼吸器",
        "prohibited": ["e"],
    }
    text = "医学の試験問題に答えます。\n問題: 一つはどれか。\na. 肺炎\nb. 喘息\nc. 肺塞栓\nd. 気胸\ne. 心不全\n答え:"
    assert first["arguments"] == {
        f"gen_args_{i}": {"arg_0": text, "arg_1": f" {choice}"} for i, choice in enumerate(FIVE)
    }
    for sample in (first, second, third):
        assert sample["doc_hash"] == _sha(json.dumps(sample["doc"], indent=2, ensure_ascii=False))
        assert sample["target_hash"] == _sha(sample["target"])
        for arguments in sample["arguments"].values():
            assert sample["prompt_hash"] == _sha(arguments["arg_0"])
        assert all(isinstance(sample[name], float) for name in sample["metrics"])
    assert (second["target"], third["target"], third["arguments"]) == ("a,d", "7.20", {})
    assert third["metrics"] == first["metrics"]
    assert "症例。" in lines[1]  # readable, not escaped


def test_a_withdrawn_item_is_worth_nothing_in_its_sample_too():
    made = _evaluation("strict", items=(Item("w", "?", FIVE, ("a",), points=0), ITEMS[1]))
    lines = sample_lines([_finish(made, [Generation((1,), "a", "stop")] * 2)])
    samples = [json.loads(line) for line in lines]
    assert [(s["doc"]["points"], s["points"], s["outcome"]) for s in samples] == [(0, 0, "right"), (1, 0, "wrong")]


def test_a_generation_sample():
    evaluation = _evaluation("strict", items=ITEMS[:1])
    (line,) = sample_lines([_finish(evaluation, [Generation((4, 5), "\u2028c", "length")])])
    sample = json.loads(line)
    assert sample["arguments"]["gen_args_0"]["arg_1"] == {"until": ["\n"], "max_gen_toks": 32, "do_sample": False}
    assert sample["resps"] == [["\u2028c"]]
    assert sample["prompt_hash"] == _sha(evaluation.asks[0].prompt.text)
    assert line.count("\n") == 1
    assert (sample["truncated"], sample["unparsed"], sample["correct"]) == (True, False, True)


def test_answers_cut_off_are_counted_apart_from_wrong_ones():
    evaluation = _evaluation("strict")
    outputs = [
        Generation((1,), "まず症状を", "length"),
        Generation((1,), "a, d", "length"),
        Generation((1,), "?", "stop"),
    ]
    run = _finish(evaluation, outputs)
    samples = [json.loads(line) for line in sample_lines([run])]
    assert [(s["truncated"], s["unparsed"], s["outcome"]) for s in samples] == [
        (True, False, "cut_off"),
        (True, False, "right"),
        (False, True, "unparsed"),
    ]
    assert [s["filtered_resps"] for s in samples] == [["[cut off]"], ["a,d"], ["[unparsed]"]]
    strict, scored = _results(run, _finish(SCORING, [ROWS, TWO_ROWS, []]))["medjax"]["evaluations"]
    counts = [(e["truncated"], e["scores"]["cut_off"], e["scores"]["unparsed"]) for e in (strict, scored)]
    assert counts == [(2, 1, 1), (0, 0, 0)]
    assert "truncated" not in strict["scores"]


def test_a_chat_template_is_named_only_where_one_was_used():
    chat = ChatTemplate("{{ messages | tojson }}", None, None)
    used = _evaluation("strict", items=ITEMS[:1], chat=chat)
    unused = _evaluation("gestalt", items=ITEMS[:1])
    runs = {e.protocol.name: _finish(e, [Generation((1,), "c", "stop")]) for e in (used, unused)}
    for names, source in ((["gestalt"], None), (["gestalt", "strict"], chat.source)):
        results = _results(*(runs[name] for name in names), chat=chat)
        assert (results["fewshot_as_multiturn"], results["chat_template"]) == (source is not None, source)
        assert results["chat_template_sha"] == (_sha(source) if source else None)


def test_results_have_means_and_closed_form_errors_under_the_harness_keys():
    other = _evaluation("strict", items=ITEMS[:1])
    results = _results(
        _finish(SCORING, [ROWS, TWO_ROWS, []]),
        _finish(other, [Generation((1,), "c", "stop")]),
        task=TaskSettings(limit=3),
    )
    name = "exam_ja_choice-logprob-0shot"
    assert list(results["results"]) == [name, "exam_ja_strict-0shot"]
    values = results["results"][name]
    assert (values["alias"], values["sample_len"], values["acc,none"]) == (name, 3, pytest.approx(2 / 3, rel=1e-15))
    closed = statistics.stdev([1.0, 1.0, 0.0]) / math.sqrt(3)
    assert values["acc_stderr,none"] == pytest.approx(closed, rel=1e-12)
    assert values["acc_per_token,none"] == pytest.approx(1 / 3)
    one = results["results"]["exam_ja_strict-0shot"]
    assert (one["exact_match,none"], one["exact_match_stderr,none"]) == (1.0, "N/A")
    assert results["n-samples"][name] == {"original": 3, "effective": 3}
    assert results["higher_is_better"][name] == dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_per_token"), True)
    assert (results["n-shot"][name], results["versions"][name], results["config"]["limit"]) == (0, "9.9", 3)
    assert results["configs"][name]["output_type"] == "multiple_choice"
    assert results["model_name_sanitized"] == "org__model"
    assert results["tokenizer_bos_token"] == ["<s>", "1"]
    assert results["tokenizer_eos_token"] == ["</s>", "2"]
    assert results["tokenizer_pad_token"] == [None, "None"]
    assert results["total_evaluation_time_seconds"] == "1.25"
    assert json.loads(json.dumps(results)) == results
    samples = [json.loads(line) for line in sample_lines([_finish(SCORING, [ROWS, TWO_ROWS, []])])]
    joined = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    assert results["task_hashes"][name] == _sha(joined)


def test_the_exam_record_stands_under_medjax():
    results = _results(_finish(SCORING, [ROWS, TWO_ROWS, []]))
    (evaluation,) = results["medjax"]["evaluations"]
    scores = evaluation["scores"]
    assert (scores["correct"], scores["points"], scores["points_total"], scores["not_asked"]) == (2, 4, 5, 1)
    assert (scores["required_points"], scores["required_total"], scores["general_total"]) == (3, 3, 2)
    assert evaluation["normalised"] == pytest.approx({"sum": 2 / 3, "character": 2 / 3, "byte": 2 / 3, "token": 1 / 3})
    assert evaluation["data"]["digest"] == "data-digest"
    assert evaluation["data"]["unpinned"] == ["exam.jsonl"]
    prompts = [[p.text, *p.continuations] for p in (ask.prompt for ask in SCORING.asks)]
    assert evaluation["prompt_digest"] == _sha(json.dumps(prompts, ensure_ascii=False))
    assert evaluation["work"] == {
        "tokens_requested": 100,
        "tokens_computed": 60,
        "tokens_saved": 40,
        "items_reused": 1,
        "wall_seconds": 4.0,
        "items_per_second": 0.5,
    }
    examples = results["medjax"]["examples"]
    assert [(e["item"]["id"], e["picked"], e["outcome"]) for e in examples] == [
        ("one", ["c"], "right"),
        ("two", ["a", "d"], "right"),
        ("number", None, "not_asked"),
    ]


# what a set is graded by


def _graded_by(metrics, outputs, name="strict", items=(ONE, TWO), **settings):
    made = evaluation(name, items, **settings)
    made = replace(made, task=replace(made.task, metrics=metrics))
    results = _results(Finished(made, read_answers(made, outputs), Work(), 0, 1.0))
    return results, results["medjax"]["evaluations"][0]


@pytest.mark.parametrize(
    ("name", "settings", "outputs", "right", "chance"),
    [
        ("strict", {}, ["c", "a, d"], 1.0, (1 / 5 + 1 / 10) / 2),
        ("kasai", {}, ["c", "a, d"], 0.5, (1 / 5 + 1 / 10) / 2),
        ("strict", {"rotate": True}, [*"cbaea", "a, d", "c, e", "b, d", "a, c", "b, e"], 0.5, (0.2**5 + 0.1**5) / 2),
    ],
    ids=["strict", "kasai", "rotated"],
)
def test_accuracy_among_the_metrics_is_that_of_the_scores(name, settings, outputs, right, chance):
    _, entry = _graded_by(("kappa", "accuracy"), texts(*outputs), name, **settings)
    graded, scores = entry["metrics"], entry["scores"]
    assert graded["accuracy"]["value"] == scores["accuracy"] == right
    assert graded["accuracy"]["interval"] == scores["accuracy_interval"]
    assert graded["accuracy"]["chance"] == scores["chance"]["accuracy"] == pytest.approx(chance)
    assert graded["kappa"]["value"] == 1  # of what was read


def test_what_is_too_long_is_not_unparsed_and_not_right():
    every = Item("any", "?", ONE.choices, ("a",), any_answer=True)
    _, entry = _graded_by(("accuracy", "kappa"), [TOO_LONG, *texts("?")], items=(every, ONE))
    assert [found["unparsed"] for found in entry["metrics"].values()] == [1, 1]
    assert entry["metrics"]["accuracy"]["value"] == entry["scores"]["accuracy"] == 0
    assert [found["too_long"] for found in entry["metrics"].values()] == [1, 1]


def test_a_figure_stands_beside_the_counts_of_what_could_not_be_read():
    said = [TOO_LONG, *texts("考え中", finish="length"), *texts("?", "c")]
    _, entry = _graded_by(("kappa", "accuracy"), said, items=tuple(replace(ONE, id=name) for name in "wxyz"))
    for found in entry["metrics"].values():
        assert (found["unparsed"], found["cut_off"], found["too_long"], found["items"]) == (1, 1, 1, 4)
        assert "not_graded" not in found


@pytest.mark.parametrize("name", ["strict", "choice-logprob"])
def test_where_every_item_is_too_long_there_is_no_score(name):
    pair = (ONE, replace(ONE, id="other"))
    results, entry = _graded_by(("kappa", "accuracy"), [TOO_LONG, TOO_LONG], name, items=pair)
    scores = entry["scores"]
    assert scores["not_graded"] == "too long 2/2"
    kept = ("accuracy", "accuracy_interval", "points_share", "points_share_interval")
    assert [scores[key] for key in kept] == [None] * 4
    assert {(f["value"], f["interval"], f["not_graded"]) for f in entry["metrics"].values()} == {
        (None, None, "too long 2/2")
    }
    assert not {"normalised", "calibration", "rotation", "agreement"} & entry.keys()
    (values,) = results["results"].values()
    of_items = [key for key in values if key.endswith(",none") and "_stderr" not in key]
    assert of_items
    assert all(values[key] is None for key in of_items)
    assert all(values[key] == "N/A" for key in values if "_stderr" in key)
    json.dumps(results["medjax"]["evaluations"], allow_nan=False)


def test_models_that_saw_no_item_are_not_compared():
    made = [replace(evaluation("strict"), variant=name) for name in ("base", "adapter")]
    runs = [Finished(e, read_answers(e, [TOO_LONG]), Work(), 0, 1.0) for e in made]
    assert _results(*runs)["medjax"]["comparisons"] == []
    made = [evaluation("strict", language=language) for language in ("ja", "en")]
    said = [*texts("c"), TOO_LONG]
    runs = [Finished(e, read_answers(e, [one]), Work(), 0, 1.0) for e, one in zip(made, said, strict=True)]
    assert "languages" not in _results(*runs)["medjax"]


def test_metrics_of_the_set_alone_stand_among_the_harness_keys():
    pytest.importorskip("sacrebleu")
    results, entry = _graded_by(("kappa", "accuracy"), texts("c", "b"))
    (values,) = results["results"].values()
    assert (values["kappa,none"], values["kappa_stderr,none"]) == (entry["metrics"]["kappa"]["value"], "N/A")
    assert (values["exact_match,none"], values["exact_match_stderr,none"]) == (0.5, 0.5)
    assert [list(keys) for keys in results["higher_is_better"].values()] == [["exact_match", "kappa"]]
    assert results["configs"]["exam_ja_strict-0shot"]["metric_list"] == [{"metric": "exact_match"}, {"metric": "kappa"}]
    items = tuple(Item(name, "?", (), (text,), kind="text") for name, text in (("x", "abcdef"), ("y", "ghijkl")))
    results, entry = _graded_by(("chrf",), texts("abcdef", "ghi"), items=items)
    (values,) = results["results"].values()
    # of the set, which is no mean over items and has no closed-form error
    assert (values["chrf,none"], values["chrf_stderr,none"]) == (entry["metrics"]["chrf"]["value"], "N/A")


def _both(metrics, items, base, adapter):
    made = evaluation("strict", items)
    made = replace(made, task=replace(made.task, metrics=metrics))
    made = [replace(made, variant=name) for name in ("base", "adapter")]
    runs = [
        Finished(e, read_answers(e, texts(*said)), Work(), 0, 1.0)
        for e, said in zip(made, (base, adapter), strict=True)
    ]
    (entry,) = _results(*runs)["medjax"]["comparisons"]
    return entry


def test_base_and_adapter_are_compared_by_what_the_set_is_graded_by():
    gold = "abcdeabcde"
    items = tuple(Item(f"q{n}", "?", FIVE, (letter,)) for n, letter in enumerate(gold))
    entry = _both(("kappa", "accuracy"), items, "aacdeabaaa", "abcdeabcdc")
    (metric,) = entry["metrics"]
    readings = [[(letter,) for letter in said] for said in ("aacdeabaaa", "abcdeabcdc")]
    (alone,) = metric_differences([METRICS["kappa"]], items, *readings, resamples=200, seed=0)
    assert metric == alone
    assert metric["first"] < metric["second"] < 1
    assert metric["bounds"] == [-1, 1]
    assert (entry["has_answers"], entry["only_first"], entry["only_second"]) == (True, 0, 3)
    # of lists right and wrong are no test; of accuracy there is no other figure
    lists = tuple(Item(f"e{n}", "?", (), ("咳", "熱"), kind="entities") for n in range(3))
    entry = _both(("entity_partial_f1", "entity_exact_f1"), lists, ['["咳"]'] * 3, ['["咳", "熱"]'] * 3)
    assert [(m["metric"], m["first"], m["second"]) for m in entry["metrics"]] == [
        ("entity_partial_f1", pytest.approx(2 / 3), 1.0)
    ]
    assert entry["has_answers"] is False
    entry = _both(("accuracy",), items, "a" * 10, gold)
    assert (entry["metrics"], entry["has_answers"]) == ([], True)
    # nobody knows what is right
    unknown = tuple(Item(f"o{n}", "?", (), (), kind="text") for n in range(2))
    entry = _both(("chrf",), unknown, ["輸液", "安静"], ["手術", "安静"])
    assert (entry["metrics"], entry["has_answers"]) == ([], False)


def test_the_headline_is_the_first_metric_of_each_kind_of_item():
    _, entry = _graded_by(("kappa", "accuracy"), texts("c", "b"))
    assert entry["headline"] == ["kappa"]
    listed = Item("e", "?", (), ("咳",), kind="entities")
    names = ("accuracy", "entity_partial_f1", "entity_exact_f1")
    _, entry = _graded_by(names, texts("c", "a, d", '["咳"]'), items=(ONE, TWO, listed))
    assert entry["headline"] == ["accuracy", "entity_partial_f1"]
    _, entry = _graded_by(("chrf",), texts("輸液"), items=(Item("o", "?", (), (), kind="text"),))
    assert entry["headline"] == []


def test_the_prompt_digest_covers_prompts_and_continuations():
    digests = {
        _evaluation("choice-logprob").prompt_digest,
        _evaluation("choice-logprob", continuation="letter").prompt_digest,
        _evaluation("choice-logprob", num_fewshot=1).prompt_digest,
        _evaluation("choice-logprob", items=ITEMS[:2]).prompt_digest,
        _evaluation("strict").prompt_digest,
        _evaluation("choice-logprob", language="en").prompt_digest,
    }
    assert len(digests) == 6
    assert _evaluation("choice-logprob").prompt_digest == _evaluation("choice-logprob").prompt_digest
