"""Prompt templates: published ones to the byte, their variables, their sandbox, and what is refused."""

import hashlib

import pytest

from medjax.data.exams.tasks import load_task
from medjax.data.qa import Item
from medjax.eval.protocols import Protocol
from medjax.eval.settings import ProtocolSettings
from medjax.eval.templates import PromptTemplate, labels

ITEM = Item("q", "正しいのはどれか。2つ選べ。", ("肺炎", "喘息", "肺塞栓", "気胸", "心不全"), ("b", "d"))
TEMPLATES = (
    *("alpaca", "alpaca_ja", "medpalm_five_choice_cot", "medpalm_five_choice_cot_ja"),
    *("alpaca_med_five_choice_cot", "alpaca_med_five_choice_cot_ja"),
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_published_templates_are_filled_to_the_byte(shared_data, name):
    path = shared_data / "prompts" / f"{name}.txt"
    source = path.read_bytes()
    pinned = (shared_data / "prompts" / "README.md").read_text("utf-8")
    assert f"`{hashlib.sha256(source).hexdigest()}`" in pinned
    items = [
        ITEM,
        Item("t", "1 < 2 & {{input}} {% if %} \"quotes\" 'で\u3099'", ("<b>", "{x}", "a,b", "\\n", "％"), ("a",)),
        *load_task("igakuqa", years=[2022], sections=["A"], data_dir=shared_data).items,
    ]
    template = PromptTemplate.read(path)
    assert template.digest == hashlib.sha256(source).hexdigest()
    protocol = Protocol("gestalt", ProtocolSettings(), [template])
    for item in items:
        filled = source.decode("utf-8").replace("{{instruction}}", "\0").replace("{{input}}", ",".join(item.choices))
        expected = filled.replace("\0", item.question)
        prompt = protocol.prompt(item, (), "ja", None)
        assert prompt.text.encode() == expected.encode()
        assert prompt.text.endswith(("応答：\n", "Response:\n"))
    if name == "alpaca_ja":
        assert "て\u3099" in protocol.prompt(ITEM, (), "ja", None).text


def test_every_variable_of_a_template():
    source = "{{context}}|{{question}}|{{instruction}}|{{input}}|{{choices[1]}}|{{letters|join}}|{{num_answers}}"
    item = Item("q", "Q", ("x", "y"), ("a", "b"), context="C")
    assert PromptTemplate(source).render(item) == "C|Q|C\nQ|x,y|y|ab|2"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ question.__class__ }}",
        "{{ question.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__init__.__globals__ }}",
        "{{ question.format.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(question) }}",
        "{{ choices.append('x') }}{{ question }}",
        "{{ range(1000000000)|list }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack):
    with pytest.raises(ValueError, match=r"^f\.txt: item q: (SecurityError|OverflowError): "):
        PromptTemplate("{{ question }}" + attack, "f.txt").render(ITEM)


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfQ: {{question}}\r\n{{input}}\r\n")
    assert PromptTemplate.read(tmp_path / "t.txt").render(ITEM) == f"Q: {ITEM.question}\n{','.join(ITEM.choices)}\n"


def test_template_errors_name_file_and_cause(tmp_path):
    path = tmp_path / "t.txt"

    def message(source: bytes):
        path.write_bytes(source)
        with pytest.raises(ValueError) as caught:
            PromptTemplate.read(path)
        return str(caught.value).removeprefix(str(path))

    variables = "instruction, input, question, choices, letters, context, num_answers"
    assert message(b"{{instrution}}\n") == (
        f": got {{{{instrution}}}}, expected some of {variables}; did you mean {{{{instruction}}}}?"
    )
    assert message(b"{{question}} {{few_shots}}") == (
        f": got {{{{few_shots}}}}, expected some of {variables}; drop it; worked examples (--num-fewshot) stand before "
        "the question by themselves."
    )
    assert message(b"{{input}}") == (
        ": got no {{instruction}}, expected it or {{question}}; write it where the question is."
    )
    assert message(b"plain text").startswith(": got no {{instruction}}")
    assert message(b"x\n{{question") == (
        ", line 2: unexpected end of template, expected 'end of print statement', expected Jinja or Liquid braces; "
        "close what is open."
    )
    assert message(b"\x83\xbf{{question}}") == ": byte 0 is not UTF-8; save the file as UTF-8."
    with pytest.raises(FileNotFoundError, match=r"none\.txt: No such file"):
        PromptTemplate.read(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match=r"Is a directory; expected a file with a prompt template"):
        PromptTemplate.read(tmp_path)
    with pytest.raises(ValueError, match=r"^template: item q: ZeroDivisionError"):
        PromptTemplate("{{question}}{{1/0}}").render(ITEM)


# several templates


def test_a_template_is_called_by_its_file_and_by_its_content_where_names_repeat():
    one, two, three = (PromptTemplate(f"{{{{question}}}}{n}", f"{n % 2}/t.txt") for n in range(3))
    other = PromptTemplate("Q {{question}}", "other.txt")
    assert labels([one, other]) == ("t", "other")
    assert labels([one, two]) == (f"t-{one.digest[:8]}", f"t-{two.digest[:8]}")
    assert labels([]) == ()
    with pytest.raises(ValueError, match=r"template: got 0/t\.txt, copy\.txt, which have the same content"):
        labels([one, three, PromptTemplate("{{question}}0", "copy.txt")])


def test_meditron_style_lines_of_options():
    source = (
        "<|im_start|>question\n{{question}}\n\nOptions:\n"
        "{% for letter in letters %}({{letter|upper}}) {{choices[loop.index0]}}\n{% endfor %}"
        "<|im_end|>\n<|im_start|>answer\n"
    )
    assert PromptTemplate(source).render(ITEM) == (
        "<|im_start|>question\n正しいのはどれか。2つ選べ。\n\nOptions:\n"
        "(A) 肺炎\n(B) 喘息\n(C) 肺塞栓\n(D) 気胸\n(E) 心不全\n<|im_end|>\n<|im_start|>answer\n"
    )


def test_choices_with_commas_are_joined_as_the_harness_joins_them():
    item = Item("q", "?", ("Na 140, K 4.0", "x"), ("a",))
    assert PromptTemplate("{{question}}\n{{input}}\n").render(item) == "?\nNa 140, K 4.0,x\n"


def test_one_prompt_for_each_template():
    templates = [PromptTemplate(source, name) for source, name in (("1 {{question}}", "a"), ("2 {{question}}", "b"))]
    protocol = Protocol("strict", ProtocolSettings(template=("a", "b"), majority=True), templates)
    assert protocol.wordings == ("a", "b")
    assert [protocol.prompt(ITEM, (), "ja", None, number).text for number in (0, 1)] == [
        f"1 {ITEM.question}",
        f"2 {ITEM.question}",
    ]
    digests = "".join(template.digest for template in templates)
    assert protocol.id == f"strict-majority-2templates-{hashlib.sha256(digests.encode()).hexdigest()[:8]}-0shot"
