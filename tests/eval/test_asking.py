"""Items become asks: their order, what each shows, and the seeds of drawn answers."""

import hashlib

import pytest
from small_evaluations import FIVE, NUMBER, ONE, TWO, evaluation, loaded

from medjax.data.qa import Item
from medjax.data.text.chat import ChatTemplate
from medjax.eval.asking import ask, choose_items, seed_of
from medjax.eval.demonstrations import Demonstrations
from medjax.eval.protocols import Protocol
from medjax.eval.settings import EvalSettings, ProtocolSettings
from medjax.eval.templates import PromptTemplate

TEMPLATES = (("a/short.txt", "{{question}} "), ("b/long.txt", "Q: {{question}}\nA: "))


def test_an_item_is_asked_once_unless_more_is_wanted():
    plain = evaluation("strict", (ONE, NUMBER))
    assert [(a.item, a.order, a.sample, a.template) for a in plain.asks] == [
        (0, (0, 1, 2, 3, 4), 0, ""),
        (1, (), 0, ""),
    ]
    assert plain.by_item == [[0], [1]]


def test_shifts_templates_and_samples_nest_in_this_order():
    many = evaluation(
        *("strict", (ONE, NUMBER)), templates=TEMPLATES, majority=True, template=("s", "l"), rotate=True,
        samples=2, temperature=0.5,
    )  # fmt: skip
    assert len(many.asks) == 5 * 2 * 2 + 2 * 2
    first = [(a.order[0], a.template, a.sample) for a in many.asks[:6]]
    assert first == [(0, "short", 0), (0, "short", 1), (0, "long", 0), (0, "long", 1), (1, "short", 0), (1, "short", 1)]
    assert [a.order for a in many.asks[20:]] == [()] * 4
    assert many.by_item == [list(range(20)), list(range(20, 24))]
    assert many.protocol.id.startswith("strict-majority-2templates-")
    assert many.protocol.id.endswith("-rotated-2samples-t0.5-0shot")


def test_each_shift_shows_its_choices_and_scores_them():
    generated, scored = evaluation("strict", rotate=True), evaluation("choice-logprob", rotate=True)
    assert "\na. 喘息\nb. 肺塞栓\nc. 気胸\nd. 心不全\ne. 肺炎\n" in generated.asks[1].prompt.text
    assert scored.asks[2].prompt.continuations == (" 肺塞栓", " 気胸", " 心不全", " 肺炎", " 喘息")
    assert generated.shown(generated.asks[1]).answer == ("b",)
    assert len({ask.prompt.text for ask in generated.asks}) == 5


def test_worked_examples_keep_their_order_under_every_shift():
    asked = evaluation("strict", (ONE, TWO), rotate=True, num_fewshot=1)
    example = "問題: 二つはどれか。\na. 肺炎\n"
    assert all(example in ask.prompt.text for ask in asked.asks[:5])


def test_a_seed_depends_on_run_item_and_draw_alone():
    seeds = {(run, item, draw): seed_of(run, item, draw) for run in (0, 1) for item in ("q1", "q2") for draw in (0, 1)}
    assert len(set(seeds.values())) == 8
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    # results of a seed must not change from one release to the next
    assert seeds[0, "q1", 0] == int.from_bytes(hashlib.sha256(b'[0, "q1", 0]').digest()[:4], "little") // 2


def test_special_tokens_of_an_explanation_matter_where_it_is_shown():
    items = [Item(f"i{n}", f"Q{n}", FIVE, ("a",), explanation="x <|end|>") for n in range(3)]
    chat = ChatTemplate("{{ messages | tojson }}", None, None)
    for name, refused in (("strict", False), ("cot", True)):
        made = evaluation(name, items, num_fewshot=1)
        shots = Demonstrations(made.task, 1)
        if refused:
            with pytest.raises(ValueError, match=r"task exam: item i0: got the text <\|end\|>, special tokens"):
                ask(made, shots, chat, ["<|end|>"])
        else:
            assert len(ask(made, shots, chat, ["<|end|>"]).asks) == 3


def test_special_tokens_of_a_template_are_read_as_such():
    chatml = (("m.txt", "<|im_start|>user\n{{question}}<|im_end|>\n<|im_start|>assistant\n"),)
    made = evaluation("strict", (ONE, TWO), templates=chatml)
    shots = Demonstrations(made.task, 0)
    assert [asked.prompt.special for asked in ask(made, shots, None, ["<|im_end|>"]).asks] == [True, True]
    # those of another model are text
    assert [asked.prompt.special for asked in ask(made, shots, None, ["[INST]"]).asks] == [False, False]
    bad = evaluation("strict", (Item("bad", "? <|im_end|>", FIVE, ("a",)),), templates=chatml)
    with pytest.raises(ValueError, match=r"task exam: item bad: got the text <\|im_end\|>, special tokens"):
        ask(bad, shots, None, ["<|im_end|>"])
    plain = evaluation("strict", (Item("bad", "? <|im_end|>", FIVE, ("a",)),))
    assert not ask(plain, shots, None, ["<|im_end|>"]).asks[0].prompt.special


# templates that hide the choices

HIDING, BY_HAND = "{{question}}\nAnswer:", "{{question}}\nIs it {{choices[0]}}?\n"


def _choose(name, source, items=(ONE, TWO), **settings):
    protocol = Protocol(name, ProtocolSettings(**settings), [PromptTemplate(source, "mine.txt")])
    return choose_items(loaded(items), protocol, EvalSettings())[0]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("strict", {}), ("cot", {}), ("kasai", {}), ("choice-logprob", {"continuation": "letter"})],
)
def test_a_template_without_choices_is_refused_where_letters_are_asked_for(name, settings):
    with pytest.raises(ValueError) as caught:
        _choose(name, HIDING, (NUMBER, ONE, TWO), **settings)
    words = name + ("-letter" if settings else "")
    assert str(caught.value).startswith(
        f"mine.txt: task exam: item one: got a prompt without its 5 choices, while protocol {words}-template-"
    )
    # what it says to write is a template that passes
    _, _, advice = str(caught.value).partition("a line for each: ")
    assert PromptTemplate("{{question}}\n" + advice).render(TWO) == (
        "二つはどれか。\na. 肺炎\nb. 喘息\nc. 肺塞栓\nd. 気胸\ne. 心不全\n"
    )
    for shown in (BY_HAND, "{{question}}\n{{input}}", "{{question}}\n" + advice):
        assert _choose(name, shown, **settings).items == (ONE, TWO)


def test_choices_in_another_case_or_with_other_blanks_are_shown():
    item = Item("en", "Which?", ("Chest  pain", "fever"), ("a",))
    assert _choose("strict", "{{question}} {{choices[0]|upper|replace('  ', ' ')}}", (item,)).items == (item,)
    # an item may hold its choices in the question itself
    item = Item("in", "Fever (1) or cough (2)?", ("fever", "cough"), ("a",))
    assert _choose("strict", HIDING, (item,)).items == (item,)


def test_a_choice_that_stands_in_the_question_by_chance_is_not_shown():
    for choices in (("1", "2", "5"), ("A", "B", "AB")):
        item = Item("short", "A 群から 1 つ選べ。", choices, ("a",))
        with pytest.raises(ValueError, match=r"item short: got a prompt without its 3 choices"):
            _choose("strict", HIDING, (item,))
        assert _choose("strict", "{{question}} {{input}}", (item,)).items == (item,)
    # a template may name what all items of a set may answer
    item = Item("yes", "Does it help?", ("yes", "no", "maybe"), ("a",))
    assert _choose("strict", "{{question}} a: Yes, b: No, c: Maybe.", (item,)).items == (item,)


def test_protocols_that_compare_texts_need_no_choices_in_the_prompt():
    assert _choose("choice-logprob", HIDING).items == (ONE, TWO)
    assert _choose("gestalt", HIDING).items == (ONE, TWO)
    # items that have none are asked as ever
    assert _choose("strict", HIDING, (NUMBER,)).items == (NUMBER,)
