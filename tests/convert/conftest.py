"""Makes the tiny checkpoints of tests/models and tests/eval and the GGUF writer of tests/store importable."""

import sys
from pathlib import Path

for folder in ("models", "eval", "store"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
