"""python -m medjax.plan: whether a run fits on a slice, and how fast it can be at best, before anybody pays for it."""

import importlib.util
import os
import re
import sys
from pathlib import Path

from medjax.config import parse_command, peek
from medjax.plan.engine_settings import OBJECTIVES, EnginePlanSettings
from medjax.plan.settings import RunPlanSettings, check_options, meshs_source, plan_class

_DESCRIPTION = """Compile the step that `python -m medjax.train` would run, for chips that are not there, and say
what it needs: memory, operations, what is sent, and the time of a step at the roofline (an estimate).

It takes every key of medjax.train and its own below [plan]. With --objective score or generate it is the engine of
medjax.eval and medjax.infer that is planned: --help of that lists its keys.

TPU slices need the compiler: pip install 'medjax[tpu]'."""

_EXAMPLES = """examples:
  python -m medjax.plan configs/sft/llama2_70b_qlora.toml --topology v5e:4x4 --mesh fsdp=16 --batch-size 16
  python -m medjax.plan configs/sft/llama3_8b_lora.toml --topology v5p-16 --search
  python -m medjax.plan configs/ecg/mae_huge_paper.toml --topology v5e:4x4 --json plan.json
  python -m medjax.plan --objective generate --model meta-llama/Llama-2-70b-hf --quantise int8 --dtype bfloat16 \\
      --topology v5e:4x4 --mesh tensor=16 --batch-size 64 --context 4096 --largest

Exit status: 0 it fits, 1 it does not, 2 the call or the input was wrong."""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        objective = peek(argv, "objective")
        cls = EnginePlanSettings if objective in OBJECTIVES else plan_class(objective)
    except ValueError as error:
        print(f"medjax.plan: {error} The engine's are {' and '.join(OBJECTIVES)}.", file=sys.stderr)
        return 2
    settings: RunPlanSettings | EnginePlanSettings = parse_command(
        cls, argv, prog="medjax.plan", description=_DESCRIPTION, epilog=_EXAMPLES
    )
    try:
        check_options(settings.plan, argv)
        return _run(settings)
    except (ValueError, OSError, _compilers_own()) as error:
        print(f"medjax.plan: {error}{meshs_source(error, argv)}", file=sys.stderr)
        return 2


def _compilers_own() -> type[Exception]:
    """What the compiler raises for a program that it cannot compile for another reason than memory."""
    from jax.errors import JaxRuntimeError

    return JaxRuntimeError


def _for_gpus() -> bool:
    """Whether JAX is installed for GPUs: their support is a plugin, that of TPUs is not."""
    return importlib.util.find_spec("jax_plugins") is not None


def _run(settings: RunPlanSettings | EnginePlanSettings) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # GPUs: where JAX can have none it would ask libtpu for a TPU, which complains in many lines that there is none
    if not settings.plan.topology.lower().startswith("gpu") or not _for_gpus():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if cpus := re.fullmatch(r"cpu[:-](\d+)", settings.plan.topology):
        flag = "--xla_force_host_platform_device_count"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={cpus[1]}".strip()
    if isinstance(settings, EnginePlanSettings):
        return _run_engine(settings)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if settings.plan.search:
        from medjax.plan import found as results
        from medjax.plan.search import search

        searched = search(settings, say)
        print(results.search_tables(searched))
        files = results.write(searched, settings, results.folder(settings))
        if settings.plan.json:
            results.write_json(settings.plan.json, searched, settings)
        if settings.plan.hlo and searched.best and searched.best.found and searched.best.found.compiled:
            Path(settings.plan.hlo).write_text(searched.best.found.compiled.text, "utf-8")
            files.insert(0, Path(settings.plan.hlo))
        print(f"\nwrote {', '.join(map(str, files))}")
        if searched.best:
            print(f"next: python -m medjax.train {files[-1]}")
        return 0 if searched.best else 1
    from medjax.parallel.chips import GIB
    from medjax.plan.run import plan, tables, write_json

    found = plan(settings, say)
    print(tables(found, settings.plan.spare_gib * GIB))
    if settings.plan.json:
        write_json(settings.plan.json, found, settings)
    if settings.plan.hlo and found.compiled:
        with open(settings.plan.hlo, "w", encoding="utf-8") as file:
            file.write(found.compiled.text)
    return 1 if found.fits(settings.plan.spare_gib * GIB) is False else 0


def _run_engine(settings: EnginePlanSettings) -> int:
    from medjax.parallel.chips import GIB
    from medjax.plan.engine_run import engine_tables, plan_engine, write_engine_json

    spare = settings.plan.spare_gib * GIB
    found = plan_engine(settings, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(engine_tables(found, spare))
    if settings.plan.json:
        write_engine_json(settings.plan.json, found, settings)
    for name, one in found.programs.items():
        if settings.plan.hlo and one.compiled:
            with open(f"{settings.plan.hlo}.{name}", "w", encoding="utf-8") as file:
                file.write(one.compiled.text)
    return 1 if found.fits(spare) is False else 0


if __name__ == "__main__":
    sys.exit(main())
