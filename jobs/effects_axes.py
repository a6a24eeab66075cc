"""The axes of an intervention sweep: what is changed, where, and measured from where on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from depthscope.pipeline.interventions import PROGRAMS, Intervention, Rows
from depthscope.storage.errors import RequestError
from depthscope.storage.predicates import select_rows

from .document_splits import choose_documents, choose_splits
from .intervene_spec import InterveneSpec

SCOPES, KINDS, PARTS = ("all", "future"), ("propagated", "local"), ("layer", "attention", "mlp")
CASES = ("later", "earlier", "answer")
#: What is measured token by token: there are no splits.
PER_TOKEN = ("erase", "gradients")


@dataclass(frozen=True)
class Axes:
    """What a sweep measures.

    Attributes
    ----------
    scopes, kinds, parts
        Labels of those axes; an erasure's scopes are its cases, gradients have neither scopes nor
        kinds.
    sources
        Layers, first layers of a program, or points, that are changed.
    documents, lengths
        The store's numbers of the documents, ascending, and their tokens.
    splits
        Of each document; none of an erasure or of gradients.
    """

    scopes: tuple[str, ...]
    kinds: tuple[str, ...]
    parts: tuple[str, ...]
    sources: list[int]
    documents: list[int]
    lengths: list[int]
    splits: list[list[int]]

    def cases(self, what: str) -> int:
        """Lines of the stream that one source takes, for each line of a document."""
        if what == "erase":
            return len(self.scopes) * max(self.lengths)
        if what == "gradients":
            return len(self.parts)
        splits = len(self.splits[0]) if "future" in self.scopes else 0
        return len(self.parts) * (("all" in self.scopes) + splits)


def choose_axes(root: Path, spec: InterveneSpec, layers: int) -> Axes:
    """Settle what a sweep over a model of so many layers measures.

    Raises
    ------
    RequestError
        A name is unknown, a layer does not exist, no split lies inside a document, or documents
        are shorter than two tokens.
    """
    kinds = _known("--kind", spec.kind, KINDS)
    parts = _known("--part", spec.part, PARTS)
    if spec.what == "erase":
        scopes = _known("--case", spec.case, CASES)
        _check_answer(root, spec, scopes)
    else:
        scopes = _known("--scope", spec.scope, SCOPES)
    sources = _sources(spec, layers, parts, kinds)
    documents, lengths = choose_documents(root, spec)
    if spec.what == "gradients":
        scopes, kinds = (), ()
        _check_answer(root, spec, scopes)
    if spec.what in PER_TOKEN:
        splits: list[list[int]] = [[] for _ in documents]
    else:
        splits = choose_splits(spec, scopes, documents, lengths)
    return Axes(scopes, kinds, parts, sources, documents, lengths, splits)


def _known(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise RequestError(f"{option}: {unknown[0]!r} is unknown; give {', '.join(known)}")
    if not names:
        raise RequestError(f"{option} is empty; give {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _check_answer(root: Path, spec: InterveneSpec, cases: Sequence[str]) -> None:
    if "answer" in cases and spec.answer is None:
        raise RequestError("--case answer: say which tokens are the answer with --answer PREDICATE")
    if spec.answer is not None and not len(select_rows(root, spec.answer)):
        raise RequestError(f"--answer {spec.answer!r} selects no token of this corpus")


def _sources(
    spec: InterveneSpec, layers: int, parts: Sequence[str], kinds: Sequence[str]
) -> list[int]:
    for text in spec.also:
        Intervention.parse(text).check(layers)
    Rows.parse(spec.where)
    if "local" in kinds and spec.what not in ("skip", "zero"):
        raise RequestError(f"--kind local takes a contribution away: it has no {spec.what}")
    if spec.what == "erase":
        last = layers
    elif spec.what in PROGRAMS:
        if tuple(parts) != ("layer",):
            raise RequestError(f"--what {spec.what} orders layers: give --part layer")
        if not 1 <= spec.span <= layers:
            raise RequestError(f"--span {spec.span}: this model has {layers} layers")
        last = layers - spec.span
    else:
        last = layers - 1
    if spec.layers == "all":
        return list(range(last + 1))
    try:
        chosen = sorted({int(part) for part in spec.layers.split(",")})
    except ValueError:
        raise RequestError(
            f"--layers {spec.layers!r}: give all, or numbers such as 0,5,7"
        ) from None
    for layer in chosen:
        if not 0 <= layer <= last:
            raise RequestError(
                f"--layers {layer} does not exist: this model has layers 0 to {layers - 1}"
                + (
                    f", and a span of {spec.span} begins at {last} at most"
                    if last < layers - 1
                    else ""
                )
            )
    return chosen
