"""What a run says before its work: options without effect, and templates that hide the letters."""

import pytest
from small_evaluations import ONE, TWO, loaded

from medjax.data.qa import Item
from medjax.eval.asking import choose_items
from medjax.eval.notes import notes
from medjax.eval.protocols import Protocol
from medjax.eval.settings import EvalSettings, ProtocolSettings
from medjax.eval.templates import PromptTemplate
from medjax.infer.settings import ModelSettings

MODEL = ModelSettings()
LINES = "{{question}}\n{% for letter in letters %}{{letter|upper}}) {{choices[loop.index0]}}\n{% endfor %}"


def _said(names, items=(ONE, TWO), sources=(), model=MODEL, **options):
    settings = EvalSettings(model=model, protocol=ProtocolSettings(**options))
    templates = [PromptTemplate(source, f"t{number}.txt") for number, source in enumerate(sources)]
    protocols = [Protocol(name, settings.protocol, templates) for name in names]
    return notes(settings, [choose_items(loaded(items), protocol, settings)[0] for protocol in protocols])


@pytest.mark.parametrize(
    ("options", "silent", "names", "said"),
    [
        (
            {"model": ModelSettings(kv_cache="int8")},
            "strict",
            ("choice-logprob",),
            "--kv-cache int8 has no effect: choice-",
        ),
        ({"max_new_tokens": 5}, "cot", ("choice-logprob",), "--max-new-tokens 5 has no effect: choice-logprob writes"),
        (
            {"think_tokens": 9},
            "cot",
            ("strict", "kasai"),
            "--protocol.think_tokens 9 has no effect: only cot reasons",
        ),
        (
            {"continuation": "letter"},
            "choice-logprob",
            ("strict",),
            "--protocol.continuation letter has no effect: strict",
        ),
        (
            {"normalise": "byte"},
            "choice-logprob",
            ("cot",),
            "--protocol.normalise byte has no effect: cot scores no choices",
        ),
        ({"top_p": 0.5}, None, ("strict",), "--protocol.top_p 0.5 has no effect: nothing is drawn at temperature 0"),
        ({"fewshot": "nearest"}, None, ("strict",), "--protocol.fewshot nearest has no effect: --num-fewshot is 0"),
    ],
)
def test_options_without_effect_are_named(options, silent, names, said):
    (line,) = _said(names, **options)
    assert line.startswith(f"note: {said}")
    if silent:  # one protocol that reads it is enough
        assert _said((*names, silent), **options) == []


def test_options_that_have_an_effect_are_not_named():
    assert _said(("strict",), temperature=0.5, top_p=0.5, samples=2, max_new_tokens=4) == []
    assert _said(("choice-logprob",), continuation="letter", normalise="token") == []


def test_choices_without_letters_are_told_where_letters_are_asked_for():
    (line,) = _said(("strict",), sources=["{{question}}\n{{input}}\n"])
    assert line.startswith(
        "note: t0.txt: task exam: item one: the choices stand in the prompt without their letters, and strict reads "
        "letters only; write a line for each: "
    )
    advice = line.partition("for each: ")[2]
    by_hand = (
        "{{question}} (Ａ) {{choices[0]}}　(B): {{choices[1]}}, c.{{choices[2]}} d {{choices[3]}} [e] {{choices[4]}}"
    )
    for shown in ("{{question}}\n" + advice, LINES, "{{question}} {{input}} ({{letters|join}})", by_hand):
        assert _said(("strict", "kasai", "cot"), sources=[shown]) == []
    numbered = LINES.replace("letter|upper", "loop.index")
    assert len(_said(("strict", "cot"), sources=[numbered, LINES, "{{input}} {{question}}"])) == 2
    # texts are compared there
    assert _said(("choice-logprob", "gestalt"), sources=["{{question}}\n{{input}}\n"]) == []
    assert len(_said(("choice-logprob",), sources=["{{question}} {{input}}"], continuation="letter")) == 1


def test_a_question_that_letters_its_own_choices_needs_none():
    item = Item("in", "Which? (A) Fever (B) cough", ("fever", "cough"), ("a",))
    assert _said(("strict",), (item,), ["{{question}}\nAnswer:"]) == []
    item = Item("in", "Fever (1) or cough (2)?", ("fever", "cough"), ("a",))
    assert len(_said(("strict",), (item,), ["{{question}}\nAnswer:"])) == 1
