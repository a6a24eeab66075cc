"""Calibrations: what is measured, what is remembered, how it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from depthscope.pipeline.calibrate import calibrate
from depthscope.pipeline.calibration import Calibration, remembered
from depthscope.pipeline.calibration_disk import measure_disk
from depthscope.pipeline.calibration_model import sample_batches
from depthscope.pipeline.costs import ModelCosts, model_costs
from depthscope.pipeline.devices import parse_devices
from depthscope.pipeline.model_configs import NamedConfig, find_config
from depthscope.pipeline.site import make_site, speed_of
from depthscope.pipeline.workload import CorpusSize, Selection
from depthscope.storage.errors import RequestError
from transformers import Gemma3TextConfig

CORPUS = CorpusSize.of_lengths([20, 60, 7, 33] * 40)


def selection(costs: ModelCosts, **changed: object) -> Selection:
    plain = Selection(
        points=tuple(range(len(costs.layers) + 1)),
        sublayers=False,
        statistics=True,
        lens_rows=100,
        store_dtype=costs.dtype,
        codec="none",
        batch_tokens=128,
        packed=True,
        task_rows=1024,
    )
    return replace(plain, **changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[NamedConfig, ModelCosts, Calibration, Path]:
    cache = tmp_path_factory.mktemp("cache")
    named = find_config(str(tiny_model))
    costs = model_costs(named.config, named.dtype)
    found = calibrate(
        named,
        costs,
        CORPUS,
        selection(costs),
        threads=1,
        folder=cache,
        seconds=0.2,
        cache=cache,
    )
    return named, costs, found, cache


def test_everything_is_measured(
    measured: tuple[NamedConfig, ModelCosts, Calibration, Path],
) -> None:
    _, costs, found, cache = measured
    model, disk = found.model, found.disk
    assert len(model.layers) == len(costs.layers) == model.held
    times = [*model.layers, model.frame, model.plane, model.statistics, model.lens]
    assert all(0 < value < 1 for value in times)
    # Width 32: queries and output, keys and values, MLP in and out.
    assert set(model.products) == {"32x32", "16x32", "64x32", "32x64"}
    assert all(rate > 0 for rate in model.products.values())
    assert all(rate > 1e5 for rate in (disk.write, disk.read, disk.read_again, disk.copy))
    assert 0 < disk.encode_seconds < 1e-6
    assert found.sweep is not None
    assert found.sweep.load > 0
    assert [path.name for path in cache.iterdir()] == ["plans"]


def test_it_is_remembered_for_these_shapes_only(
    measured: tuple[NamedConfig, ModelCosts, Calibration, Path],
) -> None:
    _, costs, found, cache = measured
    chosen = selection(costs)
    assert remembered(costs, chosen, 1, cache) == found
    assert remembered(costs, replace(chosen, points=(0,), task_rows=7), 1, cache) == found
    assert remembered(costs, chosen, 2, cache) is None
    assert remembered(costs, replace(chosen, batch_tokens=64), 1, cache) is None
    assert remembered(replace(costs, dtype="bfloat16"), chosen, 1, cache) is None
    assert remembered(costs, chosen, 1, cache / "elsewhere") is None


def test_a_damaged_calibration_is_none(
    measured: tuple[NamedConfig, ModelCosts, Calibration, Path], tmp_path: Path
) -> None:
    _, costs, _, cache = measured
    (path,) = (cache / "plans").iterdir()
    (tmp_path / "plans").mkdir()
    copy = tmp_path / "plans" / path.name
    copy.write_text(path.read_text()[:-20])
    assert remembered(costs, selection(costs), 1, tmp_path) is None
    copy.write_text("{}")
    assert remembered(costs, selection(costs), 1, tmp_path) is None


def test_attention_is_scaled_to_other_lengths(
    measured: tuple[NamedConfig, ModelCosts, Calibration, Path],
) -> None:
    _, costs, found, _ = measured
    same = found.layers(costs, CORPUS.document_tokens)
    assert same == pytest.approx(found.model.layers)
    longer = found.layers(costs, 10 * CORPUS.document_tokens)
    ratio = costs.layers[0].flops(10 * CORPUS.document_tokens) / costs.layers[0].flops(
        CORPUS.document_tokens
    )
    assert ratio > 1
    assert longer[0] == pytest.approx(ratio * same[0])


def test_a_plan_uses_it(measured: tuple[NamedConfig, ModelCosts, Calibration, Path]) -> None:
    _, costs, found, _ = measured
    site = make_site(parse_devices("cpu"), cores=1, calibration=found)
    assert site.storage == found.disk.write
    assert not site.assumed
    chosen = selection(costs)
    speed = speed_of(costs, site, CORPUS, chosen, calibration=found)
    each = [value + found.model.statistics for value in found.model.layers]
    assert speed.layers == pytest.approx(each)
    assert speed.encode == found.disk.encode_seconds
    # One thread on one core: what the writer takes, the model loses.
    assert speed.stolen == 1.0
    roomy = make_site(parse_devices("cpu"), cores=4, calibration=found)
    assert speed_of(costs, roomy, CORPUS, chosen, calibration=found).stolen == 0.0
    without = speed_of(costs, site, CORPUS, replace(chosen, statistics=False), calibration=found)
    assert without.layers == pytest.approx(found.model.layers)


def test_threads_are_put_back(measured: tuple[NamedConfig, ModelCosts, Calibration, Path]) -> None:
    before = torch.get_num_threads()
    named, costs, _, cache = measured
    calibrate(
        named, costs, CORPUS, selection(costs), threads=1, folder=cache, seconds=0.05, cache=cache
    )
    assert torch.get_num_threads() == before


def test_batches_are_those_of_the_corpus(
    measured: tuple[NamedConfig, ModelCosts, Calibration, Path],
) -> None:
    _, costs, _, _ = measured
    batches = sample_batches(costs, CORPUS, selection(costs))
    assert 1 < len(batches) <= 4
    assert all(batch.position_ids is not None for batch in batches)
    assert all(batch.input_ids.shape[1] <= 128 for batch in batches)
    lengths = {piece.length for batch in batches for piece in batch.pieces}
    # Sorted by length inside a window, and taken evenly.
    assert lengths >= {60, 33}
    padded = sample_batches(costs, CORPUS, selection(costs, packed=False))
    assert all(batch.position_ids is None for batch in padded)


def test_every_kind_of_layer_is_run(tmp_path: Path) -> None:
    """Sliding and full attention alternate; the time of each layer is its own."""
    config = Gemma3TextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
    )
    costs = model_costs(config, "float32")
    found = calibrate(
        NamedConfig("g", config, "float32", None),
        costs,
        CORPUS,
        selection(costs, packed=False, lens_rows=0),
        threads=1,
        folder=tmp_path,
        seconds=0.1,
        cache=tmp_path,
    )
    assert found.model.held == 6
    assert all(value > 0 for value in found.model.layers)
    assert found.model.lens == 0
    assert found.sweep is None


def test_layers_too_large_to_hold_are_added_up_from_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    named = find_config("llama-3.1-405b")
    costs = model_costs(named.config, named.dtype)
    few = replace(costs, layers=costs.layers[:1])
    memory = type("M", (), {"available": 1 << 30, "total": 1 << 34})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    from depthscope.pipeline import calibration_model

    monkeypatch.setattr(calibration_model, "product_rate", lambda *_: 200.0)
    monkeypatch.setattr(calibration_model, "lens_seconds", lambda *_: 1.0)
    found = calibrate(
        named,
        few,
        CorpusSize.of_tokens(64, 32),
        selection(few, batch_tokens=32),
        threads=1,
        folder=tmp_path,
        cache=tmp_path,
    )
    assert found.model.held == 0
    assert found.model.layers[0] == pytest.approx(costs.layers[0].flops(32) / 200e9)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be measured"):
        measure_disk(tmp_path / "file", 32, "float32")
