"""What an intervention sweep reads beside the model: means over a corpus, and patches."""

from __future__ import annotations

from pathlib import Path

from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord
from depthscope.storage.status import status

from .corpus_means import check_points, check_sublayers
from .intervene_spec import InterveneSpec


def check_sources(root: Path, spec: InterveneSpec, run: RunRecord) -> None:
    """Means and patches are read from whole stores that have what they are made of.

    Raises
    ------
    RequestError
        The store is not finished, lacks sublayers or points, or is of a model of another size.
    """
    if spec.what in ("erase", "mean", "patch"):
        _check_whole(root if spec.what != "patch" else spec.patch_from or root, spec)
    if spec.what == "erase":
        check_points(root, run)
    if spec.what == "mean":
        check_sublayers(root, run, "--what mean")
    if spec.what == "patch":
        other = spec.patch_from or root
        record = RunRecord.load(other)
        check_sublayers(other, record, "--what patch")
        for key, words in (("hidden", "hidden size"), ("layers", "layers")):
            if record.model[key] != run.model[key]:
                raise RequestError(
                    f"--patch-from {other}: its model has {words} {record.model[key]}, this one "
                    f"{run.model[key]}: patch from a model of the same size"
                )
        if spec.patch_document is None and record.documents != run.documents:
            raise RequestError(
                f"--patch-from {other} has {record.documents} documents, this store "
                f"{run.documents}: give --patch-document, or a store of the same corpus"
            )
        if spec.patch_document is not None and not 0 <= spec.patch_document < record.documents:
            raise RequestError(
                f"--patch-document {spec.patch_document}: {other} has documents 0 to "
                f"{record.documents - 1}"
            )


def _check_whole(root: Path, spec: InterveneSpec) -> None:
    found = status(root)
    if found.state != "complete":
        raise RequestError(
            f"--what {spec.what} reads {root}, of which {found.tasks_committed} of "
            f"{found.tasks_total} tasks are committed: run its extract to the end first"
        )
