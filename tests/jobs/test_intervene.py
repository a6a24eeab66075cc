"""Intervention sweeps through the public command, against the slow way and known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from depthscope.jobs import ExtractSpec, InterveneSpec, extract, intervene
from depthscope.storage.errors import RequestError
from depthscope.storage.token_table import TokenTable

from ..conftest import sentences, write_jsonl
from ..slow_interventions import SlowInterventions, effect, outputs


@pytest.fixture(scope="module")
def store(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intervene")
    records: list[dict[str, object]] = [{"text": t} for t in sentences(6, seed=3)]
    root = folder / "store"
    extract(
        ExtractSpec(
            model=str(tiny_model),
            data=(str(write_jsonl(folder / "corpus.jsonl", records)),),
            out=root,
            engine="process",
            sublayers=True,
            threads=1,
        )
    )
    return root


def run(store: Path, name: str, **options: Any) -> xr.Dataset:
    defaults = {"engine": "process", "threads": 1, "schedule": "resident"}
    intervene(store, InterveneSpec(name=name, **(defaults | options)))
    return xr.open_zarr(store / "effects" / f"{name}.zarr", consolidated=False).load()


def tokens(store: Path, document: int) -> list[int]:
    table = TokenTable(store)
    _, starts, lengths = table.document_spans()
    first = int(starts[document])
    return table.token_ids(first, first + int(lengths[document])).tolist()


def test_agrees_with_the_slow_way(store: Path, tiny_model: Path) -> None:
    found = run(
        store,
        "whole",
        part="layer,attention,mlp",
        scope="all,future",
        kind="propagated,local",
        splits_per_document=2,
        seed=5,
    )
    slow = SlowInterventions(tiny_model)
    layers = found.sizes["target"]
    checked = 0
    for place, document in enumerate(found.document.values.tolist()):
        ids = tokens(store, document)
        base = slow.run(ids)
        places = torch.arange(len(ids))
        for scope in ("all", "future"):
            for number in range(found.sizes["split"]):
                split = int(found.split_position[place, number])
                cell = found.sel(scope=scope).isel(document=place, split=number)
                if (scope == "all" and number) or (scope == "future" and split < 0):
                    assert np.isnan(cell.effect_max).all()
                    continue
                acts = places >= 1 if scope == "all" else (places >= 1) & (places < split)
                measures = places >= 1 if scope == "all" else places >= split
                for part in ("layer", "attention", "mlp"):
                    for source in range(layers):
                        other = slow.run(ids, part, source, acts)
                        here = cell.sel(kind="propagated", part=part, source=source)
                        wanted = outputs(base.logits, other.logits, measures)
                        got = [float(here[f"output_{n}"]) for n in ("l2_max", "l2_mean", "kl_mean")]
                        np.testing.assert_allclose(got, wanted, atol=2e-5)
                        near = cell.sel(kind="local", part=part, source=source)
                        for target in range(layers):
                            if target < source:
                                assert np.isnan(here.effect_max[target])
                                assert np.isnan(near.effect_max[target])
                                continue
                            wanted = effect(base.added[target], other.added[target], measures)
                            got = [float(here[f"effect_{n}"][target]) for n in ("max", "mean")]
                            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
                            if target > source:
                                c = slow.local(ids, base, part, source, target, acts)
                                wanted = effect(base.added[target], c, measures)
                                got = [float(near[f"effect_{n}"][target]) for n in ("max", "mean")]
                                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
                            checked += 1
    assert checked > 300
    diagonal = found.effect_max.sel(part="layer", kind="propagated")
    for layer in range(layers):
        of = diagonal.isel(source=layer, target=layer)
        assert (of.sel(scope="all").isel(split=0) == 1).all()
        future = of.sel(scope="future").values
        assert (future[~np.isnan(future)] == 0).all()
    assert np.isnan(found.effect_max.sel(kind="local").isel(source=1, target=1)).all()
    # In a model so narrow, rows of a product may round otherwise in another place of the batch.
    assert float(found.noise_effect_max.max()) <= 1e-6
    assert float(found.noise_output_l2_max.max()) <= 1e-6


def test_sweep_and_resident_agree_bit_for_bit(store: Path) -> None:
    options = {"part": "layer,attention", "kind": "propagated,local", "seed": 2}
    resident = run(store, "resident", **options)
    sweep = run(store, "sweep", schedule="sweep", **options)
    for name in resident.data_vars:
        np.testing.assert_array_equal(resident[name].values, sweep[name].values, err_msg=name)


def test_small_budgets_cut_the_sources(store: Path) -> None:
    whole = run(store, "roomy", seed=2)
    record = run(store, "tight", seed=2, batch_tokens=256)
    for name in ("effect_max", "output_kl_mean"):
        np.testing.assert_allclose(record[name], whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["scale", "mean", "patch"])
def test_other_interventions(store: Path, tiny_model: Path, what: str) -> None:
    options: dict[str, Any] = {"factor": 0.25} if what == "scale" else {}
    if what == "patch":
        options["patch_document"] = 1
    found = run(store, what, what=what, part="mlp", scope="all", **options)
    slow = SlowInterventions(tiny_model)
    mlps = [slow.run(tokens(store, d)).mlp for d in found.document.values.tolist()]
    for place, document in enumerate(found.document.values.tolist()):
        ids = tokens(store, document)
        base = slow.run(ids)
        acts = torch.arange(len(ids)) >= 1
        for source in range(found.sizes["source"]):
            replacement = None
            reach = acts
            if what == "mean":
                replacement = torch.cat([m[source] for m in mlps]).double().mean(0).float()
            if what == "patch":
                replacement = torch.zeros(len(ids), mlps[1].shape[-1])
                n = min(len(ids), mlps[1].shape[1])
                replacement[:n] = mlps[1][source][:n]
                reach = acts & (torch.arange(len(ids)) < n)
            other = slow.run(ids, "mlp", source, reach, factor=0.25, replacement=replacement)
            cell = found.isel(scope=0, kind=0, part=0, document=place, split=0, source=source)
            got = [float(cell[f"output_{n}"]) for n in ("l2_max", "l2_mean", "kl_mean")]
            np.testing.assert_allclose(
                got, outputs(base.logits, other.logits, acts), rtol=1e-3, atol=2e-5
            )


def test_resuming_does_only_what_is_open(store: Path) -> None:
    spec = InterveneSpec(name="resumed", engine="process", threads=1)
    first = intervene(store, spec)
    assert first.committed == first.tasks > 1
    again = intervene(store, spec)
    assert again.committed == 0
    commits = sorted((store / "commits" / "effects" / "resumed").iterdir())
    for file in commits[0].iterdir():
        file.unlink()
    assert intervene(store, spec).committed == 1
    with pytest.raises(RequestError, match="another sweep"):
        intervene(store, InterveneSpec(name="resumed", engine="process", threads=1, seed=9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": "900"}, "no split lies inside"),
        ({"splits": "1"}, "at least 2"),
        ({"layers": "3"}, "does not exist"),
        ({"part": "head"}, "--part"),
        ({"also": ("mlp:skip:9",)}, "does not exist"),
        ({"memory": "1KB"}, "too little"),
        ({"what": "patch", "patch_document": 77}, "--patch-document 77"),
        ({"what": "swap", "part": "mlp"}, "--part layer"),
    ],
    ids=str,
)
def test_bad_requests_write_nothing(store: Path, options: dict[str, Any], message: str) -> None:
    before = sorted(store.rglob("*"))
    with pytest.raises(RequestError, match=message):
        intervene(store, InterveneSpec(name="bad", engine="process", **options))
    assert sorted(store.rglob("*")) == before


def test_erasing_the_stream(store: Path, tiny_model: Path) -> None:
    """Against hooks that replace the stream; erasing t changes nothing before t."""
    found = run(
        store,
        "erased",
        what="erase",
        case="later,earlier,answer",
        answer="position >= 4",
        documents=3,
    )
    slow = SlowInterventions(tiny_model)
    every = [slow.run(tokens(store, d)) for d in range(6)]
    layers = len(slow.layers)
    for point in range(layers + 1):
        stream = [p.inputs[point] if point < layers else p.final for p in every]
        mean = torch.cat(stream).double().mean(0).float()
        for place, document in enumerate(found.document.values.tolist()):
            ids = tokens(store, document)
            base = every[document]
            places = torch.arange(len(ids))
            for position in range(len(ids)):
                cell = found.output_l2.sel(point=point, position=position).isel(document=place)
                one = places == position
                wanted = {
                    "later": (one, places > position),
                    "earlier": ((places >= 1) & (places < position), places > position),
                    "answer": (one, (places >= 3) & (places < len(ids) - 1) & ~one),
                }
                for case, (acts, measures) in wanted.items():
                    if position == 0 or not acts.any() or not measures.any():
                        assert np.isnan(cell.sel(case=case))
                        continue
                    other = slow.run_erased(ids, point, acts, mean)
                    expected = outputs(base.logits, other, measures)[0]
                    np.testing.assert_allclose(float(cell.sel(case=case)), expected, atol=2e-5)
                    assert torch.equal(
                        other[: int(torch.nonzero(acts)[0])],
                        base.logits[: int(torch.nonzero(acts)[0])],
                    )


@pytest.mark.parametrize("part", ["layer", "attention", "mlp"])
def test_integrated_gradients(store: Path, tiny_model: Path, part: str) -> None:
    options = {"what": "gradients", "part": part, "documents": 2}
    found = run(store, f"gradients-{part}", steps=8, batch_tokens=400, **options)
    finer = run(store, f"finer-{part}", steps=128, **options)
    slow = SlowInterventions(tiny_model)
    for place, document in enumerate(found.document.values.tolist()):
        ids = tokens(store, document)
        for layer in range(found.sizes["layer"]):
            cell = found.isel(part=0, document=place, layer=layer)
            attribution, reached, begun = slow.gradients(ids, part, layer, 8)
            np.testing.assert_allclose(
                cell.attribution[: len(ids)], attribution.detach(), rtol=1e-3, atol=1e-5
            )
            np.testing.assert_allclose(float(cell.target_value), reached, rtol=1e-4)
            np.testing.assert_allclose(float(cell.baseline_value), begun, rtol=1e-4)
            gap = float(attribution.sum()) - (reached - begun)
            np.testing.assert_allclose(float(cell.completeness_gap), gap, atol=1e-4)
            assert np.isnan(cell.attribution[len(ids) :]).all()
    scale = np.abs(found.target_value - found.baseline_value).max()
    assert float(np.abs(finer.completeness_gap).max()) < 0.02 * float(scale) + 1e-4
    assert float(np.abs(finer.completeness_gap).max()) < float(np.abs(found.completeness_gap).max())
