"""What is told of a run folder that holds another run: options in words, then what was changed in place."""

from dataclasses import replace

import pytest

from medjax.config import to_toml
from medjax.eval.difference import difference
from medjax.eval.settings import EvalSettings, ProtocolSettings, TaskSettings
from medjax.infer.settings import EngineSettings, ModelSettings

IDENTITY = {
    "model": "m" * 64,
    "tokenizer": "t" * 64,
    "engine": {"devices": "1 x cpu"},
    "versions": {"jax": "0.6.0", "numpy": "2.0"},
    "evaluations": {name: {"data": "d" * 64, "prompts": "p" * 64, "tokens": "i" * 64} for name in ("mini_a", "mini_b")},
}
USUAL = EvalSettings()
MINI = IDENTITY["evaluations"]["mini_a"]


def _told(tmp_path, changed, settings, before=USUAL):
    (tmp_path / "config.toml").write_text(to_toml(before), "utf-8")
    return difference(tmp_path, settings)(IDENTITY, IDENTITY | changed)


@pytest.mark.parametrize(
    ("settings", "changed", "told"),
    [
        (  # the digests follow from the options
            EvalSettings(model=ModelSettings(name="other", dtype="bfloat16"), seed=3),
            {"model": "n" * 64, "tokenizer": "u" * 64, "seed": 3, "evaluations": {"mini_a": MINI | {"prompts": "q"}}},
            ["--model smollm2-135m -> other", "--dtype float32 -> bfloat16", "--seed 0 -> 3"],
        ),
        (
            EvalSettings(protocol=ProtocolSettings(names=("cot",), num_fewshot=2), task=TaskSettings(limit=5)),
            {"evaluations": {"mini_c": MINI}},
            ["--limit none -> 5", "--protocol none -> cot", "--num-fewshot 0 -> 2"],
        ),
        (EvalSettings(model=ModelSettings(adapter="A B")), {"adapter": "x"}, ["--adapter none -> 'A B'"]),
        # no option explains them
        (EvalSettings(), {"model": "n" * 64}, ["weights of the model: digest mmmmmmmmmmmm -> nnnnnnnnnnnn"]),
        (EvalSettings(), {"tokenizer": "u" * 64}, ["tokenizer: digest tttttttttttt -> uuuuuuuuuuuu"]),
        (EvalSettings(), {"adapter": "x" * 64}, ["adapter: digest none -> xxxxxxxxxxxx"]),
        (
            EvalSettings(),
            {"evaluations": {name: {"data": "e" * 64, "prompts": "q", "tokens": "j"} for name in ("mini_a", "mini_b")}},
            ["data of mini_a: digest dddddddddddd -> eeeeeeeeeeee"],
        ),
        (
            EvalSettings(),
            {"evaluations": IDENTITY["evaluations"] | {"mini_b": MINI | {"prompts": "q" * 64, "tokens": "j"}}},
            ["prompts of mini_b (chat template): digest pppppppppppp -> qqqqqqqqqqqq"],
        ),
        (
            EvalSettings(),
            {"evaluations": {"mini_a": MINI, "mini_x": MINI}},
            ["evaluations: mini_b -> mini_x (a template was changed in place)"],
        ),
        (
            EvalSettings(engine=EngineSettings(compilation_cache=False), out="elsewhere", name="n"),
            {"engine": {"devices": "2 x cpu"}, "versions": {"jax": "0.7.0", "numpy": "2.0", "flax": "1"}},
            ["devices: 1 x cpu -> 2 x cpu", "version of flax: none -> 1", "version of jax: 0.6.0 -> 0.7.0"],
        ),
    ],
)
def test_what_changed(tmp_path, settings, changed, told):
    assert _told(tmp_path, changed, settings) == told
    assert all("->" in one for one in told)


def test_a_run_without_its_settings_explains_nothing(tmp_path):
    assert difference(tmp_path, EvalSettings())(IDENTITY, IDENTITY | {"model": "x"}) == []
    (tmp_path / "config.toml").write_text("[model]\nof_old = 3\n", "utf-8")
    assert difference(tmp_path, EvalSettings())(IDENTITY, IDENTITY | {"model": "x"}) == []


def test_options_of_the_former_run_that_are_given_no_more(tmp_path):
    before = replace(EvalSettings(), model=ModelSettings(quantisation="int8"))
    assert _told(tmp_path, {"quantisation": None}, EvalSettings(), before) == ["--quantisation int8 -> none"]
