"""What `depthscope map` is asked to do: one value, from the command line, YAML or Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, PositiveInt

Text = Annotated[str, BeforeValidator(str)]
Share = Annotated[float, Field(gt=0, lt=1)]


class MapSpec(BaseModel):
    """Everything that decides the results of `depthscope map`, and where they are computed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: Path
    """The result: a Zarr group; a heat map is drawn beside it as PNG."""

    source_points: Text | None = None
    """Points of the source, such as 0,8,16 (default: all that are stored)."""

    target_points: Text | None = None
    """Points of the target, such as 0,8,16 (default: all that are stored)."""

    tokens: Literal["content", "all"] = "content"
    """Rows that take part: without first positions and special tokens, or all."""

    massive: Annotated[float, Field(ge=0)] = 20.0
    """Leave out rows whose norm at any point exceeds so many times that point's median; 0 keeps
    them."""

    ridge: Text | None = None
    """Ridges to try for every pair, as multiples of the mean eigenvalue of the source's moments,
    such as 0,1e-6,1e-3; 0 is least squares (default: 0, and 1e-8 to 10)."""

    rank: PositiveInt | None = None
    """Maps of at most that rank (default: any)."""

    validation: Share = 0.1
    """Share of the documents on which the ridge is chosen."""

    test: Share = 0.1
    """Share of the documents on which maps are tested."""

    pairing: Literal["auto", "tokens", "offsets"] = "auto"
    """Rows pair by equal tokens or by character offsets (default: by the tokenizers)."""

    least_shared: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Refuse stores that share less of the smaller one's documents."""

    seed: int = 0
    """Decides the parts, the shuffled baseline and the bootstrap."""

    resamples: PositiveInt = 1000
    """Resamples of the bootstrap over held-out documents."""

    confidence: Share = 0.95
    """Coverage of the intervals."""

    memory: ByteSize | None = None
    """Memory to stay within, such as 4GB; with less, rows are read more often (default: half of
    what is free)."""

    device: str | None = None
    """Do the products with torch on this device: cpu, cuda, cuda:1 (default: numpy)."""

    scratch: Path | None = None
    """Folder for moments that do not fit into memory (default: the system's)."""
