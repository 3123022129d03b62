"""From asks to outputs with an engine that says what it is told to: steps, seeds, journals, and what is too long."""

from types import SimpleNamespace

import pytest
from small_evaluations import FIVE, NUMBER, ONE, TWO, evaluation

from medjax.data.qa import Item
from medjax.data.text.chat import ChatTemplate
from medjax.eval import outputs
from medjax.eval.asking import seed_of
from medjax.eval.outputs import questions
from medjax.eval.reading import ForcedGeneration, read_answers
from medjax.eval.settings import EvalSettings
from medjax.eval.shards import WHOLE
from medjax.infer.generator import TOO_LONG, Generation
from medjax.infer.sampling import Sampling
from medjax.infer.scorer import Score, Work
from medjax.report.progress import ProgressBar
from medjax.store.runs import Journal

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|><think>\n"
THINKING = ChatTemplate(TURNS, None, None)


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text, *, bos=None, special=False):
        return [ord(letter) for letter in text]

    def encode_pairs(self, context, continuations, *, bos=None, special=False):
        return self.encode(context), [self.encode(text) for text in continuations]


@pytest.fixture
def engine(monkeypatch):
    """Engines in place of Generator and Scorer: `say` gives the text for a prompt, `asked` holds every call."""
    state = SimpleNamespace(say=lambda prompt: ("c", "stop"), asked=[], scored=[])

    class FakeGenerator:
        def __init__(self, programs, tokenizer, *, batch_size, row_tokens, int8_cache):
            self.work = Work()

        def generate(self, prompts, *, done, on_generations, **options):
            texts = ["".join(map(chr, prompt)) for prompt in prompts]
            new = [i for i in range(len(prompts)) if i not in done]
            state.asked.append(SimpleNamespace(prompts=[texts[i] for i in new], **options))
            found = {i: Generation((7,), *state.say(texts[i])) for i in new}
            on_generations(found)
            return [{**found, **done}[i] for i in range(len(prompts))]

    class FakeScorer:
        def __init__(self, programs, *, row_tokens):
            self.work = Work()

        def score(self, requests, *, done, on_scores):
            state.scored.append(requests)
            return [Score((-1.0,), False) for _ in requests]

    monkeypatch.setattr(outputs, "Generator", FakeGenerator)
    monkeypatch.setattr(outputs, "Scorer", FakeScorer)
    return state


def _model(context=4096):
    return SimpleNamespace(tokenizer=Letters(), decoder=SimpleNamespace(config=SimpleNamespace(max_length=context)))


def _long(count):
    return Item("long", "長" * count, FIVE, ("a",))


def _run(made, tmp_path, *, context=4096, seed=0):
    tmp_path.mkdir(exist_ok=True)
    asked = questions(made, _model(context), EvalSettings(seed=seed))
    with ProgressBar(False, "") as bar:
        return asked.call(None, Journal(tmp_path / "journal.jsonl", "run"), bar, WHOLE)


# reasoning


def test_an_item_is_finished_when_its_answer_is_not_when_its_reasoning_is(engine, tmp_path, monkeypatch):
    reached = []
    monkeypatch.setattr(ProgressBar, "reach", lambda bar, done, total: reached.append((done, total)))
    made = evaluation("cot", (ONE, _long(900), TWO, NUMBER), think_tokens=10, max_new_tokens=10)
    engine.say = lambda prompt: (" c", "stop") if prompt.endswith("\n答え:") else ("考える", "length")
    _run(made, tmp_path, context=500)
    # half of the work on three, to begin with; what is too long is not waited for
    assert reached == [(0, 3), (1, 3), (3, 3)]


def test_reasoning_gets_its_budget_and_an_answer_is_forced_where_none_was_written(engine, tmp_path):
    made = evaluation("cot", (ONE, TWO, NUMBER), think_tokens=100, max_new_tokens=6)
    said = {"一つ": ("肺炎を考えるが", "length"), "二つ": ("答え: a, d", "stop"), "いくつ": ("計算すると", "stop")}

    def say(prompt):
        if prompt.endswith("\n答え:"):
            return (" 7.20", "stop") if "いくつ" in prompt else (" c", "length")
        return next(answer for key, answer in said.items() if key in prompt)

    engine.say = say
    found, _, reused = _run(made, tmp_path)
    reasoning, forcing = engine.asked
    assert (reasoning.max_new_tokens, reasoning.stop) == (100, ("\n問題:", "\nQuestion:"))
    assert [prompt.endswith("\n考え方:") for prompt in reasoning.prompts] == [True] * 3
    assert (forcing.max_new_tokens, forcing.stop, len(forcing.prompts)) == (6, ("\n",), 2)
    assert forcing.prompts[0] == made.asks[0].prompt.text + "肺炎を考えるが\n答え:"
    assert [type(output) for output in found] == [ForcedGeneration, Generation, ForcedGeneration]
    assert (found[0].text, found[0].finish, found[0].tokens) == ("肺炎を考えるが\n答え: c", "length", (7, 7))
    answers = read_answers(made, found)
    assert [(a.picked, a.forced) for a in answers] == [(("c",), True), (("a", "d"), False), (("7.20",), True)]
    assert reused == 0
    engine.asked.clear()
    assert _run(made, tmp_path) == (found, Work(), 3)  # the journal knows both steps
    assert [call.prompts for call in engine.asked] == [[], []]


def test_choices_that_are_gone_through_as_the_budget_ends_are_no_answer(engine, tmp_path):
    made = evaluation("cot")
    listed = "選択肢を見る。\n" + "\n".join(f"{letter}. {text}" for letter, text in zip("abcde", FIVE, strict=True))
    engine.say = lambda prompt: ("c", "stop") if prompt.endswith("\n答え:") else (listed, "length")
    found, _, _ = _run(made, tmp_path)
    (answer,) = read_answers(made, found)
    assert (answer.picked, answer.forced) == (("c",), True)


@pytest.mark.parametrize(
    ("chat", "reasoning", "forced"),
    [
        (None, "肺炎\ufffd", "肺炎\n答え:"),  # the budget ended within a character
        (None, "<think>肺炎か", "<think>肺炎か\n</think>\n答え:"),
        (None, "<think>肺炎か</think>はて", "<think>肺炎か</think>はて\n答え:"),
        # opened by the chat template; what is announced inside is a thought
        (THINKING, "答え: aか", "答え: aか\n</think>\n答え:"),
        (THINKING, "a</think>はて", "a</think>はて\n答え:"),
    ],
)
def test_thoughts_that_are_still_open_are_closed_before_the_cue(engine, tmp_path, chat, reasoning, forced):
    made = evaluation("cot", chat=chat)
    engine.say = lambda prompt: ("c", "stop") if prompt.endswith("\n答え:") else (reasoning, "length")
    (output,), _, _ = _run(made, tmp_path)
    assert engine.asked[1].prompts == [made.asks[0].prompt.text + forced]
    assert output.text == forced + "c"
    assert read_answers(made, [output])[0].picked == ("c",)


def test_no_answer_is_forced_where_it_does_not_fit(engine, tmp_path):
    made = evaluation("cot", think_tokens=10, max_new_tokens=4)
    room = len(made.asks[0].prompt.text) + 10 + 4 + len("\n</reasoning>\n答え:")
    engine.say = lambda prompt: ("長" * 30, "length")  # more tokens when read again than when written
    (output,), _, _ = _run(made, tmp_path, context=room)
    assert (output, len(engine.asked)) == (Generation((7,), "長" * 30, "length"), 1)
    assert read_answers(made, [output])[0].verdict.outcome == "cut_off"
    assert _run(made, tmp_path / "other", context=room - 1)[0] == [TOO_LONG]


# drawn answers


def test_every_draw_has_its_own_seed(engine, tmp_path):
    made = evaluation("strict", (ONE, TWO), samples=2, temperature=0.7, top_p=0.9, rotate=True)
    _run(made, tmp_path, seed=3)
    (call,) = engine.asked
    expected = [Sampling(0.7, 0.9, seed_of(3, item, draw)) for item in ("one", "two") for _ in FIVE for draw in (0, 1)]
    assert call.sampling == expected
    assert len({sampling.seed for sampling in call.sampling}) == 4


def test_greedy_decoding_is_asked_for_without_sampling(engine, tmp_path):
    _run(evaluation("strict"), tmp_path)
    assert not hasattr(engine.asked[0], "sampling")
    assert (engine.asked[0].max_new_tokens, engine.asked[0].stop) == (32, ("\n",))


def test_an_interrupted_run_asks_only_for_what_is_missing(engine, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(ProgressBar, "begin", lambda bar, done, total: begun.append((done, total)))
    made = evaluation("strict", (ONE, TWO), samples=2, temperature=0.7)
    journal = Journal(tmp_path / "journal.jsonl", "run")
    known = [{"i": i, "tokens": [1], "text": text, "finish": "stop"} for i, text in ((0, "a"), (1, "b"), (2, "d"))]
    journal.append(known)
    found, _, reused = _run(made, tmp_path)
    assert [output.text for output in found] == ["a", "b", "d", "c"]
    assert (reused, len(engine.asked[0].prompts)) == (1, 1)  # of two items one was known whole
    assert begun == [(1, 2)]


# too long


def test_an_item_longer_than_the_context_is_marked_and_the_others_are_asked(engine, tmp_path):
    made = evaluation("strict", (ONE, _long(900), TWO))
    found, _, _ = _run(made, tmp_path, context=500)
    assert [output == TOO_LONG for output in found] == [False, True, False]
    assert len(engine.asked[0].prompts) == 2
    limit = len(made.asks[1].prompt.text) + 32
    assert TOO_LONG not in _run(made, tmp_path / "fits", context=limit)[0]
    assert _run(made, tmp_path / "one_less", context=limit - 1)[0][1] == TOO_LONG
    assert _run(evaluation("strict", (_long(900),)), tmp_path / "none", context=500)[0] == [TOO_LONG]


def test_one_prompt_that_is_too_long_takes_the_item_out(engine, tmp_path):
    templates = (("a.txt", "{{question}} "), ("b.txt", "x" * 300 + "{{question}} "))
    made = evaluation("strict", (ONE, NUMBER), templates=templates, majority=True, template=("a", "b"))
    found, _, _ = _run(made, tmp_path, context=330)
    assert found == [TOO_LONG] * 4
    assert engine.asked == []


def test_scored_choices_that_do_not_fit_are_not_scored(engine, tmp_path):
    made = evaluation("choice-logprob", (ONE, _long(900), NUMBER))
    found, _, _ = _run(made, tmp_path, context=500)
    assert [len(scores) if scores != TOO_LONG else None for scores in found] == [5, None, 0]
    (requests,) = engine.scored
    assert len(requests) == 5
    outcomes = [answer.verdict.outcome for answer in read_answers(made, found)]
    assert outcomes == ["wrong", "too_long", "not_asked"]
    # the longest continuation decides
    limit = len(made.asks[1].prompt.text) + len(" 肺塞栓")
    assert TOO_LONG not in _run(made, tmp_path / "fits", context=limit)[0]
    assert TOO_LONG in _run(made, tmp_path / "one_less", context=limit - 1)[0]


def test_digests_cover_every_ask():
    tokens = {questions(evaluation("strict", **more), _model(), EvalSettings()).tokens
              for more in ({}, {"rotate": True}, {"samples": 2, "temperature": 1.0}, {"language": "en"})}  # fmt: skip
    assert len(tokens) == 4
