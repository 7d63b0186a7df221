"""The loss of a training since its beginning, and since its last log line, across interruptions.

Upstream forgets both when a run goes on, so the mean at the end was that of the last part alone, and so was the
first line after a checkpoint between two lines. They are part of a checkpoint instead.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


NAME = "logged_loss"
"""Of its document in a checkpoint."""


@dataclass(frozen=True)
class LoggedLoss:
    """Sums over steps of the mean loss of all ranks.

    Attributes:
        total: Up to the last log line.
        pending: Since then.
        last_line: Step of that line.
    """

    total: float
    pending: float
    last_line: int

    @classmethod
    def of(cls, checkpoint: Path) -> "LoggedLoss | None":
        """As a checkpoint has it; None for one of an earlier version, which had none."""
        path = checkpoint / f"{NAME}.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def document(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self)
