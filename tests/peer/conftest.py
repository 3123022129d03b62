"""Makes the tiny checkpoints and the NumPy decoder of tests/models importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
