"""What the settings of training refuse, and that every key has a meaning and a working default."""

from dataclasses import fields, is_dataclass

import pytest

from medjax.config import load, to_dict, to_toml
from medjax.models.decoder import REMAT as POLICIES
from medjax.nn.lora import TARGETS
from medjax.nn.quant import KINDS
from medjax.train.settings import OPTIMIZERS, QUANTISATIONS, REMAT, SCHEDULES, TrainSettings


def given(**options):
    return load(TrainSettings, overrides={name.replace("__", "."): value for name, value in options.items()})


def keys(section, at=""):
    for key in fields(section):
        value = getattr(section, key.name)
        if is_dataclass(value):
            yield from keys(value, f"{at}{key.name}.")
        else:
            yield at + key.name, key


def test_every_key_has_a_meaning_and_short_options_are_unlike():
    found = dict(keys(TrainSettings()))
    assert len(found) > 50
    assert [name for name, key in found.items() if not key.metadata["help"]] == []
    short = [alias for key in found.values() for alias in key.metadata["aliases"]]
    assert len(short) == len(set(short))
    assert {"--model", "--data", "--trainable", "--steps", "--mesh", "--out"} <= set(short)


def test_choices_are_those_of_what_they_name():
    assert set(REMAT) == set(POLICIES)
    assert set(QUANTISATIONS) == set(KINDS)
    assert TrainSettings().lora.targets == tuple(name for name in TARGETS if name != "query_key_value")
    for kind in SCHEDULES:
        assert given(optimizer__schedule=kind).optimizer.schedule == kind
    for name in OPTIMIZERS:
        assert given(optimizer__name=name).optimizer.name == name


def test_settings_survive_their_toml(tmp_path):
    settings = given(
        model__name="a/b", lora__targets="query,up", data__files="x.jsonl,y.parquet", train__steps=7, train__spike=3.0,
        optimizer__warmup=0.1, mesh__shape="fsdp=4,tensor=2", log__sinks="[]", data__packing=False,
    )  # fmt: skip
    (tmp_path / "config.toml").write_text(to_toml(settings))
    again = load(TrainSettings, tmp_path / "config.toml")
    assert again == settings
    assert to_dict(again)["data"]["files"] == ["x.jsonl", "y.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data__window": 100}, "window: got 100, expected a multiple of 128; 512 to 4096 are usual."),
        ({"data__window": 0}, "window: got 0, expected a multiple of 128"),
        ({"data__held_out_count": -1}, "held_out_count: got -1, expected 0 or more."),
        ({"train__batch_size": 0}, "batch_size: got 0, expected 1 or more."),
        ({"train__steps": 0}, "steps: got 0, expected 1 or more."),
        ({"train__epochs": 0.0}, "epochs: got 0.0, expected more than 0; 0.5 is half a pass."),
        (
            {"train__batch_size": 8, "train__accumulation": 3},
            "accumulation: got 3 for batch_size 8, expected a divisor of it; change one of the two.",
        ),
        ({"train__trainable": "[]"}, "trainable: got nothing, expected lora, full, head or patterns; see --help."),
        ({"train__spike": 0.5}, "spike: got 0.5, expected 0 (off) or more than 1; 3 is usual."),
        ({"train__most_bad_steps": 0}, "most_bad_steps: got 0, expected 1 or more."),
        ({"optimizer__learning_rate": 0.0}, "learning_rate: got 0.0, expected more than 0; 1e-5 to 1e-3 are usual."),
        ({"optimizer__clip": -1.0}, "clip: got -1.0, expected 0 or more."),
        ({"checkpoint__keep_last": 0}, "keep_last=0, keep_best=1, expected 1 or more, 1 or more, 0 or more."),
        ({"log__every": 0}, "every: got 0 and held_out_every 100, expected 1 or more."),
        ({"train__remat": "some"}, "remat"),
        ({"model__dtype": "float16"}, "dtype"),
        ({"lora__targets": "q_proj"}, "q_proj"),
    ],
    ids=str,
)
def test_values_that_cannot_be(options, message):
    with pytest.raises(ValueError) as error:
        given(**options)
    assert message in str(error.value)
