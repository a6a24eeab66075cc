"""Laying a store out: everything about it is decided, checked and written before a worker starts.

The store is prepared under a temporary name beside its place and renamed as a whole, so a request
that turns out to be wrong leaves nothing, and a store that exists is always complete in its plan.
Cost: one pass over the corpus's text; no weights are loaded.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from depthscope.pipeline.description import ModelInfo, describe_model
from depthscope.pipeline.head_export import export_head
from depthscope.pipeline.model import load_tokenizer, resolve_folder
from depthscope.pipeline.tokens import tokenize_corpus
from depthscope.storage.atomic import write_json
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tables import TableWriter

from .identity import check_identity, settled
from .lay_out import create_arrays, make_record
from .room import check_room
from .spec import ExtractSpec

#: Token ids that have no embedding fail on the worker, where ``--on-error`` decides about them.
_ANY_ID = 1 << 31


def prepare(
    spec: ExtractSpec, report: Callable[[str], None] = lambda _: None
) -> tuple[RunRecord, Path]:
    """Lay the store out, or check that the one that exists is this very run.

    Returns
    -------
    The run's record and the model's folder.

    Raises
    ------
    RequestError
        The request is wrong, or the store holds another run; nothing is left behind.
    """
    folder = resolve_folder(spec.model, trust_remote_code=spec.trust_remote_code)
    record = _existing(spec.out)
    if record is not None:
        spec = spec.defaults_from(dict(record.identity_fields))
    model = describe_model(
        folder,
        spec.dtype,
        spec.attention,
        name=spec.model,
        trust_remote_code=spec.trust_remote_code,
    )
    if record is not None:
        check_identity(spec, record, model, parse_points(spec.points, model.layers))
        return record, folder
    return _lay_out(spec, model, folder, report), folder


def parse_points(text: str, layers: int) -> tuple[int, ...]:
    """Turn ``all``, ``none`` or ``0,8,16`` into ascending points.

    Raises
    ------
    RequestError
        A point is no number, or outside 0..L.
    """
    if text == "all":
        return tuple(range(layers + 1))
    if text == "none":
        return ()
    try:
        points = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise RequestError(
            f"--points {text!r}: give all, none, or numbers such as 0,8,16"
        ) from None
    if points[0] < 0 or points[-1] > layers:
        wrong = points[0] if points[0] < 0 else points[-1]
        raise RequestError(
            f"--points {wrong}: this model has {layers} layers, so its points are 0 to {layers}"
        )
    return points


def _existing(root: Path) -> RunRecord | None:
    if StorePaths(root).run.exists():
        return RunRecord.load(root)
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise RequestError(f"{root} exists and is no store: choose another --out, or empty it")
    except OSError as error:
        raise RequestError(f"{root} cannot be read: {error.strerror}") from error
    return None


def _lay_out(
    spec: ExtractSpec, model: ModelInfo, folder: Path, report: Callable[[str], None]
) -> RunRecord:
    points = parse_points(spec.points, model.layers)
    spec = settled(spec, model, folder)
    out = Path(os.path.abspath(spec.out))
    place = out.parent / f".{out.name}.preparing-{secrets.token_hex(4)}"
    try:
        _remove_stale(out)
        place.mkdir(parents=True)
    except OSError as error:
        raise RequestError(
            f"{spec.out} cannot be written: {error.strerror}: choose another --out"
        ) from error
    try:
        report("tokenising the corpus")
        with TableWriter(StorePaths(place), text=spec.text) as writer:
            # Token ids need no tokenizer; where there is one, it gives them their text.
            needed = spec.token_ids is None or model.tokenizer_digest
            tokenizer = load_tokenizer(folder, spec.trust_remote_code) if needed else None
            corpus = tokenize_corpus(spec, tokenizer, model.context, writer, vocabulary=_ANY_ID)
        record = make_record(place, spec, model, corpus, points)
        plans = create_arrays(place, spec, model, record)
        if spec.head:
            export_head(folder, model, spec.trust_remote_code).save(place)
        else:
            checkpoint = {"checkpoint": str(folder), "weights_digest": model.weights_digest}
            write_json(StorePaths(place).head_config, checkpoint)
        check_room(out.parent, plans, record)
        shutil.rmtree(StorePaths(place).partial, ignore_errors=True)
        record.save(place)
        return _put_in_place(spec, place, out, record, model)
    except OSError as error:
        raise RequestError(f"{spec.out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _put_in_place(
    spec: ExtractSpec, place: Path, out: Path, record: RunRecord, model: ModelInfo
) -> RunRecord:
    try:
        os.rename(place, out)
    except OSError:
        # Another run of the same command was faster; its store must be this very run.
        existing = _existing(out)
        if existing is None:
            raise
        spec = spec.defaults_from(dict(existing.identity_fields))
        check_identity(spec, existing, model, record.points)
        return existing
    return record


def _remove_stale(out: Path) -> None:
    """Remove what preparations that were killed left beside the store."""
    for folder in out.parent.glob(f".{out.name}.preparing-*"):
        if datetime.now().timestamp() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)
