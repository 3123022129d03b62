"""Every command that a page, a --help or a configuration shows is one that its program takes.

Each goes through its program up to the settings, and no further; those of lm-evaluation-harness have its own options.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from medjax import config
from medjax.infer.__main__ import ECG_SUFFIXES
from medjax.plan.settings import check_options

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("convert", "eval", "infer", "ingest", "plan", "train")
# where commands stand -> how one begins there
PLACES = {
    ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"): r"(?:^ *|`)",
    ("medjax/*/__main__.py", "medjax/eval/subcommands.py"): r"^ +",
    ("configs/*/*.toml",): r"^# ",
}
STANDS_FOR = {"CONFIG": "configs/sft/llama3_8b_lora.toml", "CONFIG.toml": "configs/sft/llama3_8b_lora.toml"}


def _commands():
    """Place, program and arguments of every command that has some."""
    for patterns, begin in PLACES.items():
        for path in (path for pattern in patterns for path in sorted(ROOT.glob(pattern))):
            text = path.read_text("utf-8")
            if path.suffix == ".md":  # code in a line of text may go on in the next
                text = re.sub(r"(?<!`)`([^`\n]+)\n([^`\n]+)`(?!`)", r"`\1 \2`", text)
            text = re.sub(r"\\+\n[ #]*", "", text)  # and a command after a \
            for program, rest in re.findall(begin + r"python -m medjax\.(\w+)(?![.\w])([^`\n]*)", text, re.M):
                words = re.split(r" {2,}| #| > ", rest.strip())[0].replace("…", "").strip()  # what follows is a remark
                if program in PROGRAMS and words:
                    yield f"{path.relative_to(ROOT)}: medjax.{program} {words}"


class _Parsed(BaseException):
    """The settings of a command; no program catches it."""


def _settings(program, argv, monkeypatch):
    def parsed(*arguments, **options):
        raise _Parsed(config.parse_command(*arguments, **options))

    ecg = "--data" in argv if program == "eval" else any(Path(word).suffix in ECG_SUFFIXES for word in argv)
    ecg |= {"--explain", "--unit"} & set(argv) != set()
    for name in ("__main__", "subcommands") if program == "eval" else ("__main__",):
        module = importlib.import_module(f"medjax.{program}.{name}")
        monkeypatch.setattr(module, "parse_command", parsed)
        if hasattr(module, "encoder_folder"):  # the runs that pages name are not here
            monkeypatch.setattr(module, "encoder_folder", lambda name: Path(name) if ecg else None)
    monkeypatch.chdir(ROOT)
    with pytest.raises(_Parsed) as caught:
        importlib.import_module(f"medjax.{program}.__main__").main(argv)
    return caught.value.args[0]


def test_pages_show_commands_of_every_program():
    found = list(_commands())
    assert {command.split()[1].removeprefix("medjax.") for command in found} == set(PROGRAMS)
    assert {command.split()[2] for command in found if " medjax.eval " in command} >= {"compare", "audit", "merge"}
    assert len(found) > 90


@pytest.mark.parametrize("command", sorted(set(_commands())))
def test_a_command_that_is_shown_is_taken(command, monkeypatch):
    _, _, words = command.partition(": medjax.")
    program, *argv = (STANDS_FOR.get(word, word) for word in shlex.split(words))
    if "--help" in argv:
        with pytest.raises(SystemExit, match=r"^0$"):
            importlib.import_module(f"medjax.{program}.__main__").main(argv)
        return
    settings = _settings(program, argv, monkeypatch)
    if program == "plan":
        check_options(settings.plan, argv)


@pytest.mark.parametrize(
    ("program", "argv", "message"),
    [
        ("eval", ["--tusks", "mini"], "unknown option --tusks; did you mean --tasks?"),
        ("eval", ["audit", "--tasks", "mini"], "train: got no training data"),
        ("train", ["configs/none.toml"], "configs/none.toml: No such file"),
        ("convert", ["BASE", "--to", "onnx"], "--to: got"),
    ],
)
def test_a_wrong_command_would_be_found(program, argv, message, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        _settings(program, argv, monkeypatch)
    assert message in capsys.readouterr().err
