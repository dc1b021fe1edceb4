"""Names that must not be mixed up."""

from __future__ import annotations

from typing import NewType

__all__ = ["HospitalId", "PatientId", "Round"]

HospitalId = NewType("HospitalId", str)
PatientId = NewType("PatientId", str)
Round = NewType("Round", int)
