"""What an intervention sweep is asked to do: one value, from the command line, YAML or Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, PositiveInt

Text = Annotated[str, BeforeValidator(str)]


def _names(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


Names = Annotated[Text, BeforeValidator(lambda value: ",".join(_names(value)))]
Choice = Literal[
    "skip",
    "zero",
    "mean",
    "patch",
    "scale",
    "swap",
    "repeat",
    "reverse",
    "parallel",
    "erase",
    "gradients",
]


class InterveneSpec(BaseModel):
    """Everything an intervention sweep needs; where it runs is said as for an extraction."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """Name of the sweep, of letters, digits, dots, dashes, underscores; its effects are stored as
    effects/NAME.zarr."""

    what: Choice = "skip"
    """What is done to a part of each layer in turn: skip (or zero) it, put its mean or another
    document's values (patch) in its place, scale it; or apply layers of a span in another way; or
    erase the stream itself at every point and position; or integrate gradients of the answer's
    probability along the way from a part's mean over the document to itself."""

    part: Names = "layer"
    """Parts that are changed: layer, attention, mlp, joined by commas."""

    scope: Names = "all,future"
    """Scopes: all positions, or earlier positions with the effects on future ones."""

    case: Names = "later,earlier"
    """Cases of erase: one position, measured at later ones (later) or where the answer is predicted
    (answer); or all earlier positions at once, measured after it (earlier)."""

    answer: str | None = None
    """Which tokens are the answer, an SQL predicate over tokens (for case answer and gradients;
    default of gradients: every token but the first)."""

    steps: PositiveInt = 64
    """Steps of the integral of gradients."""

    kind: Names = "propagated"
    """Kinds of effect: propagated through the layers in between, or local."""

    layers: Text = "all"
    """Layers that are changed in turn: all, or numbers such as 0,5,7."""

    splits: Text | None = None
    """Positions at which future effects are split, such as 16,32,48, or official (up to four of
    8, 16, 24, …, shuffled, as the paper's code draws them)."""

    splits_per_document: PositiveInt | None = None
    """Splits drawn for each document with the seed (default: 4)."""

    documents: PositiveInt | None = None
    """Documents drawn with the seed (default: all)."""

    first_documents: bool = False
    """Take the first documents of the corpus instead of drawing them."""

    seed: int = 0
    """Seed of the draws."""

    where: Text = "all"
    """Positions that are changed, within the scope: all, from one (5-), up to one (-5), or by
    number (1,4,7)."""

    protect_first: Literal["yes", "no"] = "yes"
    """Whether the first position is left alone."""

    factor: float = 0.5
    """Factor of scale."""

    span: PositiveInt = 2
    """Layers of a program's span (swap, repeat, reverse, parallel)."""

    also: tuple[str, ...] = ()
    """Further interventions in every branch, as PART:WHAT:LAYER[:ROWS], such as mlp:skip:3:1-."""

    patch_from: Path | None = None
    """Store that patches are read from (default: this store)."""

    patch_document: int | None = None
    """Document that patches are read from (default: the one of the same number)."""

    schedule: Literal["auto", "resident", "sweep", "staged"] = "auto"
    """Whether the layers stay in memory, whole on each worker (resident) or cut into stages over
    nodes (staged), or come one after the other (sweep), which one device of any size can do (auto:
    resident or sweep)."""

    stages: PositiveInt | None = None
    """Stages that a staged model is cut into (default: one for each node of the cluster; 2 with
    --engine process)."""

    stage_placement: Literal["spread", "pack"] = "spread"
    """Whether each stage has a node of its own, or stages share as few nodes as hold them."""

    engine: Literal["ray", "process"] = "ray"
    """Where tasks run: on Ray's workers, or in this process."""

    address: str | None = None
    """An existing Ray cluster (default: a local one of this command's own)."""

    workers: int | None = None
    """Workers, each with the whole model: a process, or all stages together (default: 1)."""

    threads: int | None = None
    """Threads of a worker, or of each of its stages (default: its share of the cores)."""

    gpus_per_worker: float | None = None
    """GPUs of a worker, or of each of its stages (default: its share of a node's)."""

    memory: ByteSize | None = None
    """Host memory that a worker, or each of its stages on Ray, may hold, its interpreter apart
    (default: its share of half of what is free)."""

    device_memory: ByteSize | None = None
    """Memory of each GPU that a worker may hold (default: what is free)."""

    batch_tokens: int | None = None
    """Tokens of one call, all branches together (default: 8192 on a CPU, 65536 on a GPU)."""

    retries: int = 2
    """How often a task that failed is tried again."""

    trust_remote_code: bool = False
    """Run code that comes with the model."""
