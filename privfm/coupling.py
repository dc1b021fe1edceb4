"""Options by which images of a batch would meet: nothing here takes them, and each is refused with its reason."""

from __future__ import annotations

__all__ = ["COUPLING_OPTIONS"]

COUPLING_OPTIONS = {
    "batch_norm": "normalises over the batch; heads here have layer norm",
    "centre_momentum": "averages a centre over batches; the centre here is of public images",
    "in_batch_negatives": "compares patients with each other; negatives here are public images",
    "momentum": "averages the weights of steps between releases; the teacher here is the last released model",
    "queue": "keeps patients' embeddings for later patients' losses; negatives here are public images",
    "sinkhorn": "balances assignments over the batch; the centre here is of public images",
}
"""Of the original objectives: by these images, or steps that saw no noise, would meet."""
