"""Everything privfm raises on purpose.

    PrivfmError
    ├── InputError                what a person typed or supplied is wrong (exit code 2)
    │   ├── PlanError             a key of a plan, or a flag
    │   ├── DataError             a file or folder of images
    │   └── ModelError            a backbone or checkpoint that is unknown or cannot be made sound
    ├── BudgetExceeded            a charge that the ledger refuses, before anything was computed (exit code 3)
    └── VerificationError         something was checked and is not what it must be (exit code 4)
        ├── LedgerError           a ledger that is damaged, rolled back or of another run
        │   └── LedgerUnavailable one that is in use or cannot be written now, with nothing wrong (exit code 1)
        ├── RunError              a file in a run's folder that is missing or damaged
        └── ProtocolError         secure aggregation stopped; names the party to blame where evidence exists
            └── RolledBackError   hospitals' ledgers went back, by what they signed

Local misuse by a programmer raises ValueError or TypeError instead. Messages are one line: what is wrong, and
what to do. They never carry key material, pixels or a patient's data beyond a file's name.
"""

from __future__ import annotations

__all__ = [
    "BudgetExceeded",
    "DataError",
    "InputError",
    "LedgerError",
    "LedgerUnavailable",
    "ModelError",
    "PlanError",
    "PrivfmError",
    "ProtocolError",
    "RolledBackError",
    "RunError",
    "VerificationError",
]


class PrivfmError(Exception):
    """Root of the tree."""

    exit_code = 1


class InputError(PrivfmError):
    """What a person supplied is wrong; the message names the file, key or flag and what to do."""

    exit_code = 2


class PlanError(InputError):
    """A plan's key, or the flag that stands for it."""


class DataError(InputError):
    """A file or folder of images."""


class ModelError(InputError):
    """A backbone or checkpoint that is unknown or cannot be made sound."""


class BudgetExceeded(PrivfmError):
    """A charge that the ledger refuses; nothing was computed for it."""

    exit_code = 3


class VerificationError(PrivfmError):
    """Something was checked and is not what it must be."""

    exit_code = 4


class LedgerError(VerificationError):
    """A ledger that is damaged, rolled back or of another run."""


class LedgerUnavailable(LedgerError):
    """A ledger that is in use, or on a disk that is full: nothing is wrong with what it holds."""

    exit_code = 1


class RunError(VerificationError):
    """A file in a run's folder that is missing or damaged."""


class ProtocolError(VerificationError):
    """Secure aggregation stopped.

    Args:
        message: what was wrong, in one line.
        blamed: names of the parties that signed evidence shows to be at fault; two names without such evidence
            mean "one of the two".
    """

    def __init__(self, message: str, blamed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.blamed = blamed


class RolledBackError(ProtocolError):
    """Hospitals signed that their ledgers stand before where they were seen: `blamed` must recover them."""
