"""What to do about what an audit found, in a sentence or two; docs/audits.md has more."""

from __future__ import annotations

__all__ = ["ON_LEAK"]

ON_LEAK = {
    "mechanism": "Do not train with this installation. The check that failed says what is wrong; compare it with a "
    "released version.",
    "canaries": "Noise is missing, or it, clipping or sampling is weaker than what was charged. Take epsilon to be at "
    "least the bound, do not publish, and look at what mechanism says.",
    "membership": "The encoder says more of patients than the guarantee allows. Do not publish; run the audits "
    "mechanism and ledgers, and look for images that got into training beside it.",
    "property": "Patients keep their guarantee. Set the threshold to all hospitals, give them more equal declared "
    "numbers, or use more noise; and tell hospitals that what their patients have in common may be known.",
    "reconstruction": "Single steps show patients. Do not publish, and look at what mechanism says of noise and "
    "clipping.",
    "forget": "Withdraw the model that gives them away, train again without them (privfm forget RUN --out NEW), and "
    "look for their images under another patient's name.",
    "transcript": "Stop the federation, keep the folder as evidence, compare rosters and fingerprints by telephone, "
    "and do not go on until the round that is named has been explained.",
    "ledgers": "Somebody changed what the run left. Restore the file that is named, or find out who did.",
}
"""By the audit's name."""
