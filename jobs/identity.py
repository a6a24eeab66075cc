"""What makes two runs the same: the fields that decide the numbers, settled and compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from depthscope.pipeline.corpus_key import corpus_key
from depthscope.pipeline.description import ModelInfo
from depthscope.pipeline.packing import packs_without_mask
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord, differences

from .spec import ExtractSpec


def identity_fields(
    spec: ExtractSpec, model: ModelInfo, points: Sequence[int], tokens: str
) -> dict[str, Any]:
    """What decides the numbers, flat and in plain values.

    Parameters
    ----------
    spec
        The request; its open fields must have been settled.
    points
        The stored points.
    tokens
        Digest of the corpus's tokens.
    """
    return {
        "weights": model.weights_digest,
        "config": model.config_digest,
        "tokenizer": model.tokenizer_digest,
        "tokens": tokens,
        "dtype": model.dtype,
        "attention": model.attention,
        "experts": model.experts,
        "points": ",".join(map(str, points)),
        "sublayers": spec.sublayers,
        "rows": spec.rows,
        "lens_rows": spec.lens_rows,
        "seed": spec.seed,
        "statistics": spec.statistics,
        "store_dtype": store_dtype(spec, model),
        "codec": spec.codec,
        "batch_tokens": spec.batch_tokens,
        "batches": spec.batches,
        "lens_memory": int(spec.lens_memory),
        "task_rows": spec.task_rows,
    }


def check_identity(
    spec: ExtractSpec, record: RunRecord, model: ModelInfo, points: Sequence[int]
) -> None:
    """Refuse to continue a store that holds another run.

    Raises
    ------
    RequestError
        Says which fields differ.
    """
    stored = record.identity_fields
    same_corpus = corpus_key(spec) == record.corpus["key"]
    tokens = str(stored["tokens"]) if same_corpus else "another corpus, or read in another way"
    wanted = identity_fields(spec, model, points, tokens)
    if differing := differences(stored, wanted):
        raise RequestError(
            f"{spec.out} holds another run; different are: {'; '.join(differing)}. "
            "Choose another --out, or give the same values"
        )


def store_dtype(spec: ExtractSpec, model: ModelInfo) -> str:
    """Data type of stored activations."""
    return model.dtype if spec.store_dtype == "model" else spec.store_dtype


def settled(spec: ExtractSpec, model: ModelInfo, folder: Path) -> ExtractSpec:
    """Fill in what depends on the machine that lays the store out; the store then keeps it."""
    gpu = _has_gpu()
    # Compress only where cores are left over: on a CPU the model itself uses all of them.
    codec = "zstd" if gpu and (os.cpu_count() or 1) >= 16 else "none"
    packs = not gpu and packs_without_mask(folder, model, spec.trust_remote_code)
    batches: Literal["packed", "sorted"] = "packed" if packs else "sorted"
    return spec.model_copy(
        update={
            "codec": codec if spec.codec == "auto" else spec.codec,
            "batches": batches if spec.batches == "auto" else spec.batches,
            "batch_tokens": spec.batch_tokens or (16384 if gpu else 1024),
        }
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
