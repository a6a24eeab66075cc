"""What a store has beside tables, rows and shards: head, groups, and the labels of its axes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .array_names import ARRAYS, GROUPS
from .layout import StorePaths
from .run_record import RunRecord


def copy_frame(source: Path, place: Path, record: RunRecord) -> None:
    """Copy everything that does not depend on the corpus.

    Parameters
    ----------
    source, place
        The store, and the new one that gets the same model and arrays.
    record
        Of the new one; says which groups it has.
    """
    paths = StorePaths(source)
    for file in (paths.head, paths.head_config):
        if file.exists():
            copy_file(file, place / file.name)
    folders = {GROUPS[name] for name in record.groups}
    # The lens values lie inside the group of the statistics, which is there for them as well.
    folders |= {str(Path(folder).parent) for folder in folders if "/" in folder}
    for folder in folders:
        (place / folder).mkdir(parents=True, exist_ok=True)
        copy_file(source / folder / "zarr.json", place / folder / "zarr.json")
    for name in record.groups:
        for array in (source / GROUPS[name]).iterdir():
            made_anew = array.name in (*ARRAYS[name], "row", "lens")
            for file in () if made_anew else array.rglob("*"):
                if file.is_file():
                    # Folders with the rights of new ones: the source may be read-only.
                    target = place / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    copy_file(file, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file and flush it; its owner may write the copy, whatever the source allows."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
