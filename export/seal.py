"""A digest of every section of a description, so that an edited label or normalisation is noticed and named. Needs neither torch nor onnx."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGESTS, _SEAL = "digests", "description"


def seal(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`metadata` with the SHA-256 of each of its sections under digests.description. That entry covers all but itself."""
    return {**metadata, _DIGESTS: {**metadata[_DIGESTS], _SEAL: _digests(metadata)}}


def changed_sections(metadata: Mapping[str, Any]) -> list[str] | None:
    """Sections that were changed, added or removed since the file was written; None for a file without a seal, from before there was one."""
    stored = metadata[_DIGESTS].get(_SEAL)
    if stored is None:
        return None
    found = _digests(metadata)
    if not isinstance(stored, Mapping):
        return sorted(found)
    return sorted(name for name in {*stored, *found} if stored.get(name) != found.get(name))


def _digests(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {name: _sha256_of(_unsealed(section) if name == _DIGESTS else section) for name, section in metadata.items()}


def _unsealed(digests: Mapping[str, Any]) -> dict[str, Any]:
    return {part: digest for part, digest in digests.items() if part != _SEAL}


def _sha256_of(section: Any) -> str:
    """The same before a section was written as JSON and after it was read: it goes through JSON once in any case."""
    read = json.loads(json.dumps(section, default=str))
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
