"""Reports in a real browser: they open without complaint; that of an exam filters, is quick, and needs no scripts."""

import math
import random
from itertools import pairwise

import pytest
from chromium import Browser, found
from exam_samples import doc, sample
from report_pages import evaluation, results, score, total

from medjax.report.comparison import comparison_report
from medjax.report.exam import exam_report

pytestmark = pytest.mark.skipif(found() is None, reason="no chromium on the path: install it to test the exam report")

BASE, ADAPTER = "mini_ja_strict-0shot", "mini_ja_strict-1shot"
HOSTILE = "</pre></script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'> ＥＣＧ 心電図"
SHOWN = "[...document.querySelectorAll('.question')]"
COUNT = "document.getElementById('question-count').textContent"
DATA = "document.getElementById('questions').dataset"


def chip(name):
    return f"document.querySelector('[name=filter][value={name}]').parentElement"


def change(name, value):
    """What a reader does with a field of the form."""
    form = "document.querySelector('#questions form')"
    return f"{form}.elements['{name}'].value = '{value}'; {form}.dispatchEvent(new Event('input')); {COUNT}"


def samples(count=2_000):
    """Two evaluations of the same questions: a third is right, a few cannot be read, one is hostile."""
    for name in (BASE, ADAPTER):
        dice = random.Random(5)  # the same questions again
        for number in range(count):
            question = doc(
                number, question=f"第{number}問。" + "".join(dice.choices("症例男女検査所見血圧胸部痛", k=160))
            )
            outcome = ("right", "wrong", "wrong")[number % 3]
            if number % 100 == 7:
                yield sample(name, question, "unparsed", picked=None, output="申し訳ありません。" * 20)
            elif number == 33 and name == BASE:
                yield sample(name, {**question, "prohibited": ["b"]}, output=HOSTILE, prohibited=True)
            else:
                scores = [math.log(p) for p in (0.5, 0.25, 0.15, 0.06, 0.04)] if name == ADAPTER else None
                yield sample(name, question, outcome, output="a\n" + "理由。" * 30, scores=scores)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    counts = {"right": 667, "wrong": 1313, "unparsed": 20, "cut_off": 0, "too_long": 0, "not_asked": 0}
    made = score(667, 2_000, (0.31, 0.36), outcomes=counts, by_exam={}, by_category={"神経": total(1, 2)})
    heads = [evaluation(n, scores=made) for n in (0, 1)]
    examples = [{"evaluation": BASE, "item": doc(1), "picked": ["a"], "text": "a", "outcome": "wrong"}]
    path.write_text(exam_report(results(*heads, examples=examples), samples()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser, report):
    """The report, freshly opened."""
    browser.errors.clear()
    browser.open(report)
    yield browser
    assert browser.errors == []


def test_it_opens_with_every_answer_and_no_complaint(tab):
    assert tab.value(COUNT) == "1 to 50 of 4,000 answers"
    assert tab.value(f"{SHOWN}.length") == 50
    assert tab.value("document.title") == "SmolLM2-135M-Instruct: exam report"
    offered = tab.value("[...document.querySelectorAll('[name=exam] option')].map((option) => option.textContent)")
    assert offered == ["all", "2018", "2019", "2020", "2021", "2022"]


def test_two_thousand_questions_are_quick(tab):
    assert tab.value(f"Number({DATA}.openMs)") < 1_000
    tab.value(change("q", "第1"))  # builds what is searched
    # the shortest of a few, as other work on the machine is not the page's
    for name, value in (("q", "所見"), ("filter", "wrong"), ("category", "神経"), ("q", "")):
        times = []
        for _ in range(5):
            tab.value(change(name, value))
            times.append(float(tab.value(f"{DATA}.filterMs")))
        assert 0 < min(times) < 100, (name, times)


def test_the_address_sets_the_filters(tab, report):
    tab.open(report, "#filter=wrong&evaluation=1&exam=2019&section=B&category=神経&image=no")
    numbers = [n for n in range(2_000) if n % 5 == 1 and n % 2 and n % 3 == 1 and n % 4 and n % 100 != 7]
    assert tab.value(f"Number({DATA}.found)") == len(numbers)
    assert tab.value(f"{SHOWN}.map((row) => row.querySelector('.id').textContent)") == [f"q{n}" for n in numbers][:50]
    assert tab.value(f"new Set({SHOWN}.map((row) => row.querySelector('.tag').textContent)).size") == 1
    tab.open(report, "#filter=nonsense&exam=1999&page=80")
    assert tab.value(COUNT) == "3,951 to 4,000 of 4,000 answers"
    tab.open(report, "#page=2.5")
    assert tab.value(COUNT) == "51 to 100 of 4,000 answers"
    tab.open(report, "#protocol")  # a place on the page, not a filter
    assert tab.value(COUNT) == "1 to 50 of 4,000 answers"


def test_a_reader_filters_and_the_address_follows(tab):
    assert tab.value(f"{chip('unparsed')}.querySelector('b').textContent") == "40"
    tab.value(f"{chip('unparsed')}.querySelector('input').click()")
    assert tab.value(COUNT) == "1 to 40 of 40 answers"
    assert tab.value(change("evaluation", "2")) == "1 to 20 of 20 answers"
    # what was met by neither evaluation is not offered
    offered = (
        "[...document.querySelectorAll('[name=filter]')].filter((i) => !i.parentElement.hidden).map((i) => i.value)"
    )
    assert tab.value(offered) == ["all", "right", "wrong", "unparsed", "prohibited"]
    tab.value("new Promise((done) => setTimeout(done, 400))")
    assert tab.value("location.hash") == "#filter=unparsed&evaluation=2"
    tab.value("document.querySelector('button[type=reset]').click(); new Promise((done) => setTimeout(done, 50))")
    assert tab.value(COUNT) == "1 to 50 of 4,000 answers"


def test_search_is_by_words_of_any_width_and_case(tab):
    for words, count in (
        ("ecg", 1),
        ("心電図 img", 1),
        ("心電図 nothing", 0),
        ("第33問", 2),
        ("申し訳", 40),
        ("Q1999", 2),
    ):
        tab.value(change("q", words))
        assert tab.value(f"Number({DATA}.found)") == count, words
    tab.value(change("q", "nobody wrote this"))
    assert tab.value(COUNT) == "No answer matches. Take back a filter, or search for fewer words."


def test_details_are_filled_when_they_are_opened(tab, report):
    tab.open(report, "#q=q8&evaluation=2")
    row = "document.querySelector('.question')"
    assert tab.value(f"{row}.childElementCount") == 1
    tab.value(f"{row}.querySelector('summary').click(); new Promise((done) => setTimeout(done, 50))")
    shown = tab.value(f"[...{row}.querySelectorAll('.score')].map((score) => score.textContent)")
    assert shown == [f"−{-math.log(p):.2f} · {100 * p:.1f}\u00a0%" for p in (0.5, 0.25, 0.15, 0.06, 0.04)]
    wide = tab.value(f"[...{row}.querySelectorAll('.bar i')].map((bar) => bar.style.width)")
    assert wide == ["50%", "25%", "15%", "6%", "4%"]
    facts = tab.value(f"[...{row}.querySelectorAll('.facts > div')].map((fact) => fact.innerText.replace('\\n', ': '))")
    assert facts == [
        "Right answer: d",
        "Read from the output: a",
        "Points: 0 of 1",
        "Needs an image: yes; the model saw the text alone",
    ]
    assert tab.value(f"{row}.querySelector('.prompt pre').textContent").startswith("頭\n第8問。")
    assert "strict-0shot: a" in tab.value(f"{row}.querySelector('.others').textContent")
    choices = tab.value(f"[...{row}.querySelectorAll('.choices li')].map((choice) => choice.className)")
    assert choices == ["picked", "", "", "gold", ""]


def test_hostile_output_stays_text(tab):
    tab.value(change("q", "window.pwned"))
    tab.value("document.querySelector('.question summary').click(); new Promise((done) => setTimeout(done, 50))")
    assert tab.value("document.querySelector('.question .output').textContent") == HOSTILE
    assert tab.value("document.querySelectorAll('#question-list :is(script, img)').length") == 0
    assert tab.value("typeof window.pwned") == "undefined"
    assert tab.value(f"{chip('prohibited')}.querySelector('b').textContent") == "1"


def test_foreign_scripts_are_refused(tab):
    tab.value(
        "const script = document.createElement('script'); script.textContent = 'window.pwned = 3'; "
        "document.body.append(script)"
    )
    assert tab.value("typeof window.pwned") == "undefined"
    assert len(tab.errors) == 1
    assert "Content Security Policy" in tab.errors.pop()


def test_keys_search_turn_pages_and_open(tab):
    tab.key("/")
    tab.write("第")
    assert tab.value("[document.activeElement.name, document.activeElement.value]") == ["q", "第"]
    tab.value("document.querySelector('#question-pages [name=next]').focus()")
    tab.key("Enter", "\r")
    assert tab.value(COUNT) == "51 to 100 of 4,000 answers"
    assert tab.value("document.activeElement === document.querySelector('.question summary')")
    tab.key("Enter", "\r")
    tab.value("new Promise((done) => setTimeout(done, 50))")
    assert tab.value("document.querySelector('.question').open")
    assert tab.value("document.querySelector('.question .answer') !== null")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(tab, report, width):
    tab.resize(width, 900, phone=width < 500)
    tab.open(report, "#q=window.pwned")
    tab.value("document.querySelector('.question summary').click(); new Promise((done) => setTimeout(done, 50))")
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    tab.resize(1280, 1600)


def test_wide_windows_are_filled_and_narrow_ones_stacked(browser, tmp_path):
    path = tmp_path / "report.html"
    bins = [{"from": 0.4, "to": 0.5, "human_accuracy": 0.45, "items": 20, "accuracy": 0.25, "low": 0.1, "high": 0.5}]
    path.write_text(
        exam_report(
            results(
                evaluation(difficulty={"items": 20, "human_accuracy": 0.45, "accuracy": 0.25, "bins": bins}),
                evaluation(),
            )
        ),
        encoding="utf-8",
    )
    boxes = "['#evaluation-1 .card', '#evaluation-1 figure', '#evaluation-2 .card', '#summary']"
    boxes += ".map((which) => document.querySelector(which).getBoundingClientRect())"
    places = f"{boxes}.map((box) => [box.left, box.top, box.right])"
    try:
        browser.open(path)
        card, figure, alone, whole = browser.value(places)
        assert card[1] == figure[1]  # side by side
        assert card[2] < figure[0]
        # to the edge of the page: the figure with its caption, and a card that has no figure beside it
        assert [figure[2], alone[2]] == [pytest.approx(whole[2], abs=1)] * 2
        browser.resize(390, 844, phone=True)
        browser.open(path)
        card, figure, alone, whole = browser.value(places)
        assert (card[0], alone[0]) == (whole[0], whole[0])
        assert card[1] < figure[1]
        name = browser.value("document.querySelector('#summary tbody th').getBoundingClientRect().width")
        assert name > (whole[2] - whole[0]) / 2  # the verdict takes the rest of its line
    finally:
        browser.resize(1280, 1600)


def test_colours_follow_the_system_and_the_reader(tab):
    ground = "getComputedStyle(document.body).backgroundColor"
    white, dark = "rgb(255, 255, 255)", "rgb(17, 22, 29)"
    seen = []
    for system in ("light", "dark"):
        tab.scheme(system)
        for choice in ("auto", "light", "dark"):
            tab.value(f"document.getElementById('scheme-{choice}').click()")
            seen.append(tab.value(ground))
    tab.scheme("light")
    assert seen == [white, white, dark, dark, white, dark]


def test_without_scripts_tables_and_examples_stand(tab, report):
    tab.scripts(allowed=False)
    try:
        tab.open(report)
        assert tab.value("document.querySelector('#questions form').offsetHeight") == 0
        assert tab.value("document.querySelector('noscript .example').offsetHeight") > 50
        assert tab.value("document.querySelector('#summary tbody tr').offsetHeight") > 20
        assert tab.value("document.querySelector('svg.stack').getBoundingClientRect().width") > 200
    finally:
        tab.scripts(allowed=True)


def test_every_field_and_part_has_a_name(tab):
    unnamed = tab.value(
        "[...document.querySelectorAll('input, select, button')].filter((field) => "
        "!(field.labels?.length || field.textContent.trim())).map((field) => field.outerHTML)"
    )
    assert unnamed == []
    assert tab.value("document.getElementById('question-count').getAttribute('aria-live')") == "polite"
    levels = tab.value("[...document.querySelectorAll('h1, h2, h3, h4')].map((heading) => Number(heading.tagName[1]))")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    ids = tab.value("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


def test_a_comparison_fits_a_phone_and_complains_of_nothing(browser, tmp_path):
    difference = {"accuracy_difference": 0.1, "accuracy_difference_interval": [0.02, 0.18], "points_difference": 7}
    metric = {"metric": "kappa", "items": 80, "first": 0.2, "second": 0.5, "difference": 0.3, "p_value": 0.01}
    metric |= {"difference_interval": [0.1, 0.5], "p_holm": 0.02, "higher_is_better": True}
    entry = {
        **{"task": "rrtnm", "language": "ja", "protocol": "strict-0shot", "items": 80, "left_out": 2, **difference},
        **{"first_accuracy": 0.4, "second_accuracy": 0.5, "only_first": 3, "only_second": 11, "cohen_g": 0.29},
        **{"odds_ratio": 3.67, "odds_ratio_interval": [0.97, 20.5], "p_value": 0.057, "p_holm": 0.057},
        **{"has_answers": True, "metrics": [metric], "won_count": 1, "lost_count": 0},
        **{"first_label": "one", "second_label": "two"},
    }
    runs = [
        {"label": name, "path": f"runs/eval/{name}", "model": HOSTILE, "adapter": "", "date": None, "dtype": "float32"}
        | {"quantisation": None}
        for name in ("one", "two")
    ]
    given = {"picked": None, "output": HOSTILE, "truncated": True}
    question = {"id": HOSTILE, "question": HOSTILE, "choices": [HOSTILE, "b"], "answer": ["a"], "first": given}
    found = {"runs": runs, "comparisons": [entry], "differences": [], "notes": [HOSTILE], "exams": [], "resamples": 9}
    page = tmp_path / "comparison.html"
    page.write_text(
        comparison_report(found | {"seed": 0}, [{"won": [question | {"second": given}], "lost": []}]), "utf-8"
    )
    browser.errors.clear()
    try:
        browser.resize(390, 844, phone=True)
        browser.open(page)
        assert browser.value("document.documentElement.scrollWidth") <= 390
        # where the heads of the columns are gone, the corrected p says what it is
        last = "[...document.querySelectorAll(':is(#comparisons, #graded) td:last-child')]"
        assert browser.value(f"{last}.map((cell) => cell.innerText)") == ["0.057\nHolm 0.057", "0.01\nHolm 0.02"]
        cells = "[...document.querySelectorAll('.results td:not(.chart)')].map((cell) => cell.dataset.label)"
        assert all(browser.value(cells))
    finally:
        browser.resize(1280, 1600)
    assert browser.value("[...document.querySelectorAll('#graded td')].map((cell) => cell.innerText)[1]") == "kappa"
    assert browser.value("document.querySelector('.question pre').textContent") == HOSTILE
    assert browser.value("document.querySelectorAll(':is(script, img)').length + typeof window.pwned") == "0undefined"
    assert browser.errors == []


def test_on_a_phone_every_cell_says_what_it_is(browser, tmp_path):
    graded = {"value": 0.4, "interval": [0.2, 0.6], "chance": 0.25, "items": 20, "bounds": [0, 1]}
    graded |= {"higher_is_better": True, "unparsed": 1, "cut_off": 2, "too_long": 0, "no_interval": ""}
    path = tmp_path / "report.html"
    path.write_text(exam_report(results(evaluation(metrics={"kappa": graded}, headline=["kappa"]))), encoding="utf-8")
    try:
        browser.resize(390, 844, phone=True)
        browser.open(path)
        cells = "[...document.querySelectorAll('.results.graded td:not(.chart)')]"
        assert browser.value(f"{cells}.map((cell) => cell.dataset.label)") == [
            *("Value", "95 % interval", "By chance", "Range", "Questions", "Unparsed", "Cut off"),
        ]
        assert browser.value(f"{cells}.every((cell) => getComputedStyle(cell, '::before').content.length > 4)")
    finally:
        browser.resize(1280, 1600)
