"""What a person reads of a run."""

from __future__ import annotations

from privfm.report.audit_page import write_audit_page
from privfm.report.page import write_report
from privfm.report.verdict import probe_verdict, public_loss_verdict

__all__ = ["probe_verdict", "public_loss_verdict", "write_audit_page", "write_report"]
