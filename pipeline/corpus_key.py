"""Whether a corpus is the one a store was made from, without tokenising it again."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3
from depthscope.storage.atomic import encode_json

from .corpus import CorpusSpec, corpus_sources

#: Fields that name files or say what failures do, not what the tokens are.
_NOT_TOKENS = {"data", "on_error", "seed"}


def corpus_key(spec: CorpusSpec) -> str:
    """Digest of the corpus's bytes and of every option that decides its tokens.

    Cost: one sequential read of the files, by several threads. A file may have moved since.

    Raises
    ------
    RequestError
        A source is missing.
    """
    options = {
        name: value
        for name in sorted(CorpusSpec.model_fields)
        if name not in _NOT_TOKENS and (value := getattr(spec, name)) is not None
    }
    if spec.sample is not None:
        options["seed"] = spec.seed
    return blake3(encode_json([options, [_digest(s) for s in corpus_sources(spec)]])).hexdigest()


def _digest(source: str) -> str:
    if not Path(source).is_file():
        return source
    return blake3(max_threads=blake3.AUTO).update_mmap(source).hexdigest()
