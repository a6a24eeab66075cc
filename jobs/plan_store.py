"""The plan of a store that has been laid out, for the machine at hand: what `auto` follows."""

from __future__ import annotations

from pathlib import Path

from depthscope.pipeline.calibration import remembered
from depthscope.pipeline.costs import ModelCosts
from depthscope.pipeline.devices import Devices, present_devices
from depthscope.pipeline.plan import Plan
from depthscope.pipeline.site import make_site
from depthscope.pipeline.workload import CorpusSize, Selection
from depthscope.storage.run_record import RunRecord
from depthscope.storage.token_table import TokenTable

from .plan_build import planned


def plan_of_store(
    root: Path,
    record: RunRecord,
    costs: ModelCosts,
    *,
    threads: int,
    nodes: int = 1,
    memory: int | None = None,
    device_memory: int | None = None,
    devices: Devices | None = None,
) -> Plan:
    """Every schedule for this store's run; a calibration of the machine is used where there is one.

    Parameters
    ----------
    root, record
        The store.
    costs
        From `costs.model_costs`, in the store's dtype.
    threads
        Of a worker on a processor.
    nodes
        Nodes of the cluster.
    memory, device_memory
        Bytes of host memory of a node, and of each device, that may be used; None: all but a
        reserve.
    devices
        Of a node; None: those of this machine.
    """
    devices = devices or present_devices()
    selection = selection_of(record, costs)
    calibration = None
    if devices.kind.is_host:
        calibration = remembered(costs, selection, threads)
    site = make_site(
        devices,
        nodes,
        cores=threads if devices.kind.is_host else None,
        memory=memory,
        device_memory=device_memory,
        calibration=calibration,
    )
    return planned(
        costs, site, corpus_of(root, record), selection, calibration, codec=selection.codec
    )


def corpus_of(root: Path, record: RunRecord) -> CorpusSize:
    """The size of a store's corpus, from its token table."""
    lengths = TokenTable(root).document_spans()[2]
    return CorpusSize.of_lengths([int(n) for n in lengths if n])


def selection_of(record: RunRecord, costs: ModelCosts) -> Selection:
    """What a store's run takes of every row."""
    identity, groups = record.identity_fields, record.groups
    activations, lens = groups.get("activations"), groups.get("lens")
    return Selection(
        points=record.points,
        sublayers=bool(identity["sublayers"]),
        statistics="statistics" in groups,
        lens_rows=lens.rows if lens else 0,
        store_dtype=str(identity["store_dtype"]),
        codec="zstd" if identity["codec"] == "zstd" else "none",
        batch_tokens=int(identity["batch_tokens"]),
        packed=identity["batches"] == "packed",
        task_rows=record.task_rows,
        lens_memory=int(identity["lens_memory"]),
        row_share=activations.rows / record.rows if activations else 1.0,
    )
