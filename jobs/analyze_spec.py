"""What an analysis is asked to do: one value, from the command line, YAML or Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from depthscope.storage.errors import RequestError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
)

Text = Annotated[str, BeforeValidator(str)]
Share = Annotated[float, Field(gt=0, lt=1)]


class AnalyzeSpec(BaseModel):
    """Everything that decides the results of `depthscope analyze`, and where they are computed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    source: Literal["statistics", "activations"] = "statistics"
    """Reduce the worker's statistics, or compute again from stored activations."""

    effects: str | None = None
    """Name of the intervention sweep for interactions and depth_score (default: the only one)."""

    partial: bool = False
    """Use an unfinished sweep as far as it is committed."""

    level: Text | None = None
    """Field of the documents that holds their level, for depth_score."""

    levels: Text | None = None
    """Levels to use, in their order, joined by commas (default: all; numbers sorted as numbers)."""

    part: Literal["layer", "attention", "mlp"] = "layer"
    """The part whose changes make the depth score."""

    tokens: Literal["content", "all"] = "content"
    """Tokens for depth: without first positions and special tokens, or all."""

    kl_share: Share = 0.5
    """depth: the lens's divergence counts as settled below this share of its largest."""

    overlap_least: Share = 0.3
    """depth: the lens's best five guesses count as settled above this overlap."""

    memory: ByteSize | None = None
    """geometry, probes, tuned_lens: memory that a process may hold, such as 4GB; with less, rows
    are read more often (default: half of what is free)."""

    label: Text | None = None
    """probes: the column of the documents, or of the tokens, that is predicted."""

    labels: Text | None = None
    """probes: values of the label to predict, joined by commas (default: all)."""

    pool: Literal["last", "mean", "each"] | None = None
    """probes: classify each document's last row, the mean of its content rows, or each content row
    (default: last for a column of documents, each for one of tokens)."""

    folds: Annotated[int, Field(ge=2)] = 5
    """probes: parts of the documents that are predicted in turn."""

    by: Literal["bucket", "pos", "fact", "options"] = "bucket"
    """onset: classes of tokens: bucket (how common the target is), pos (part of speech of the next
    word, from the fields tokens and upos), fact (token of the answer), options (the rank among the
    options of a multiple-choice question)."""

    target: Literal["final", "next"] = "final"
    """onset: the token whose rank is followed: the model's own final one, or the text's next."""

    lens: Literal["logit", "tuned"] = "logit"
    """onset, flips: read the stream as it is, or through the tuned lens of the store."""

    ranks: Text = "1,5,10"
    """onset: rank thresholds, joined by commas."""

    frequencies: Path | None = None
    """onset, flips: table of token counts, a .parquet, .csv or .jsonl file with token_id and count
    (default: counted in the store's own corpus)."""

    answer: str | None = None
    """onset: field of the documents that holds the answer, for --by fact (default: attribute), or
    the right option, for --by options (default: answer or answerKey)."""

    steps: NonNegativeInt = 100
    """tuned_lens: steps of the training; 0 leaves the closed form it begins with."""

    batch_rows: PositiveInt = 1024
    """tuned_lens: rows of a step."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """tuned_lens: adamw, or sgd as published."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """tuned_lens: learning rate, which falls to zero (default: 0.001 for adamw, 0.1 for sgd)."""

    device: str | None = None
    """tuned_lens: torch device to train on, such as cuda (default: the processor)."""

    resamples: PositiveInt = 1000
    """Resamples of the bootstrap over documents."""

    seed: int = 0
    """Seed of the bootstrap."""

    confidence: Share = 0.95
    """Coverage of the intervals."""

    out: Path | None = None
    """Where to save the one result that is named (default: in the store)."""

    scheduler: str | None = None
    """Where Dask computes: threads, local (processes; default in a Slurm allocation), or the
    address of a scheduler."""

    slurm_workers: int | None = None
    """Compute on so many Dask workers under Slurm."""

    def where(self) -> str | None:
        """Where Dask computes, in one word, as ``depthscope.analysis.client.compute_on`` takes it.

        Raises
        ------
        RequestError
            A scheduler and workers under Slurm are asked for, or no worker at all.
        """
        if self.slurm_workers is None:
            return self.scheduler
        if self.scheduler is not None:
            raise RequestError(
                "--slurm-workers starts a scheduler of its own: leave --scheduler out"
            )
        if self.slurm_workers < 1:
            raise RequestError(f"--slurm-workers {self.slurm_workers}: needs at least one")
        return f"slurm:{self.slurm_workers}"
