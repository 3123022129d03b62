"""The questions of a page as data: nothing is lost, nothing can leave its element, long texts stay in bounds."""

import base64
import hashlib
import json
import re

import pytest
from exam_samples import doc, sample
from report_pages import Page, evaluation, results
from small_evaluations import ONE, TWO, texts
from small_evaluations import evaluation as small

from medjax.eval.reading import read_answers
from medjax.eval.samples import Finished, sample_lines
from medjax.infer.scorer import Score, Work
from medjax.report import questions
from medjax.report.exam import exam_report
from medjax.report.questions import embedded, question_data, script, script_source

HOSTILE = "</script><script>alert(1)</script><!--<script>]]>&lt;\u2028\u2029\x00\ud800 {{ 7 * 7 }}\U0001f600"
HEADS = [
    {"id": name, "name": f"mini · ja · {name}", "protocol": "strict-0shot", "language": "ja"} for name in ("one", "two")
]


def data(samples, heads=HEADS):
    return json.loads(question_data(samples, heads))


@pytest.mark.parametrize("text", [HOSTILE, "\r\n\t\"\\'", "心電図 ST上昇 𠮟る", ""])
def test_embedded_json_says_the_same_and_holds_no_markup(text):
    shown = embedded({"text": text, "list": [text]})
    assert json.loads(shown) == {"text": text, "list": [text]}
    assert not re.search("[<>&\u2028\u2029]", shown)
    shown.encode()  # halves of characters are escapes


def test_every_answer_and_question_stands_once():
    docs = [doc(number) for number in range(3)]
    made = [sample(name, each, "right" if name == "one" else "unparsed") for name in ("one", "two") for each in docs]
    found = data(made)
    assert [question["id"] for question in found["questions"]] == ["q0", "q1", "q2"]
    # both evaluations of a question stand together
    order = [(a["question"], a["evaluation"], a["outcome"]) for a in found["answers"]]
    assert order == [(q, e, ("right", "unparsed")[e]) for q in range(3) for e in range(2)]
    first = found["questions"][0]
    assert first == {key: docs[0][key] for key in first}
    assert first["needs_image"] is True
    assert "needs_image" not in found["questions"][1]


def test_prompts_are_whole_with_what_all_share():
    docs = [doc(number) for number in (3, 4, 15)]
    prompts = [f"<|user|>\n例\n\n問題: {d['question']}\n答え:<|assistant|>\n" for d in docs]
    found = data([sample("two", d, prompt=prompt) for d, prompt in zip(docs, prompts, strict=True)])
    unused, head = found["evaluations"]
    assert (unused["begin"], unused["end"]) == ("", "")
    assert (head["begin"], head["end"]) == ("<|user|>\n例\n\n問題: 第", "問。正しいのはどれか。\n答え:<|assistant|>\n")
    assert [ask["prompt"] for answer in found["answers"] for ask in answer["asks"]] == ["3", "4", "15"]
    # one prompt alone, and prompts of which one begins another
    assert data([sample("one", docs[0], prompt="同じ")])["answers"][0]["asks"][0]["prompt"] == "同じ"
    found = data([sample("one", d, prompt=p) for d, p in zip(docs, ("aab", "aa", "aab"), strict=True)])
    head, asks = found["evaluations"][0], [answer["asks"][0] for answer in found["answers"]]
    assert [head["begin"] + ask["prompt"] + head["end"] for ask in asks] == ["aab", "aa", "aab"]


def test_scores_metrics_and_what_people_know():
    scores = [-1.5, -0.25, -3.0, -2.0, -4.0]
    more = {"human_accuracy": 0.942, "agreement": 0.8, "prohibited": True, "metrics": ["acc", "entity_exact_f1"]}
    found = data([sample("one", doc(1), scores=scores, entity_exact_f1=0.5, acc=0.0, **more)])
    (answer,) = found["answers"]
    (ask,) = answer["asks"]
    assert (ask["scores"], "output" in ask) == (scores, False)
    assert (answer["agreement"], answer["prohibited"], answer["metrics"]) == (0.8, True, {"entity_exact_f1": 0.5})
    assert found["questions"][0]["human"] == 0.942


def test_samples_as_a_run_writes_them():
    rotated = small("choice-logprob", (ONE, TWO), rotate=True)
    outputs = [[Score((-float((k + n) % 5),), False) for k in range(5)] for n in range(10)]
    strict = small("strict", (ONE, TWO))
    done = [
        Finished(e, read_answers(e, o), Work(1, 1), 0, 1.0)
        for e, o in ((rotated, outputs), (strict, texts("c", "a, d", finish="length")))
    ]
    samples = list(map(json.loads, sample_lines(done)))
    heads = [{"id": f.evaluation.id, "name": "exam", "protocol": "p", "language": "ja"} for f in done]
    found = data(samples, heads)
    assert [(a["question"], a["evaluation"], len(a["asks"])) for a in found["answers"]] == [
        *[(0, 0, 5), (0, 1, 1), (1, 0, 5), (1, 1, 1)],
    ]
    for answer, entry in ((found["answers"][0], samples[0]), (found["answers"][3], samples[3])):
        head = found["evaluations"][answer["evaluation"]]
        asked = [head["begin"] + ask["prompt"] + head["end"] for ask in answer["asks"]]
        each = len(entry["arguments"]) // len(asked)
        assert asked == [entry["arguments"][f"gen_args_{n * each}"]["arg_0"] for n in range(len(asked))]
    shown = [ask.get("order", [0, 1, 2, 3, 4]) for ask in found["answers"][0]["asks"]]
    assert shown == [[(k + shift) % 5 for k in range(5)] for shift in range(5)]
    assert found["answers"][0]["asks"][2]["scores"] == [-2.0, -3.0, -4.0, -0.0, -1.0]
    assert found["answers"][3]["asks"][0]["truncated"] is True


def test_long_texts_are_cut_and_say_so(monkeypatch):
    long = "あ" * 100_000
    (answer,) = data([sample("one", doc(1), output=long)])["answers"]
    assert answer["asks"][0]["output"] == "あ" * 20_000 + "\n… 80,000 more characters in samples.jsonl"
    # 3 outputs of 2,000 characters and their prompts: with room for less than 6,000 all are cut at 1,000
    monkeypatch.setattr(questions, "MOST_CHARACTERS", 5_000)
    found = data([sample("one", doc(n), output="い" * 2_000) for n in range(3)])
    outputs = [answer["asks"][0]["output"] for answer in found["answers"]]
    assert outputs == ["い" * 1_000 + "\n… 1,000 more characters in samples.jsonl"] * 3


def test_samples_of_another_run_are_refused():
    with pytest.raises(ValueError, match="got an answer of 'three', expected one of one, two; give the samples of the"):
        question_data([sample("three", doc(1))], HEADS)
    assert question_data([], HEADS) is None


def test_the_page_allows_its_script_and_no_other():
    name = "mini_ja_strict-0shot"
    question = doc(
        1, question=HOSTILE.replace("\ud800", ""), choices=[HOSTILE.replace("\ud800", "x"), "b"], answer=["a"]
    )
    html = exam_report(results(evaluation()), [sample(name, question, output=HOSTILE)])
    parsed = Page(html)
    assert parsed.at is parsed.root, "an element is left open"
    store, code = parsed.root.all("script")
    assert store.attributes == {"type": "application/json", "id": "question-data"}
    (text,) = store.children
    assert json.loads(text)["answers"][0]["asks"][0]["output"] == HOSTILE
    assert code.attributes == {}
    assert code.children == [str(script())]
    digest = base64.b64encode(hashlib.sha256(code.children[0].encode()).digest()).decode()
    policy = parsed.root.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives == {
        **{"default-src": "'none'", "style-src": "'unsafe-inline'", "base-uri": "'none'", "form-action": "'none'"},
        "script-src": f"'sha256-{digest}'",
    }
    assert script_source("") == "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"  # of nothing, as known
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert name not in code.children[0]
