"""What `depthscope plan` is asked: a model, machines, a corpus's size, and what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from depthscope.pipeline.corpus import CorpusSpec
from depthscope.storage.errors import RequestError
from pydantic import (
    BeforeValidator,
    ByteSize,
    ConfigDict,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Text = Annotated[str, BeforeValidator(str)]


def _count(value: object) -> object:
    """Large numbers may be written as 1e9, or with thousands set apart."""
    if isinstance(value, str):
        plain = value.replace(",", "").replace("_", "")
        try:
            return int(float(plain)) if "e" in plain.lower() else plain
        except (ValueError, OverflowError):
            return value
    return value


class PlanSpec(CorpusSpec):
    """Options of the command; the fields of `CorpusSpec` say how ``data`` is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: tuple[str, ...] = ()
    """Files of the corpus, counted with the model's tokenizer where its folder has one."""

    model: str
    """The model: a folder with a config.json, a built-in name such as llama-3.1-405b, a hub name,
    or demo."""

    devices: str | None = None
    """Devices of a node, such as h100:8 (also h200, b200, a100-80, a100-40, l40s, rtx4090, cpu), or
    numbers of your own: name=x,memory=96GB,tflops=400,link=50GB/s:4 (default: this machine's)."""

    nodes: PositiveInt = 1
    """Nodes."""

    tokens: Annotated[PositiveInt | None, BeforeValidator(_count)] = None
    """Tokens of the corpus, such as 1e9, instead of --data."""

    document_tokens: PositiveInt | None = None
    """Tokens of a document, with --tokens (default: 2048, or the model's context if shorter)."""

    points: Text = "all"
    """Points of the residual stream to store: all, none, or numbers such as 0,8,16."""

    sublayers: bool = False
    """Store what attention and MLP add to the stream, too."""

    rows: Text = "all"
    """Rows whose activations are stored: all, or their share, such as 0.25."""

    statistics: bool = True
    """Measure norms, norm ratios and cosines of every row."""

    lens_rows: Text = "32"
    """Rows that get logit-lens values: all, none, or a number of documents."""

    dtype: str | None = None
    """Precision of weights and computation (default: the model's)."""

    attention: str = "auto"
    """Attention implementation, as transformers names it."""

    store_dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Data type of stored activations (default: the model's)."""

    codec: Literal["auto", "none", "zstd"] = "auto"
    """Compression of stored activations (auto: where it makes the run no slower)."""

    storage_bandwidth: Text | None = None
    """Bytes/s that a node writes to the store, such as 5GB/s."""

    weights_bandwidth: Text | None = None
    """Bytes/s at which a node reads weights, such as 7GB/s."""

    memory: Text | None = None
    """Host memory of a node that may be used, such as 500GB."""

    device_memory: Text | None = None
    """Memory of each device that may be used (default: all but 2 GB)."""

    cores: PositiveInt | None = None
    """Processor cores of a node (default: 16 for each GPU)."""

    utilisation: PositiveFloat = 0.5
    """Share of the devices' peak that matrix products reach, where nothing was measured."""

    batch_tokens: PositiveInt | None = None
    """Tokens of a micro-batch (default: 1024 on a CPU, 16384 on a GPU)."""

    task_rows: PositiveInt | None = None
    """Corpus rows of a task (default: as extract chooses them)."""

    lens_memory: ByteSize = ByteSize(128 << 20)
    """Largest rows × vocabulary array that lens values may use."""

    measure: bool = False
    """Measure this machine first, at the model's own shapes, and remember the result."""

    out: Path = Path()
    """Folder of the future store: --measure measures its disk."""

    trust_remote_code: bool = False
    """Run code that comes with the model."""

    @model_validator(mode="after")
    def _consistent(self) -> PlanSpec:
        if self.data:
            CorpusSpec(**{name: getattr(self, name) for name in CorpusSpec.model_fields})
        if self.data and (self.tokens or self.document_tokens):
            raise RequestError("--data and --tokens exclude each other; give one of them")
        if not self.data and not self.tokens:
            raise RequestError("--tokens or --data is missing: how large is the corpus?")
        if self.utilisation > 1:
            raise RequestError(
                f"--utilisation {self.utilisation:g} is more than the whole: give 0 to 1"
            )
        return self
