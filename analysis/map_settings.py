"""How maps between two models are made, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from depthscope.storage.errors import RequestError

from .client import Progress
from .map_choice import RIDGES
from .row_pairs import Pairing, TokenSet

#: Raised whenever the numbers change for the same inputs.
REVISION = 1


@dataclass(frozen=True)
class MapSettings:
    """How maps are made.

    Attributes
    ----------
    source_points, target_points
        Points that take part; None for all that are stored.
    token_set
        ``content`` leaves out first positions and special tokens, ``all`` keeps them.
    massive
        Rows whose norm at any point exceeds so many times that point's median are left out; 0
        keeps them.
    ridges
        What is tried for each pair, as multiples of the mean eigenvalue of XᵀX (the sum over
        training rows, centred); 0 is least squares.
    rank
        Maps of at most that rank; None for any.
    validation, test
        Shares of the documents.
    pairing
        ``tokens``, ``offsets``, or ``auto`` by the tokenizers.
    least_shared
        Share of the smaller store's documents that must be in both.
    seed
        Of the parts, the shuffled baseline and the bootstrap.
    resamples, level
        Of the bootstrap over held-out documents.
    memory
        Bytes that the process may hold; None for half of what is free.
    device
        None for numpy; ``cpu``, ``cuda`` … for torch.
    scratch
        Folder for moments that do not fit; None for the system's.
    progress
        Called with the rows read and the rows to read, over all passes.
    """

    source_points: Sequence[int] | None = None
    target_points: Sequence[int] | None = None
    token_set: TokenSet = "content"
    massive: float = 20.0
    ridges: Sequence[float] = RIDGES
    rank: int | None = None
    validation: float = 0.1
    test: float = 0.1
    pairing: Pairing = "auto"
    least_shared: float = 0.5
    seed: int = 0
    resamples: int = 1000
    level: float = 0.95
    memory: int | None = None
    device: str | None = None
    scratch: Path | None = None
    progress: Progress | None = field(default=None, compare=False)

    def parameters(self) -> dict[str, object]:
        """Everything that decides the numbers."""
        left_out = {"memory", "device", "scratch", "progress"}
        values = {n: getattr(self, n) for n in self.__dataclass_fields__ if n not in left_out}
        lists = {n: list(v) if isinstance(v, list | tuple) else v for n, v in values.items()}
        return {**lists, "revision": REVISION}

    def check(self) -> None:
        """Refuse what cannot be.

        Raises
        ------
        RequestError
            A value is out of range.
        """
        if not self.ridges or min(self.ridges) < 0:
            raise RequestError("ridges must be at least one number that is not negative")
        if self.validation <= 0 or self.test <= 0 or self.validation + self.test >= 1:
            raise RequestError(
                f"validation {self.validation:g} and test {self.test:g} must be positive and leave "
                "documents to train on"
            )
        if self.rank is not None and self.rank < 1:
            raise RequestError(f"rank {self.rank} must be at least 1")
        if self.massive < 0:
            raise RequestError(f"massive {self.massive:g} must not be negative; 0 keeps all rows")
