"""From a request to a plan: config, corpus, machines and speeds, put together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from depthscope.pipeline.calibrate import calibrate
from depthscope.pipeline.calibration import Calibration, remembered
from depthscope.pipeline.checkpoint import tokenizer_digest
from depthscope.pipeline.corpus_size import corpus_size
from depthscope.pipeline.costs import ModelCosts, model_costs
from depthscope.pipeline.devices import Devices, parse_devices, present_devices, size
from depthscope.pipeline.families import FAMILIES
from depthscope.pipeline.model import load_tokenizer
from depthscope.pipeline.model_configs import NamedConfig, find_config
from depthscope.pipeline.plan import Plan, auto_codec, plan
from depthscope.pipeline.site import Site, make_site, speed_of
from depthscope.pipeline.workload import CorpusSize, Selection, task_rows
from depthscope.storage.errors import RequestError

from .plan_spec import PlanSpec
from .prepare import parse_points

_DOCUMENT_TOKENS = 2048
_GPU_BATCH, _CPU_BATCH = 16384, 1024


def build_plan(spec: PlanSpec, report: Callable[[str], None] = lambda _: None) -> Plan:
    """The plan that a request asks for; measures this machine first where that is asked.

    Raises
    ------
    RequestError
        the model, the devices, the corpus or a number is wrong.
    """
    devices = parse_devices(spec.devices) if spec.devices else present_devices()
    if devices.kind.is_host and devices.count != 1:
        raise RequestError(f"--devices {spec.devices}: a node has one cpu; give more --nodes")
    if spec.measure and not devices.kind.is_host:
        raise RequestError("--measure measures this machine's processor: give --devices cpu")
    named = find_config(spec.model, spec.dtype, trust_remote_code=spec.trust_remote_code)
    costs = model_costs(
        named.config,
        named.dtype,
        name=named.name,
        attention=spec.attention,
        trust_remote_code=spec.trust_remote_code,
    )
    corpus = _corpus(spec, named, costs)
    selection = select(spec, costs, corpus, on_host=devices.kind.is_host)
    calibration = None
    if devices.kind.is_host:
        calibration = _calibration(spec, named, costs, corpus, selection, report)
    site = _site(spec, devices, calibration)
    if named.note:
        site = replace(site, assumed=(*site.assumed, named.note))
    return planned(costs, site, corpus, selection, calibration, spec.utilisation, spec.codec)


def planned(
    costs: ModelCosts,
    site: Site,
    corpus: CorpusSize,
    selection: Selection,
    calibration: Calibration | None = None,
    utilisation: float = 0.5,
    codec: Literal["auto", "none", "zstd"] = "none",
) -> Plan:
    """The plan of what has been put together; ``auto`` settles the codec by arithmetic."""

    def speed(chosen: Selection) -> Any:
        return speed_of(
            costs, site, corpus, chosen, utilisation=utilisation, calibration=calibration
        )

    if codec == "auto":
        codec = auto_codec(costs, site, corpus, selection, speed(selection))
    selection = replace(selection, codec=codec)
    return plan(costs, site, corpus, selection, speed(selection))


def select(spec: PlanSpec, costs: ModelCosts, corpus: CorpusSize, *, on_host: bool) -> Selection:
    """What is stored, with the defaults that `extract` would settle on."""
    store_dtype = costs.dtype if spec.store_dtype == "model" else spec.store_dtype
    windows = any(layer.window for layer in costs.layers)
    packed = on_host and not windows and costs.family in FAMILIES and costs.attention == "sdpa"
    selection = Selection(
        points=parse_points(spec.points, len(costs.layers)),
        sublayers=spec.sublayers,
        statistics=spec.statistics,
        lens_rows=_lens_rows(spec.lens_rows, corpus),
        store_dtype=store_dtype,
        codec="none",
        batch_tokens=spec.batch_tokens or (_CPU_BATCH if on_host else _GPU_BATCH),
        packed=packed,
        task_rows=spec.task_rows or 1,
        lens_memory=int(spec.lens_memory),
        row_share=_share(spec.rows),
    )
    planes = selection.planes(0, len(costs.layers))
    if not (planes or selection.statistics or selection.lens_rows):
        raise RequestError("nothing to do: --points none, --no-statistics and --lens-rows none")
    rows = spec.task_rows or task_rows(costs, corpus, selection.store_itemsize)
    return replace(selection, task_rows=rows)


def _lens_rows(text: str, corpus: CorpusSize) -> int:
    if text == "none":
        return 0
    if text == "all":
        return corpus.rows
    if not text.isdigit():
        raise RequestError(
            f"--lens-rows {text!r}: a plan counts all, none, or a number of documents; give the "
            "number that the selection comes to"
        )
    return min(corpus.rows, int(text) * max(1, round(corpus.rows / corpus.documents)))


def _share(text: str) -> float:
    try:
        share = 1.0 if text == "all" else float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise RequestError(
            f"--rows {text!r}: a plan takes all, or the share of the rows, such as 0.25"
        )
    return share


def _corpus(spec: PlanSpec, named: NamedConfig, costs: ModelCosts) -> CorpusSize:
    if spec.tokens:
        length = spec.document_tokens or min(_DOCUMENT_TOKENS, costs.context or _DOCUMENT_TOKENS)
        if costs.context and length > costs.context:
            raise RequestError(
                f"--document-tokens {length} is beyond the model's context of {costs.context}"
            )
        return CorpusSize.of_tokens(spec.tokens, length)
    tokenizer = None
    if spec.token_ids is None and named.folder and tokenizer_digest(named.folder):
        tokenizer = load_tokenizer(named.folder, spec.trust_remote_code)
    return corpus_size(spec, tokenizer, costs.context)


def _calibration(
    spec: PlanSpec,
    named: NamedConfig,
    costs: ModelCosts,
    corpus: CorpusSize,
    selection: Selection,
    report: Callable[[str], None],
) -> Calibration | None:
    threads = spec.cores or len(os.sched_getaffinity(0))
    if not spec.measure:
        return remembered(costs, selection, threads)
    report("measuring this machine at the model's shapes")
    return calibrate(named, costs, corpus, selection, threads=threads, folder=_existing(spec.out))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    path = Path(os.path.abspath(folder))
    return next(above for above in (path, *path.parents) if above.is_dir())


def _site(spec: PlanSpec, devices: Devices, calibration: Calibration | None) -> Site:
    def given(name: Literal["memory", "device_memory"]) -> int | None:
        text = getattr(spec, name)
        return None if text is None else size(text, "--" + name.replace("_", "-"))

    def rate(name: Literal["storage_bandwidth", "weights_bandwidth"]) -> float | None:
        text = getattr(spec, name)
        return None if text is None else float(size(text, "--" + name.replace("_", "-")))

    return make_site(
        devices,
        spec.nodes,
        cores=spec.cores,
        memory=given("memory"),
        device_memory=given("device_memory"),
        storage=rate("storage_bandwidth"),
        weights=rate("weights_bandwidth"),
        calibration=calibration,
    )
