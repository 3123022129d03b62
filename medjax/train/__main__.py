"""python -m medjax.train: adapt a language model to medical text, or train an encoder of ECGs."""

import os
import sys

from medjax.config import parse_command, peek
from medjax.data.ecg.extra import what_to_install
from medjax.train.ecg_settings import EcgTrainSettings, settings_class
from medjax.train.settings import RunSettings

_LANGUAGE = """Adapt a language model: adapters (LoRA, QLoRA) or any of its parameters, on one CPU or a pod.

It writes a run folder with checkpoints, metrics.jsonl, the adapter, a figure and a report. A run that was killed goes
on with the same command. Encoders of ECGs have other keys: see --objective mae --help."""

_LANGUAGE_EXAMPLES = """examples:
  python -m medjax.train configs/sft/smollm2_lora_cpu.toml
  python -m medjax.train --model DIR --data notes.jsonl --mesh fsdp=4,tensor=2 --dtype bfloat16
  python -m medjax.train --model DIR --data notes.jsonl --quantisation nf4
"""

_ECG = """Train an encoder of ECGs: a masked autoencoder on unlabelled recordings (objective mae), a detector
(classify) or a regressor (regress) from it, on one CPU or a pod.

It writes a run folder with checkpoints, metrics.jsonl, the model, a figure and a report. A run that was killed goes on
with the same command."""

_ECG_EXAMPLES = """examples:
  python -m medjax.train configs/ecg/mae_tiny_cpu.toml --data records
  python -m medjax.train --objective classify --data records --targets lvsd --start runs/train/mae
  python -m medjax.train --objective regress --data records --targets age --finetune.trained probe
"""

_STATUS = """
Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong,
75 stopped by Ctrl-C or SIGTERM: it has saved, the same command goes on."""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        cls = settings_class(peek(argv, "objective"))
    except ValueError as error:
        print(f"medjax.train: {error}", file=sys.stderr)
        return 2
    description, examples = (_ECG, _ECG_EXAMPLES) if cls is EcgTrainSettings else (_LANGUAGE, _LANGUAGE_EXAMPLES)
    settings: RunSettings = parse_command(
        cls, argv, prog="medjax.train", description=description, epilog=examples + _STATUS
    )
    from medjax.parallel import distributed
    from medjax.train.stopping import Stopped, TrainingError

    def failed(status: int, message: object) -> int:
        print(f"medjax.train: {message}", file=sys.stderr, flush=True)
        return distributed.leave(status)

    try:
        _run(settings)
    except (ValueError, FileNotFoundError) as error:
        return failed(2, error)
    except ImportError as error:  # of the extra `ecg`, or a sink, which says so itself
        return failed(2, what_to_install(error) or error)
    except (OSError, TrainingError) as error:  # a full disk, missing workers, a run that diverged
        return failed(1, error)
    except Stopped as stopped:
        return failed(75, stopped)
    except KeyboardInterrupt:
        return failed(75, "stopped; the same command goes on from the last checkpoint.")
    except (MemoryError, RuntimeError) as error:
        # JAX tells a full device by a RuntimeError with this status in its text
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).partition("\n")[0] or "out of memory"
        t = settings.train
        language = "" if cls is EcgTrainSettings else "--window or --quantisation nf4, "
        return failed(
            1,
            f"{first}: got a step that does not fit into memory; raise --train.accumulation (now {t.accumulation}), "
            f"lower --batch-size (now {t.batch_size}), take {language}--train.remat full or --dtype bfloat16, or "
            "spread it with --mesh.",
        )
    return distributed.leave(0)


def _run(settings: RunSettings) -> None:
    # only now: --help must not wait for JAX
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from medjax.assets import cache_folder

    if settings.compilation_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    from medjax.train.run import train

    results = train(settings, say=lambda line: print(line, flush=True), progress=True)
    if not results:  # not the first process
        return
    if held_out := results["held_out"]:
        print(f"held-out loss {held_out['start']:.4f} -> {held_out['end']:.4f} (lowest {held_out['best']:.4f})")
    print(f"report: {results['folder']}/report.html")
    print(f"next:   {results['next']}")


if __name__ == "__main__":
    sys.exit(main())
