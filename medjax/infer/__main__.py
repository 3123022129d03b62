"""python -m medjax.infer: answer prompts with a language model, or judge ECG files with a detector or regressor."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from medjax.config import parse_command, peek
from medjax.data.processes import hear_stops
from medjax.infer.command import exit_status, keep_compiled
from medjax.infer.ecg_settings import EcgInferSettings
from medjax.infer.settings import InferSettings
from medjax.store.encoders import encoder_folder

_DESCRIPTION = """Answer prompts with a language model, alone or with an adapter.

The prompt is the first argument; --file reads many. Answers go to standard output, all else to standard error.
Decoding is greedy: the most probable token each time, so the same prompt gives the same answer. A model of ECGs takes
files instead and has other keys: see --model RUN --help."""

_EPILOG = """examples:
  python -m medjax.infer "Which vitamin deficiency causes scurvy?"
  python -m medjax.infer "胸痛の原因を3つ挙げてください。" --model DIR --adapter runs/train/my_run
  python -m medjax.infer --file questions.jsonl --json > answers.jsonl
  python -m medjax.infer ecg.xml --model runs/train/my_detector --explain both

Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong, 75 stopped by Ctrl-C or SIGTERM."""

_ECG_DESCRIPTION = """Judge ECG files of any format with a detector or a regressor.

The files, or folders of them, are the arguments. It writes predictions.json and a page a record, and prints a line a
record; what cannot be read or judged is told on standard error and listed, and the others go on."""

_ECG_EPILOG = """examples:
  python -m medjax.infer ecg.xml --model runs/train/my_detector
  python -m medjax.infer exports/ --model runs/train/my_detector --format html,png --explain both
  python -m medjax.infer rest.csv --model runs/train/my_detector --sampling_rate_hz 500 --unit mV --json

Exit status: 0 at least one record was judged, 1 none was, 2 the call was wrong, 75 stopped by Ctrl-C or SIGTERM."""

# of the readers; .json, .txt and .csv may be prompts
ECG_SUFFIXES = {".hea", ".dat", ".mat", ".xml", ".dcm", ".edf", ".bdf", ".scp", ".mwf", ".ecg", ".npy", ".npz", ".he"}
_ECG_FLAGS = ("--json", "--engine.compilation_cache", "--page.identifiers")


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        name = peek(argv, "model.name", "--model")
        is_ecg = name is not None and encoder_folder(name) is not None
        if not is_ecg:
            _refuse_ecgs(argv, name)
    except ValueError as error:
        print(f"medjax.infer: {error}", file=sys.stderr)
        return 2
    return _judge(argv) if is_ecg else _answer(argv)


def _refuse_ecgs(argv: Sequence[str], model: str | None) -> None:
    """Raise ValueError where a language model would be asked for an ECG file."""
    first = next(iter(argv), "-")
    if first.startswith("-") or not os.path.exists(os.path.expanduser(first)):  # a long prompt is no path
        return
    if Path(first).suffix.lower() in ECG_SUFFIXES or Path(first).is_dir():
        got = f"--model {model}, which is no model of ECGs" if model else "no --model"
        raise ValueError(
            f"model.name: got {got}, for the ECG file or folder {first}, expected the run folder of a detector or a "
            "regressor; give --model RUN, as medjax.train wrote it."
        )


def _answer(argv: list[str]) -> int:
    settings = parse_command(
        InferSettings, _prompt_first(argv), prog="medjax.infer", description=_DESCRIPTION, epilog=_EPILOG
    )

    def work() -> None:
        # only now: --help must not wait for JAX
        keep_compiled(settings.engine)
        from medjax.infer.run import print_answers

        print_answers(settings)

    return exit_status("medjax.infer", work, settings.engine, stopped="stopped.")


def _judge(argv: list[str]) -> int:
    settings = parse_command(
        EcgInferSettings, _files_named(argv), prog="medjax.infer", description=_ECG_DESCRIPTION, epilog=_ECG_EPILOG
    )
    judged = 0

    def work() -> None:
        nonlocal judged
        keep_compiled(settings.engine)
        from medjax.infer.ecg_run import judge_files

        judged = judge_files(settings)

    status = exit_status("medjax.infer", work, settings.engine, stopped="stopped.")
    return status or (0 if judged else 1)


def _prompt_first(argv: Sequence[str]) -> list[str]:
    """The arguments with a prompt in the first place named: elsewhere it could not be told from an option's value."""
    rest = list(argv)
    if rest and not rest[0].startswith("-") and not rest[0].endswith(".toml"):
        rest[0] = f"--prompt={rest[0]}"
    return rest


def _files_named(argv: Sequence[str]) -> list[str]:
    """The arguments with those that are neither options nor their values given to --files; a TOML file stays."""
    files: list[str] = []
    rest: list[str] = []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-"):
            (rest if argument.endswith(".toml") else files).append(argument)
            continue
        rest.append(argument)
        is_flag = argument.startswith("--no-") or argument in (*_ECG_FLAGS, "--help", "-h")
        if "=" not in argument and waiting and (not is_flag or waiting[0] in ("true", "false")):
            rest.append(waiting.pop(0))
    return [*rest, *([f"--files={json.dumps(files)}"] if files else [])]


if __name__ == "__main__":
    hear_stops()
    sys.exit(main())
