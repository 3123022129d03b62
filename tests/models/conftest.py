"""Makes the tiny checkpoints and the NumPy decoder of this folder importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
