"""python -m medjax.infer: answer prompts with a language model, or with an adapter beside it."""

import signal
import sys
from collections.abc import Sequence

from medjax.config import parse_command
from medjax.infer.command import exit_status, keep_compiled
from medjax.infer.settings import InferSettings

_DESCRIPTION = """Answer prompts with a language model, alone or with an adapter.

The prompt is the first argument; --file reads many. Answers go to standard output, all else to standard error.
Decoding is greedy: the most probable token each time, so the same prompt gives the same answer."""

_EPILOG = """examples:
  python -m medjax.infer "Which vitamin deficiency causes scurvy?"
  python -m medjax.infer "胸痛の原因を3つ挙げてください。" --model DIR --adapter runs/train/my_run
  python -m medjax.infer --file questions.jsonl --json > answers.jsonl

Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong, 75 stopped by Ctrl-C or SIGTERM."""


def main(argv: list[str] | None = None) -> int:
    settings = parse_command(
        InferSettings, _prompt_first(argv), prog="medjax.infer", description=_DESCRIPTION, epilog=_EPILOG
    )

    def work() -> None:
        # only now: --help must not wait for JAX
        keep_compiled(settings.engine)
        from medjax.infer.run import print_answers

        print_answers(settings)

    return exit_status("medjax.infer", work, settings.engine, stopped="stopped.")


def _prompt_first(argv: Sequence[str] | None) -> list[str]:
    """The arguments with a prompt in the first place named: elsewhere it could not be told from an option's value."""
    rest = list(sys.argv[1:] if argv is None else argv)
    if rest and not rest[0].startswith("-") and not rest[0].endswith(".toml"):
        rest[0] = f"--prompt={rest[0]}"
    return rest


if __name__ == "__main__":
    # a scheduler that wants the machine back is told the same as a user who stops
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
