"""python -m medjax.plan: whether a run fits on a slice, and how fast it can be at best, before anybody pays for it."""

import os
import re
import sys

from medjax.config import parse_command, peek
from medjax.plan.settings import RunPlanSettings, plan_class

_DESCRIPTION = """Compile the step that `python -m medjax.train` would run, for chips that are not there, and say
what it needs: memory, operations, what is sent, and the time of a step at the roofline (an estimate).

It takes every key of medjax.train and its own below [plan]. TPU slices need the compiler: pip install 'medjax[tpu]'."""

_EXAMPLES = """examples:
  python -m medjax.plan configs/sft/llama2_70b_qlora.toml --topology v5e:4x4
  python -m medjax.plan configs/sft/llama3_8b_lora.toml --topology v5p-16
  python -m medjax.plan configs/ecg/mae_huge_paper.toml --topology v5e:4x4 --json plan.json

Exit status: 0 it fits, 1 it does not, 2 the call or the input was wrong."""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        cls = plan_class(peek(argv, "objective"))
    except ValueError as error:
        print(f"medjax.plan: {error}", file=sys.stderr)
        return 2
    settings: RunPlanSettings = parse_command(cls, argv, prog="medjax.plan", description=_DESCRIPTION, epilog=_EXAMPLES)
    try:
        return _run(settings)
    except (ValueError, FileNotFoundError) as error:
        print(f"medjax.plan: {error}", file=sys.stderr)
        return 2


def _run(settings: RunPlanSettings) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not settings.plan.topology.startswith("gpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if cpus := re.fullmatch(r"cpu[:-](\d+)", settings.plan.topology):
        flag = "--xla_force_host_platform_device_count"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={cpus[1]}".strip()
    from medjax.plan.compiled import GIB
    from medjax.plan.run import plan, tables, write_json

    found = plan(settings, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(tables(found, settings.plan.spare_gib * GIB))
    if settings.plan.json:
        write_json(settings.plan.json, found, settings)
    if settings.plan.hlo and found.compiled:
        with open(settings.plan.hlo, "w", encoding="utf-8") as file:
            file.write(found.compiled.text)
    return 1 if found.fits(settings.plan.spare_gib * GIB) is False else 0


if __name__ == "__main__":
    sys.exit(main())
