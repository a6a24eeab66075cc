"""The matrix of a trained model, forked, against hooks and one full pass per skipped layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from depthscope.jobs import ExtractSpec, InterveneSpec, extract, intervene
from depthscope.pipeline.demo_model import demo_folder
from depthscope.storage.token_table import TokenTable

from ..conftest import needs_demo_model, shared_data
from ..slow_interventions import SlowInterventions, effect, outputs

pytestmark = [pytest.mark.trained, pytest.mark.timeout(600)]
LAYERS = 30


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    """A store of four short documents in float32, and its effects in both scopes."""
    needs_demo_model()
    root = tmp_path_factory.mktemp("trained") / "store"
    extract(
        ExtractSpec(
            model="demo",
            data=(str(shared_data("gsm8k.jsonl")),),
            template="{question}",
            sample=4,
            seed=4,
            max_tokens=24,
            out=root,
            dtype="float32",
            points="none",
            lens_rows="none",
            engine="process",
        )
    )
    spec = InterveneSpec(name="skip", splits_per_document=1, seed=2, engine="process")
    done = intervene(root, spec)
    return root, xr.open_zarr(done.path, consolidated=False).load()


def test_agrees_with_one_pass_per_skipped_layer(swept: tuple[Path, xr.Dataset]) -> None:
    root, found = swept
    slow, table = SlowInterventions(demo_folder()), TokenTable(root)
    _, starts, lengths = table.document_spans()
    upper = np.triu_indices(LAYERS)
    for place, document in enumerate(found.document.values.tolist()):
        first, count = int(starts[document]), int(lengths[document])
        ids = table.token_ids(first, first + count).tolist()
        base, places = slow.run(ids), torch.arange(count)
        split = int(found.split_position[place, 0])
        assert 2 <= split < count
        # The other scope of one document only: a pass per layer takes its time.
        for scope in ("future", "all") if not place else ("future",):
            cell = found.sel(scope=scope, kind="propagated", part="layer").isel(
                document=place, split=0
            )
            acts = (places >= 1) & ((places < split) | (scope == "all"))
            measures = places >= (1 if scope == "all" else split)
            expected = np.full((2, LAYERS, LAYERS), np.nan)
            for source in range(LAYERS):
                other = slow.run(ids, "layer", source, acts)
                for target in range(source, LAYERS):
                    expected[:, source, target] = effect(
                        base.added[target], other.added[target], measures
                    )
                wanted = outputs(base.logits, other.logits, measures)
                here = cell.isel(source=source)
                got = [float(here[f"output_{name}"]) for name in ("l2_max", "l2_mean", "kl_mean")]
                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5)
            for values, name in zip(expected, ("effect_max", "effect_mean"), strict=True):
                got_matrix = cell[name].values
                assert np.isnan(got_matrix[np.tril_indices(LAYERS, -1)]).all()
                apart = np.abs(got_matrix[upper] - values[upper])
                assert (apart <= 1e-4 * np.maximum(1, values[upper])).all(), (scope, name)
                # Not everything is near zero, so that agreement says something.
                assert np.median(values[upper]) > (0.01 if scope == "all" else 0.001)
    assert float(found.noise_effect_max.max()) == 0
    assert float(found.noise_output_l2_max.max()) == 0
