"""Named adversaries and a pretended device, in tests/simulators, are imported as top-level modules."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "simulators"))
