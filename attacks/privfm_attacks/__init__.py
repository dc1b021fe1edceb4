"""Audits: attacks on a run, and checks of the code that made it, with verdicts that can fail."""
