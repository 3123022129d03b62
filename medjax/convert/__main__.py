"""python -m medjax.convert: models and adapters from one form into another."""

import sys
from collections.abc import Sequence

from medjax.config import parse_command
from medjax.convert.settings import ConvertSettings
from medjax.data.processes import hear_stops

_DESCRIPTION = """Write a model or an adapter in another form: Hugging Face, GGUF (to read), medjax, PEFT.

The model is the first argument. An adapter is merged into the weights (--to hf, medjax) or written alone (--to peft,
adapter). Weights pass through host memory, on the CPU; the folder appears when it is complete."""

_EPILOG = """examples:
  python -m medjax.convert meta-llama/Llama-3.1-8B --to medjax --out models/llama-8b
  python -m medjax.convert model.gguf --to hf --dtype bfloat16 --out models/as-hf
  python -m medjax.convert BASE --adapter runs/train/my_run --to hf --out models/merged
  python -m medjax.convert BASE --adapter runs/train/my_run --to peft --out adapters/for-peft
  python -m medjax.convert BASE --adapter some-peft-folder --to adapter --out adapters/mine

Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong, 75 stopped by Ctrl-C or SIGTERM."""


def main(argv: list[str] | None = None) -> int:
    settings = parse_command(
        ConvertSettings, _source_first(argv), prog="medjax.convert", description=_DESCRIPTION, epilog=_EPILOG
    )
    try:
        _run(settings)
    except (ValueError, FileNotFoundError) as error:
        print(f"medjax.convert: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medjax.convert: stopped; nothing was written.", file=sys.stderr)
        return 75
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"medjax.convert: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        # JAX tells exhausted memory by a RuntimeError with this status in its text
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).partition("\n")[0] or "out of memory"
        print(
            f"medjax.convert: {first}: got a model that does not fit into host memory; take --dtype bfloat16, or a "
            "machine with more of it.",
            file=sys.stderr,
        )
        return 1
    return 0


def _source_first(argv: Sequence[str] | None) -> list[str]:
    """The arguments with a model in the first place named: elsewhere it could not be told from an option's value."""
    rest = list(sys.argv[1:] if argv is None else argv)
    if rest and not rest[0].startswith("-") and not rest[0].endswith(".toml"):
        rest[0] = f"--source={rest[0]}"
    return rest


def _run(settings: ConvertSettings) -> None:
    # only now: --help must not wait for JAX
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # accelerators would only be a detour between two files
    from medjax.convert.run import convert

    convert(settings, say=lambda line: print(line, flush=True), progress=True)


if __name__ == "__main__":
    hear_stops()
    sys.exit(main())
