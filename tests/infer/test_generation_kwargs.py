from types import SimpleNamespace

import pytest

from medjax.infer.generation_kwargs import Wanted, answer, draw_seeds, read_generation


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({}, Wanted((), 256, 0.0, 1.0)),
        ({"until": "\n", "max_gen_toks": 32, "do_sample": False, "temperature": 0.7}, Wanted(("\n",), 32, 0.0, 1.0)),
        ({"until": ["Q:", ""], "max_tokens": 9, "max_new_tokens": "7"}, Wanted(("Q:",), 7, 0.0, 1.0)),
        ({"temperature": 0.7, "top_p": 0.95}, Wanted((), 256, 0.7, 0.95)),
        ({"do_sample": True}, Wanted((), 256, 1.0, 1.0)),
        ({"do_sample": True, "temperature": 0.0, "top_k": 40}, Wanted((), 256, 0.0, 1.0)),
        ({"until": None, "top_k": None, "num_beams": 1, "use_cache": True}, Wanted((), 256, 0.0, 1.0)),
    ],
)
def test_what_tasks_write_and_what_is_meant(kwargs, wanted):
    assert read_generation(kwargs) == wanted


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        (
            {"num_beams": 10},
            r"got num_beams=10, expected only do_sample, max_.*; take it out .* --gen_kwargs num_beams=No",
        ),
        ({"do_sample": True, "top_k": 40}, "got top_k=40, expected only"),
        ({"max_gen_toks": -1}, "got max_gen_toks=-1, expected a whole number above 0"),
        ({"max_tokens": 8.5}, r"got max_tokens=8\.5, expected a whole number above 0"),
        ({"temperature": "warm"}, "got temperature='warm', expected a number"),
        ({"top_p": [0.9]}, r"got top_p=\[0\.9\], expected a number"),
    ],
)
def test_what_would_change_the_text_is_refused(kwargs, told):
    with pytest.raises(ValueError, match=told):
        read_generation(kwargs)


@pytest.mark.parametrize(
    ("tokens", "stops", "expected"),
    [
        ((1, 2, 3, 4), (), "one two three four"),
        ((1, 2, 9, 4), (), "one two"),  # 9 is a special token that the task stops at
        ((1, 2, 9, 9), ("two",), "one "),
        ((9, 1), (), ""),
        ((1, 2, 3), ("three", "one"), ""),
    ],
)
def test_an_answer_ends_at_the_first_stop_be_it_text_or_a_special_token(tokens, stops, expected):
    words = {1: "one", 2: "two", 3: "three", 4: "four"}

    def decode(ids):
        return " ".join(words[i] for i in ids if i in words)

    generation = SimpleNamespace(tokens=tokens, text=decode(tokens))
    assert answer(generation, stops, {9}, decode) == expected


def test_seeds_hang_on_the_prompt_and_its_repeat_alone():
    first, second, again = draw_seeds(["a", "b", "a"], 0)
    assert len({first, second, again}) == 3
    assert draw_seeds(["b", "x", "a", "a"], 0)[::2] == [second, first]
    assert draw_seeds(["a", "a"], 0)[1] == again
    assert draw_seeds(["a"], 1) != [first]
