"""medjax.config: TOML and command line into frozen dataclasses and back."""

import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from medjax.config import ConfigError, field, help_text, load, parse_command, to_dict, to_toml


@dataclass(frozen=True)
class LoraConfig:
    rank: int = field(16, help="rank of the update")
    targets: tuple[str, ...] = field(("q", "v"), help="projections that get an adapter", choices=("q", "k", "v", "o"))


@dataclass(frozen=True)
class ModelConfig:
    """The model."""

    name: str = field("smollm2-135m", help="folder, GGUF file, registered name or hub id", alias="--model")
    chat_template: Literal["auto", "none"] = field("auto", help="chat template", alias="--chat-template")
    lora: LoraConfig = LoraConfig()


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = field(1000, help="optimiser steps", alias=("--steps", "-n"))
    learning_rate: float = field(1e-3, help="peak learning rate", alias="--lr")
    warmup: int | float = field(0.1, help="steps, or a share of all steps")
    bf16: bool = field(False, help="compute in bfloat16")
    limit: int | None = field(None, help="records to use", alias="--limit")
    betas: tuple[float, ...] = field((0.9, 0.95), help="Adam's decay rates")
    stop: tuple[str, ...] | None = field(None, help="stop strings")

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected 1 or more; set the number of optimiser steps.")
        if self.limit is not None and self.limit > 10 and self.bf16:
            raise ValueError("limit above 10 with bf16")


@dataclass(frozen=True)
class PlanConfig:
    """Compile for other chips.

    Nobody needs to own them.
    """

    chips: int = field(8, help="chips")


@dataclass(frozen=True)
class Config:
    seed: int = field(0, help="seed of everything random")
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig(betas=(0.9, 0.999))
    plan: PlanConfig | None = None
    out: str | None = field(None, help="run folder")


@dataclass(frozen=True)
class NeedsName:
    name: str = field(help="which one")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write configs/x.toml in a fresh working folder and return its relative path."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> str:
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "configs" / "x.toml").write_text(text, encoding="utf-8")
        return "configs/x.toml"

    return write_text


def message(*arguments: Any, prog: str = "medjax.train", cls: type = Config) -> str:
    with pytest.raises(ConfigError) as caught:
        load(cls, *arguments, prog=prog)
    return str(caught.value)


def random_text(rng: random.Random) -> str:
    alphabet = "ab \"'\\\n\r\t\x00\x1b\x7f\x85\u2028#=[]{},.心電図🫀é　"
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))


def random_float(rng: random.Random) -> float:
    return rng.choice([0.0, -0.0, 1.0, 1e-5, 1e16, 5e-324, 1.7976931348623157e308, math.inf, rng.uniform(-1, 1)])


def random_config(rng: random.Random) -> Config:
    texts = tuple(random_text(rng) for _ in range(rng.randrange(4)))
    lora = LoraConfig(rng.randrange(-(2**63), 2**63), tuple(rng.choices("qkvo", k=rng.randrange(4))))
    train = TrainConfig(
        steps=rng.randrange(1, 10**9),
        learning_rate=random_float(rng),
        warmup=rng.choice([3, 3.0, 0.25]),
        bf16=rng.random() < 0.5,
        limit=rng.choice([None, 0, 7]),
        betas=tuple(random_float(rng) for _ in range(rng.randrange(3))),
        stop=rng.choice([None, texts]),
    )
    model = ModelConfig(random_text(rng), rng.choice(["auto", "none"]), lora)
    plan = rng.choice([None, PlanConfig(), PlanConfig(rng.randrange(512))])
    return Config(rng.randrange(100), model, train, plan, rng.choice([None, random_text(rng)]))


def test_toml_round_trip_of_200_random_configurations(tmp_path):
    rng, path = random.Random(0), tmp_path / "x.toml"
    for _ in range(200):
        config = random_config(rng)
        text = to_toml(config)
        path.write_text(text, encoding="utf-8", newline="")
        again = load(Config, path)
        assert again == config
        # == holds between 3 and 3.0, and between 0.0 and -0.0; repr tells them apart
        assert repr(again) == repr(config)
        assert to_toml(again) == text


def test_toml_text_is_exactly_this():
    config = Config(model=ModelConfig(name='a "b"\n日本'), train=TrainConfig(steps=5), plan=PlanConfig(4))
    assert to_toml(config) == (
        "seed = 0\n\n"
        '[model]\nname = "a \\"b\\"\\n日本"\nchat_template = "auto"\n\n'
        '[model.lora]\nrank = 16\ntargets = ["q", "v"]\n\n'
        "[train]\nsteps = 5\nlearning_rate = 0.001\nwarmup = 0.1\nbf16 = false\nbetas = [0.9, 0.95]\n\n"
        "[plan]\nchips = 4\n"
    )
    assert tomllib.loads(to_toml(config))["model"]["name"] == 'a "b"\n日本'


def test_to_dict_is_plain_json():
    config = Config()
    plain = to_dict(config)
    assert plain["train"]["betas"] == [0.9, 0.999]
    assert plain["plan"] is None
    assert plain["out"] is None
    assert plain == json.loads(json.dumps(plain))


def test_file_wins_over_defaults_and_the_command_line_over_the_file(write):
    path = write('[model]\nname = "from-file"\n[train]\nsteps = 7\nlearning_rate = 1\n')
    config = load(Config, path, ["--model", "from-line", "--train.steps=9"])
    assert (config.model.name, config.train.steps, config.train.learning_rate) == ("from-line", 9, 1.0)
    assert type(config.train.learning_rate) is float
    # a section's defaults are those of the instance its parent names
    assert config.train.betas == (0.9, 0.999)
    assert parse_command(Config, ["--steps", "3", path], prog="medjax.train").train.steps == 3
    assert load(Config, path, {"--lr": 2, "limit": "4"}).train == TrainConfig(7, 2.0, limit=4, betas=(0.9, 0.999))


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n[train]\r\nsteps = 4\r\n")
    config = load(Config, tmp_path / "x.toml")
    assert (config.seed, config.train.steps) == (3, 4)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--train.bf16"], {"train.bf16": True}),
        (["--train.bf16", "false"], {"train.bf16": False}),
        (["--train.bf16=true", "--no-train.bf16"], {"train.bf16": False}),
        (["--train.bf16=TRUE"], {"train.bf16": True}),
        (["--lr", "-1e-3"], {"train.learning_rate": -0.001}),
        (["--train.learning-rate", "3"], {"train.learning_rate": 3.0}),
        (["-n", "2"], {"train.steps": 2}),
        (["--train.warmup", "5"], {"train.warmup": 5}),
        (["--train.warmup", "0.5"], {"train.warmup": 0.5}),
        (["--train.betas", "0.5, 1,"], {"train.betas": (0.5, 1.0)}),
        (["--train.betas="], {"train.betas": ()}),
        (["--train.stop", "。,\\n,日本"], {"train.stop": ("。", "\\n", "日本")}),
        (["--train.stop", '["a,b", "\\n", ""]'], {"train.stop": ("a,b", "\n", "")}),
        (["--train.stop", "None"], {"train.stop": None}),
        (["--limit", "4", "--limit", "none"], {"train.limit": None}),
        (["--chat-template", "none"], {"model.chat_template": "none"}),
        (["--out=--odd=name"], {"out": "--odd=name"}),
        (["--model="], {"model.name": ""}),
        (["--plan.chips", "16"], {"plan.chips": 16}),
        (["--model.lora.targets", "q,o"], {"model.lora.targets": ("q", "o")}),
    ],
)
def test_command_line_forms(argv, expected):
    config = load(Config, None, argv)
    for path, value in expected.items():
        found: Any = config
        for name in path.split("."):
            found = getattr(found, name)
        assert found == value
        assert type(found) is type(value)


def test_optional_section_is_built_only_when_it_is_named(write):
    assert load(Config).plan is None
    assert load(Config, write("[plan]\n")).plan == PlanConfig(8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[train]\nlerning_rate = 1.0",
            "unknown key train.lerning_rate; did you mean train.learning_rate? medjax.train --help lists all keys.",
        ),
        ("sed = 1", "unknown key sed; did you mean seed? medjax.train --help lists all keys."),
        ("lr = 1.0", "unknown key lr; did you mean train.learning_rate? medjax.train --help lists all keys."),
        (
            "[trian]\nsteps = 1",
            "unknown key trian.steps; did you mean train.steps? medjax.train --help lists all keys.",
        ),
        ("[trian]", "unknown key trian; did you mean train? medjax.train --help lists all keys."),
        ("xyzzy = 1", "unknown key xyzzy; medjax.train --help lists all keys."),
        ("[seed]\nx = 1", "unknown key seed.x; did you mean seed? medjax.train --help lists all keys."),
        (
            '[train]\nsteps = "ten"',
            'train.steps: got "ten" (str), expected int; write for example train.steps = 1000.',
        ),
        ('[train]\nsteps = "10"', 'train.steps: got "10" (str), expected int; write for example train.steps = 10.'),
        ("[train]\nsteps = 1.5", "train.steps: got 1.5 (float), expected int; write for example train.steps = 1000."),
        ("[train]\nsteps = true", "train.steps: got true (bool), expected int; write for example train.steps = 1000."),
        ("[train]\nbf16 = 1", "train.bf16: got 1 (int), expected bool; write for example train.bf16 = false."),
        (
            "[train]\nbetas = 0.9",
            "train.betas: got 0.9 (float), expected list of float; write for example train.betas = [0.9, 0.999].",
        ),
        (
            "[train]\nlimit = 0.5",
            "train.limit: got 0.5 (float), expected int or none; write for example train.limit = 1.",
        ),
        (
            "[train]\nwarmup = []",
            "train.warmup: got [] (list), expected int or float; write for example train.warmup = 0.1.",
        ),
        (
            '[model]\nchat_template = "non"',
            'model.chat_template: got "non" (str), expected one of auto, none; '
            'write for example model.chat_template = "none".',
        ),
        (
            '[model.lora]\ntargets = ["q", "w"]',
            'model.lora.targets: got ["q", "w"] (list), expected list of one of q, k, v, o; '
            'write for example model.lora.targets = ["q"].',
        ),
        ('model = "m"', 'model: got "m" (str), expected a section; write model.<key> = ... or [model].'),
        (
            "[train]\nsteps = 0",
            "train.steps: got 0, expected 1 or more; set the number of optimiser steps.",
        ),
        ("[train]\nlimit = 11\nbf16 = true", "train: limit above 10 with bf16"),
        (
            "seed = ",
            "not TOML: Invalid value (at end of document); text needs quotes, lists need [ ].",
        ),
    ],
)
def test_errors_in_a_file(write, text, expected):
    assert message(write(text)) == f"configs/x.toml: {expected}"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--stpes", "3"], "unknown option --stpes; did you mean --steps? medjax.train --help lists all keys."),
        (
            ["--train.lerning-rate=3"],
            "unknown option --train.lerning-rate; did you mean --train.learning_rate? "
            "medjax.train --help lists all keys.",
        ),
        (["--no-seed"], "unknown option --no-seed; did you mean --seed? medjax.train --help lists all keys."),
        (["-z"], "unknown option -z; medjax.train --help lists all keys."),
        (["--steps", "ten"], '--steps: got "ten", expected int; write for example --steps 1000.'),
        (["--steps", "--lr", "3"], "--steps: got no value, expected int; write for example --steps 1000."),
        (["--limit"], "--limit: got no value, expected int or none; write for example --limit 1."),
        (["--train.bf16=yes"], '--train.bf16: got "yes", expected bool; write for example --train.bf16 false.'),
        (
            ["--train.betas", "0.9,x"],
            '--train.betas: got "0.9,x", expected list of float; write for example --train.betas 0.9,0.999.',
        ),
        (
            ["--train.stop", "[a]"],
            '--train.stop: got "[a]", expected list of str or none; write for example --train.stop text.',
        ),
        (["--steps=-1"], "--steps: got -1, expected 1 or more; set the number of optimiser steps."),
        (["no.toml"], "no.toml: No such file or directory; expected a CONFIG.toml here; options start with --."),
        (["a.toml", "b.toml"], "got 2 files (a.toml, b.toml), expected one CONFIG.toml; drop the others."),
    ],
)
def test_errors_on_the_command_line(argv, expected, capsys):
    assert message(None, argv) == expected
    for prog in ("medjax.train", "medjax.train what"):
        with pytest.raises(SystemExit) as caught:
            parse_command(Config, argv, prog=prog)
        assert caught.value.code == 2
        assert capsys.readouterr() == ("", f"medjax.train: {expected.replace('medjax.train', prog)}\n")


def test_errors_from_python_name_the_key_and_list_the_keys():
    assert message(None, {"chps": 1}, prog="", cls=PlanConfig) == (
        "unknown key chps; did you mean chips? The keys are chips."
    )
    assert message(None, {"chips": [1]}, cls=PlanConfig) == (
        "chips: got [1] (list), expected int; write for example chips = 8."
    )
    with pytest.raises(ConfigError, match=r"^chips: got 1\.5 \(float\), expected int; write for example chips = 8\.$"):
        to_toml(PlanConfig(1.5))


def test_missing_required_key(write):
    assert message(cls=NeedsName) == "name: no value given, expected str; set it in the file or by --name."
    assert message(write(""), cls=NeedsName).startswith("configs/x.toml: name: no value given")
    assert load(NeedsName, None, ["--name", "x"]).name == "x"


def test_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes('out = "日本"'.encode("shift_jis"))
    assert message(path) == f"{path}: byte 7 is not UTF-8; save the file as UTF-8."


def test_loaded_configuration_is_frozen():
    config = load(Config, None, ["--plan.chips", "4"])
    for part, name in [(config, "seed"), (config.train, "steps"), (config.model.lora, "rank"), (config.plan, "chips")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, 1)
    assert hash(config) == hash(load(Config, None, {"plan.chips": 4}))


def test_help_lists_every_key_once_by_section(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_command(Config, ["x.toml", "--help"], prog="medjax.train", description="Train.", epilog="next:\n  plan")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "usage: python -m medjax.train [CONFIG.toml] [--section.key value ...] [--out DIR]\n\nTrain."
    )
    assert printed.endswith("\n\nnext:\n  plan\n")
    blocks = help_text(Config, prog="medjax.train", width=200).split("\n\n")
    assert [block.split("\n")[0] for block in blocks[1:-1]] == [
        "  --seed  (int; default 0)",
        "model: The model.",
        "model.lora",
        "train: The training loop.",
        "plan: Compile for other chips.",
    ]
    assert blocks[4] == (
        "train: The training loop.\n"
        "  --train.steps, --steps, -n  (int; default 1000)\n      optimiser steps\n"
        "  --train.learning_rate, --lr  (float; default 0.001)\n      peak learning rate\n"
        "  --train.warmup  (int or float; default 0.1)\n      steps, or a share of all steps\n"
        "  --train.bf16  (bool; default false)\n      compute in bfloat16\n"
        "  --train.limit, --limit  (int or none; default none)\n      records to use\n"
        "  --train.betas  (list of float; default 0.9,0.999)\n      Adam's decay rates\n"
        "  --train.stop  (list of str or none; default none)\n      stop strings"
    )
    assert "  --name  (str; required)\n      which one" in help_text(NeedsName, prog="medjax.plan")


def test_a_reader_that_stops_reading_the_help_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = "import test_config as t; t.parse_command(t.Config, ['--help'], prog='medjax.train')"
    ended = subprocess.run([sys.executable, "-c", command], cwd=Path(__file__).parent, stdout=writer, stderr=-1,
                           env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_help_keeps_to_the_width():
    narrow = help_text(Config, prog="p", description="words " * 60, width=50)
    assert max(map(len, narrow.split("\n")[1:])) <= 50
    assert narrow.count("words") == 60


def declare(annotation: Any, **keywords: Any) -> type:
    return dataclasses.make_dataclass("Bad", [("key", annotation, field(help="", **keywords))], frozen=True)


def test_a_tree_that_cannot_work_is_refused_where_it_is_declared():
    with pytest.raises(TypeError, match=r"Bad\.key: may be None but defaults to 5"):
        load(declare(int | None, default=5))
    with pytest.raises(TypeError, match=r"Bad\.key: no key can be .*dict"):
        load(declare(dict[str, int], default=None))
    with pytest.raises(ConfigError, match=r'Bad\.key: default: got "5" \(str\), expected int'):
        load(declare(int, default="5"))
    with pytest.raises(TypeError, match="Thawed: got a class that can change"):
        load(dataclasses.make_dataclass("Thawed", [("key", int, 0)]))
    twice = dataclasses.make_dataclass(
        "Twice", [("a", int, field(1, help="", alias="--x")), ("b", int, field(2, help="", alias="--x"))], frozen=True
    )
    with pytest.raises(TypeError, match="Twice: --x names both a and b; rename one"):
        load(twice)
