"""What an extraction is asked to do: one value, from the command line, a YAML file or Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from depthscope.pipeline.corpus import CorpusSpec
from pydantic import BeforeValidator, ByteSize, ConfigDict, PositiveInt

Text = Annotated[str, BeforeValidator(str)]


class ExtractSpec(CorpusSpec):
    """Everything an extraction needs; the fields of `CorpusSpec` say how the corpus is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """The model: a local folder, a hub name, or demo."""

    out: Path
    """The store's folder; one that exists is continued."""

    dtype: str | None = None
    """Precision of weights and computation: bfloat16, float16 or float32 (default: the
    checkpoint's)."""

    attention: str = "auto"
    """Attention implementation, as transformers names it (auto: sdpa where the model has it,
    else eager)."""

    points: Text = "all"
    """Points of the residual stream to store: all, none, or numbers such as 0,8,16 (0 is the
    embedding)."""

    sublayers: bool = False
    """Store what attention and MLP add to the stream, too."""

    rows: Text = "all"
    """Rows whose activations are stored: all, or an SQL predicate over tokens such as NOT
    special AND position % 4 = 0."""

    lens_rows: Text = "32"
    """Rows that get logit-lens values: all, none, a number of documents drawn with the seed, or
    an SQL predicate."""

    statistics: bool = True
    """Measure norms, norm ratios and cosines of every row."""

    store_dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Data type of stored activations (default: the model's)."""

    codec: Literal["auto", "none", "zstd"] = "auto"
    """Compression of stored activations: auto compresses where cores are left over for it."""

    batch_tokens: int | None = None
    """Tokens of a micro-batch, padding included (default: 1024 on a CPU, 16384 on a GPU)."""

    batches: Literal["auto", "sorted", "packed"] = "auto"
    """How documents form micro-batches: sorted by length and padded, or packed into one line (auto:
    packed on a CPU where the model attends document by document, else sorted)."""

    task_rows: int | None = None
    """Corpus rows of a task (default: chosen from the corpus's size and the documents' lengths)."""

    tasks: str | None = None
    """Only these tasks, such as 0-99 or 100-, so that several clusters share a run; store merge
    joins what they made (default: all)."""

    text: bool = True
    """Keep the documents' text and the tokens' strings in the store; their own fields and the token
    ids stay in any case."""

    head: bool = True
    """Keep final norm and unembedding in the store."""

    schedule: Literal["auto", "resident", "staged", "sweep"] = "auto"
    """How the model is laid over devices: whole on each worker, cut into stages over nodes, or
    layer by layer over many rows (auto: the fastest that fits)."""

    stages: PositiveInt | None = None
    """Stages that a staged model is cut into (default: one for each node of the cluster; 2 with
    --engine process)."""

    stage_placement: Literal["spread", "pack"] = "spread"
    """Whether each stage has a node of its own, or stages share as few nodes as hold them."""

    memory: ByteSize | None = None
    """Host memory that a worker may hold, its interpreter apart, such as 64GB (default: its share
    of half of what is free)."""

    device_memory: ByteSize | None = None
    """Memory of each GPU that a worker may hold (default: what is free)."""

    engine: Literal["ray", "process"] = "ray"
    """Where tasks run: on Ray's workers, or in this process."""

    address: str | None = None
    """An existing Ray cluster (default: a local one of this command's own)."""

    workers: int | None = None
    """Workers, each with the whole model: a process, or all stages together (default: 1)."""

    threads: int | None = None
    """Threads of a worker (default: its share of the cores; a store that is continued keeps its
    own)."""

    gpus_per_worker: float | None = None
    """GPUs of a worker, or of each of its stages (default: its share of a node's)."""

    retries: int = 2
    """How often a task that failed is tried again."""

    on_error: Literal["stop", "skip"] = "stop"
    """What a document that fails does: stop the run with everything else committed, or stay as
    invalid rows."""

    allow_nonfinite: bool = False
    """Store NaN and infinities instead of stopping."""

    allow_mixed_hardware: bool = False
    """Continue a store on another device kind, thread count or library version."""

    lens_memory: ByteSize = ByteSize(128 << 20)
    """Largest rows × vocabulary array that lens values may use."""

    offload_folder: Path | None = None
    """Where accelerate may put weights that fit neither device nor memory."""

    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def defaults_from(self, fields: dict[str, object]) -> ExtractSpec:
        """Take what was left open from the store that is continued."""
        open_fields = ("dtype", "batch_tokens", "task_rows")
        taken = {f: fields[f] for f in open_fields if getattr(self, f) is None and f in fields}
        taken |= {f: fields[f] for f in ("codec", "batches") if getattr(self, f) == "auto"}
        return self.model_copy(update=taken)
