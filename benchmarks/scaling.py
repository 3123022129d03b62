"""docs/scaling.md: training and scoring steps compiled for slices of chips that are not here, as medjax.plan does.

  python benchmarks/scaling.py                         every row, then docs/scaling.md (TPU rows: pip install '.[tpu]')
  python benchmarks/scaling.py --rows 8b-v5e-16 …      some rows anew; the others as they were found last time
  python benchmarks/scaling.py --render                docs/scaling.md alone, of what was found

Every row is one call of `python -m medjax.plan`, in a process of its own; its figures are kept under
benchmarks/results/scaling/ROW.json as the command wrote them. A row whose file is there is not compiled again unless it
is named or --fresh is given. Nothing of it ran on a chip: memory is the compiler's, time is a roofline's.

Exit status: 0 done, 1 a row failed, 2 the call was wrong.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scaling_page

from medjax.config import parse_command, peek
from medjax.plan.compiled import GIB
from medjax.plan.engine_run import plan_engine
from medjax.plan.engine_settings import OBJECTIVES, EnginePlanSettings
from medjax.plan.run import plan
from medjax.plan.settings import plan_class

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scaling"
PAGE = ROOT / "docs" / "scaling.md"

_LLAMA_70B = "configs/sft/llama2_70b_qlora.toml"
_SWALLOW_70B = "configs/sft/swallow_70b_qlora.toml"
_ROW = "--window 2048 --data.packing true"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    name     of its file
    what     model and task, as a reader would say it
    slice    of chips
    options  of medjax.plan, beside --topology and --json
    """

    name: str
    what: str
    slice: str
    options: str


def _qlora(model: str, config: str, short: str, where: str, mesh: str, batch: int, more: str = "") -> Row:
    options = f"{config} {_ROW} --mesh {mesh} --batch-size {batch} {more}".strip()
    return Row(f"{short}-{where}", f"{model} QLoRA NF4, r = 64", where, options)


ROWS = (
    Row(
        "8b-lora-v5e-16",
        "Llama 3 8B LoRA, r = 16",
        "v5e-16",
        f"configs/sft/llama3_8b_lora.toml {_ROW} --mesh fsdp=16 --batch-size 32",
    ),
    _qlora("Llama 2 70B", _LLAMA_70B, "70b", "v5e-16", "fsdp=16", 16),
    _qlora("Swallow 70B", _SWALLOW_70B, "swallow", "v5e-16", "fsdp=16", 16),
    Row(
        "70b-int8-v5e-16",
        "Llama 2 70B QLoRA int8, r = 64",
        "v5e-16",
        f"{_LLAMA_70B} {_ROW} --quantise int8 --mesh fsdp=16 --batch-size 16",
    ),
    _qlora("Llama 2 70B", _LLAMA_70B, "70b", "v6e-16", "fsdp=16", 32),
    _qlora("Swallow 70B", _SWALLOW_70B, "swallow", "v6e-16", "fsdp=16", 32),
    _qlora("Llama 2 70B", _LLAMA_70B, "70b", "v5p-16", "fsdp=16", 32, "--train.remat dots"),
    _qlora("Swallow 70B", _SWALLOW_70B, "swallow", "v5p-16", "fsdp=16", 32, "--train.remat dots"),
    _qlora("Llama 2 70B", _LLAMA_70B, "70b", "v5p-128", "fsdp=128", 256, "--train.remat dots"),
    _qlora("Swallow 70B", _SWALLOW_70B, "swallow", "v5p-128", "fsdp=128", 256, "--train.remat dots"),
    Row(
        "70b-lora-v5p-128",
        "Llama 2 70B LoRA, r = 64",
        "v5p-128",
        f"{_LLAMA_70B} {_ROW} --quantise none --mesh fsdp=128 --batch-size 256 --train.remat dots",
    ),
    Row(
        "8b-full-v5p-128",
        "Llama 3 8B, all weights",
        "v5p-128",
        f"configs/sft/llama3_8b_lora.toml {_ROW} --trainable full --mesh fsdp=128 --batch-size 256 --train.remat dots",
    ),
    Row(
        "8b-32k-v5e-16",
        "Llama 3.1 8B LoRA, rows of 32,768",
        "v5e-16",
        "configs/sft/llama3_8b_lora.toml --model meta-llama/Llama-3.1-8B-Instruct --window 32768 --data.packing true "
        "--mesh fsdp=4,sequence=4 --batch-size 4",
    ),
    Row(
        "8b-two-slices",
        "Llama 3 8B LoRA, two slices",
        "v5e-16",
        f"configs/sft/llama3_8b_lora.toml {_ROW} --plan.slices 2 --mesh data=2,fsdp=16 --batch-size 64",
    ),
    Row(
        "vit-h-mae-v5e-16",
        "ViT-H MAE, 12-lead ECG",
        "v5e-16",
        "configs/ecg/mae_huge_paper.toml --mesh fsdp=16",
    ),
    Row(
        "70b-score-v5e-16",
        "Llama 2 70B, scoring, int8",
        "v5e-16",
        "--objective score --model meta-llama/Llama-2-70b-hf --quantise int8 --dtype bfloat16 --mesh tensor=16 "
        "--engine.row_tokens 4096",
    ),
)


def main() -> int:
    options = _options()
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = False
    for number, row in enumerate(ROWS, 1):
        path = RESULTS / f"{row.name}.json"
        if options.render or (path.exists() and not options.fresh and row.name not in options.rows):
            continue
        if options.rows and row.name not in options.rows:
            continue
        print(f"{number} of {len(ROWS)}: {row.what} on {row.slice}", flush=True)
        failed |= not compile_row(row, path)
    PAGE.write_text(scaling_page.page([(row, found) for row in ROWS if (found := read(row))]), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[], choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--fresh", action="store_true", help="compile every row, also those that were compiled before")
    parser.add_argument("--render", action="store_true", help="write the page alone")
    return parser.parse_args()


def command(row: Row) -> list[str]:
    """The row's call of medjax.plan, without python and --json."""
    return ["-m", "medjax.plan", *shlex.split(row.options), "--topology", row.slice]


def compile_row(row: Row, path: Path) -> bool:
    """Plan a row and keep what it wrote; False where it could not be planned. A run that does not fit is a finding."""
    begun = time.monotonic()
    path.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, *command(row), "--json", str(path.relative_to(ROOT))], cwd=ROOT, check=False)
    print(f"  {time.monotonic() - begun:.0f} s", flush=True)
    return done.returncode in (0, 1) and path.exists()


def read(row: Row) -> dict[str, Any] | None:
    """What was found for a row (of the engine, its one program), with today's arithmetic beside it; None: nothing."""
    path = RESULTS / f"{row.name}.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text("utf-8"))
    found = values if "fits" in values else values["score"]
    return found | {"arithmetic_gib": arithmetic(row) / GIB}


def arithmetic(row: Row) -> int:
    """Bytes of a chip at the peak of a row by arithmetic alone."""
    words = [*shlex.split(row.options), "--topology", row.slice, "--plan.compile", "false"]
    words = [str(ROOT / word) if word.endswith(".toml") else word for word in words]
    objective = peek(words, "objective")
    if objective in OBJECTIVES:
        settings: Any = parse_command(EnginePlanSettings, words, prog="scaling")
        return plan_engine(settings).programs["score"].estimated.peak
    settings = parse_command(plan_class(objective), words, prog="scaling")
    return plan(settings).estimated.peak


if __name__ == "__main__":
    sys.exit(main())
