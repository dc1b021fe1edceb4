"""A tree over the cohort's key packages: its root fixes all of them, and shows any one with a logarithmic proof.

Leaf i belongs to the i-th hospital invited and is empty when it is absent. An odd node rises unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from privfm.errors import ProtocolError
from privfm.secagg.encoding import digest

__all__ = ["PROOF_LIMIT", "Tree", "check_proof"]

PROOF_LIMIT = 32  # nodes, enough for 2^32 leaves


class Tree:
    """All levels of the tree, leaves first.

    >>> tree = Tree([b"a", b"", b"c"])
    >>> check_proof(tree.root, 3, 2, b"c", tree.proof(2))
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        level = [_leaf(index, data) for index, data in enumerate(leaves)]
        self._levels = [level]
        while len(level) > 1:
            level = [_parent(level[at : at + 2]) for at in range(0, len(level), 2)]
            self._levels.append(level)
        self.root = digest("root", len(leaves).to_bytes(8, "big"), level[0])

    def proof(self, index: int) -> tuple[bytes, ...]:
        """The siblings on the way up from a leaf."""
        siblings = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                siblings.append(level[index ^ 1])
            index //= 2
        return tuple(siblings)


def check_proof(root: bytes, size: int, index: int, data: bytes, proof: Sequence[bytes]) -> None:
    """Check that a tree of that size with that root has this leaf.

    Raises:
        ProtocolError: it has not.
    """
    node, rest = _leaf(index, data), list(proof)
    width = size
    while width > 1:
        if index ^ 1 < width:
            if not rest:
                raise ProtocolError("proof is too short")
            sibling = rest.pop(0)
            node = _parent((sibling, node) if index % 2 else (node, sibling))
        index, width = index // 2, (width + 1) // 2
    if rest or digest("root", size.to_bytes(8, "big"), node) != root:
        raise ProtocolError("package is not in the tree")


def _leaf(index: int, data: bytes) -> bytes:
    return digest("leaf", index.to_bytes(8, "big"), data)


def _parent(children: Sequence[bytes]) -> bytes:
    return digest("node", *children) if len(children) == 2 else children[0]
