"""What a check of a store finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes
    ----------
    text
        What, where and how to mend it.
    commit
        The commit that must be taken back for it, if any.
    files
        Files that must be removed for it.
    """

    text: str
    commit: Path | None = None
    files: tuple[Path, ...] = ()
