"""JSON files that people pass around, read in one way or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["check_fields", "document_format", "parse_document", "unhex", "write_document"]

_HEX = re.compile("(?:[0-9a-f]{2})*")


def parse_document(data: bytes, name: str, fields: Mapping[str, type], limit: int) -> dict[str, Any]:
    """The fields of a file: exactly these, each once, each of its type.

    Args:
        data: UTF-8.
        name: what the file's `format` must be.
        fields: the type of every key beside `format`.
        limit: most bytes.

    Raises:
        ValueError: in one line, what is wrong with the file.

    >>> parse_document(b'{"format": "demo 1", "who": "a"}', "demo 1", {"who": str}, limit=100)
    {'who': 'a'}
    """
    document = _object(data, limit)
    check_fields(document, {"format": str, **fields})
    if document.pop("format") != name:
        raise ValueError(f"need the format {name!r}")
    return dict(document)


def document_format(data: bytes, limit: int) -> str | None:
    """What a file claims to be, or None; nothing else of it is checked.

    Raises:
        ValueError: it is longer than `limit`, or no JSON.
    """
    document = _object(data, limit)
    name = document.get("format") if isinstance(document, dict) else None
    return name if isinstance(name, str) else None


def _object(data: bytes, limit: int) -> Any:
    if len(data) > limit:
        raise ValueError(f"longer than {limit} bytes")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_fields(document: object, fields: Mapping[str, type]) -> None:
    """Refuse an object with other keys, or with values of other types; a boolean is no number.

    Raises:
        ValueError: naming the keys.
    """
    if not isinstance(document, dict) or document.keys() != fields.keys():
        raise ValueError(f"need exactly the keys {', '.join(fields)}")
    for key, kind in fields.items():
        if type(document[key]) is not kind:
            raise ValueError(f"{key} is no {kind.__name__}")


def write_document(name: str, fields: Mapping[str, Any]) -> bytes:
    """The file that `parse_document` reads."""
    return json.dumps({"format": name, **fields}, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"


def unhex(value: object, length: int) -> bytes:
    """`length` bytes out of lower-case hexadecimal digits.

    Raises:
        ValueError: anything else, without showing it.
    """
    if not isinstance(value, str) or len(value) != 2 * length or not _HEX.fullmatch(value):
        raise ValueError(f"a key, digest or signature is not {2 * length} lower-case hexadecimal digits")
    return bytes.fromhex(value)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields
