"""Interventions: changes to a forward pass, as data.

An intervention replaces, at one layer and at chosen positions, what a part adds to the stream. A
branch is a forward pass with one or more of them, or with some layers applied in another order (a
layer program), at chosen positions. Nothing here runs anything. Semantics: design.md section 4;
source of skipping: Csordás et al. 2025, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from depthscope.storage.errors import RequestError

PartName = Literal["layer", "attention", "mlp"]
#: What an intervention makes of what a part adds.
OPERATIONS = ("skip", "zero", "mean", "patch", "scale")
#: Orders in which a program applies the layers of its span.
PROGRAMS = ("swap", "repeat", "reverse", "parallel")


@dataclass(frozen=True)
class Rows:
    """Positions of a document, 0-based: from ``first`` to ``last`` (end excluded), or those named.

    Attributes
    ----------
    first, last
        A range; ``last`` None is the document's end.
    chosen
        Positions by number instead; None for the range.
    """

    first: int = 0
    last: int | None = None
    chosen: tuple[int, ...] | None = None

    def mask(self, width: int, length: int) -> torch.Tensor:
        """bool (width,): which positions of a document of that length."""
        places = torch.arange(width)
        inside = places < length
        if self.chosen is not None:
            return inside & torch.isin(places, torch.tensor(self.chosen, dtype=places.dtype))
        inside &= places >= self.first
        return inside if self.last is None else inside & (places < self.last)

    @classmethod
    def parse(cls, text: str) -> Rows:
        """From ``all``, ``5-`` (from 5 on), ``-5`` (up to and with 5), ``2-5`` or ``1,4,7``.

        Raises
        ------
        RequestError
            It is none of these.
        """
        text = text.strip()
        try:
            if text == "all":
                return cls()
            if "-" not in text:
                return cls(chosen=tuple(sorted({int(part) for part in text.split(",")})))
            first, last = (part.strip() for part in text.split("-"))
            return cls(int(first or 0), int(last) + 1 if last else None)
        except ValueError:
            raise RequestError(
                f"rows {text!r}: give all, a range such as 5-, -5 or 2-5, or numbers such as 1,4,7"
            ) from None


@dataclass(frozen=True)
class Intervention:
    """What one part of one layer adds, changed at some positions.

    Attributes
    ----------
    part
        ``layer``, ``attention`` or ``mlp``.
    what
        ``skip`` and ``zero``: nothing; ``mean``: the mean over the corpus; ``patch``: what another
        run or document has there; ``scale``: ``factor`` times itself.
    at
        The layer, 0-based.
    rows
        Where.
    factor
        Of ``scale``.
    """

    part: PartName
    what: str
    at: int
    rows: Rows = field(default_factory=Rows)
    factor: float = 1.0

    def apply(self, value: torch.Tensor, replacement: torch.Tensor | None) -> torch.Tensor:
        """What the part adds instead, before rows are chosen; ``value`` (…, width, d)."""
        if self.what in ("skip", "zero"):
            return torch.zeros_like(value)
        if self.what == "scale":
            return value * self.factor
        if replacement is None:
            raise RuntimeError(f"{self.what} has nothing to put in place")
        return replacement.to(value).expand_as(value)

    def check(self, layers: int) -> None:
        """Refuse what no model of so many layers can do.

        Raises
        ------
        RequestError
            The part, what is done, or the layer does not exist.
        """
        if self.part not in ("layer", "attention", "mlp"):
            raise RequestError(f"unknown part {self.part!r}: give layer, attention or mlp")
        if self.what not in OPERATIONS:
            raise RequestError(f"unknown intervention {self.what!r}: give {', '.join(OPERATIONS)}")
        if not 0 <= self.at < layers:
            raise RequestError(
                f"layer {self.at} does not exist: this model has layers 0 to {layers - 1}"
            )

    @classmethod
    def parse(cls, text: str) -> Intervention:
        """From ``PART:WHAT:LAYER[:ROWS]``; ``scale`` is written ``scale=0.5``.

        Raises
        ------
        RequestError
            It is not of that form.
        """
        pieces = text.split(":")
        if len(pieces) not in (3, 4) or not pieces[2].isdigit():
            raise RequestError(
                f"intervention {text!r}: write PART:WHAT:LAYER[:ROWS], such as mlp:skip:3:1-"
            )
        what, _, factor = pieces[1].partition("=")
        rows = Rows.parse(pieces[3]) if len(pieces) == 4 else Rows()
        try:
            return cls(pieces[0], what, int(pieces[2]), rows, float(factor or 1))  # type: ignore[arg-type]
        except ValueError:
            raise RequestError(f"intervention {text!r}: {factor!r} is no number") from None


@dataclass(frozen=True)
class Program:
    """Layers of a span applied in another way; the positions that take part are the branch's.

    Attributes
    ----------
    what
        ``swap`` and ``reverse``: in reverse order; ``repeat``: each twice; ``parallel``: each on
        what the first of them reads, and their outputs averaged (Sun et al. 2024, "painters").
    first, last
        The span, end excluded.
    """

    what: str
    first: int
    last: int

    def steps(self) -> list[tuple[int, ...]]:
        """Layers of each step, in order; those of one step read the same stream."""
        span = list(range(self.first, self.last))
        if self.what in ("swap", "reverse"):
            return [(layer,) for layer in reversed(span)]
        if self.what == "repeat":
            return [(layer,) for layer in span for _ in range(2)]
        return [tuple(span)]

    def check(self, layers: int) -> None:
        """Refuse a span outside the model.

        Raises
        ------
        RequestError
            The program is unknown, or its span does not lie in 0..L.
        """
        if self.what not in PROGRAMS:
            raise RequestError(f"unknown layer program {self.what!r}: give {', '.join(PROGRAMS)}")
        if not 0 <= self.first < self.last <= layers:
            raise RequestError(
                f"layers {self.first} to {self.last - 1} do not exist: this model has layers 0 to "
                f"{layers - 1}"
            )


def reach(what: str, span: int) -> int:
    """Layers before the one at which a change is made that it applies again.

    A program of ``span`` layers is applied at the last of them; other changes act on their layer.
    """
    return span - 1 if what in PROGRAMS else 0


@dataclass(frozen=True)
class Branch:
    """One forward pass with changes, of one document.

    Attributes
    ----------
    document
        Place of the document in its task.
    where
        Place in the result: scope, part, split, source.
    acts, measures
        bool (length,): positions that are changed, and those where effects are measured.
    changes
        Interventions by layer, ascending; their rows lie within ``acts``.
    program
        A layer program instead; None for none.
    erases
        Point at which the stream itself is replaced by its mean; None for nowhere.
    """

    document: int
    where: tuple[int, ...]
    acts: torch.Tensor
    measures: torch.Tensor
    changes: tuple[Intervention, ...] = ()
    program: Program | None = None
    erases: int | None = None

    @property
    def birth(self) -> int:
        """The layer at whose output, or for an erasure at whose input, the branch first differs."""
        if self.program is not None:
            return self.program.last - 1
        if self.erases is not None:
            return self.erases
        return min(change.at for change in self.changes)

    def at(self, layer: int) -> list[Intervention]:
        """Its interventions at a layer."""
        return [change for change in self.changes if change.at == layer]


def as_data(branches: Sequence[Intervention | Program]) -> list[dict[str, Any]]:
    """Interventions as plain values, for a result's attributes."""
    from dataclasses import asdict

    return [{"kind": type(branch).__name__.lower(), **asdict(branch)} for branch in branches]
