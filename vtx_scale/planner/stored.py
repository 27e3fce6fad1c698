"""Parameters and multiply-accumulates of the published models, as `count` found them:
a listing needs no torch.

python -m vtx_scale.planner.count    makes counts.json anew; tests/test_counts.py holds it
                                     against the count
"""

import json
from pathlib import Path

FILE = Path(__file__).with_name("counts.json")


def stored_counts() -> dict[str, dict[str, int]]:
    """Name of a published model -> {"parameters": ..., "macs": ...}."""
    counts: dict[str, dict[str, int]] = json.loads(FILE.read_text())
    return counts
