"""Norms, ratios and cosines against NumPy in float64, and known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from depthscope.pipeline import statistics
from depthscope.pipeline.statistics import layer_statistics


def slow(h: Any, a: Any, m: Any) -> Any:
    h, a, m = (x.double().numpy() for x in (h, a, m))
    rows = []
    for k in range(len(h)):
        mid, c = h[k] + a[k], a[k] + m[k]
        norms = [np.sqrt((x**2).sum()) for x in (h[k], mid, a[k], m[k], c)]
        pairs = [(a[k], h[k]), (m[k], mid), (c, h[k])]
        lengths = [(np.linalg.norm(x), np.linalg.norm(y)) for x, y in pairs]
        ratios = [float(x) / max(float(y), 1e-6) for x, y in lengths]
        cosines = [
            x @ y / (p * q) if p * q else 0.0 for (x, y), (p, q) in zip(pairs, lengths, strict=True)
        ]
        rows.append(norms + ratios + cosines)
    return np.array(rows).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (700, 640)])
def test_equals_the_slow_reference(dtype: Any, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    h, a, m = (torch.randn(shape, generator=generator).mul(s).to(dtype) for s in (9, 1, 0.3))
    result = layer_statistics(h, a, m)
    assert result.shape == (statistics.N_STATISTICS, shape[0])
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), slow(h, a, m), rtol=2e-5, atol=2e-6)


def test_a_layer_that_nearly_erases_the_stream_keeps_its_digits() -> None:
    """‖h + m‖ is 1e-4 of ‖h‖: from dot products in float32 it would have no digit left."""
    generator = torch.Generator().manual_seed(2)
    h = 1e4 * torch.randn((4, 576), generator=generator)
    a = torch.randn((4, 576), generator=generator)
    m = -h + torch.randn((4, 576), generator=generator)
    result = layer_statistics(h, a, m).numpy()
    np.testing.assert_allclose(result, slow(h, a, m), rtol=1e-5)
    result = layer_statistics(h, m, a).numpy()
    np.testing.assert_allclose(result, slow(h, m, a), rtol=1e-5, atol=1e-7)


def test_known_answers() -> None:
    h = torch.tensor([[3.0, 4.0], [3.0, 4.0], [1.0, 0.0]])
    a = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    m = torch.tensor([[6.0, 8.0], [0.0, 0.0], [-1.0, -1.0]])
    norm, ratio, cosine = torch.split(layer_statistics(h, a, m), [5, 3, 3])
    # Zero attention; zero MLP; a layer that erases the stream (‖h + a + m‖ = 0).
    assert norm.T.tolist()[:2] == [[5, 5, 0, 10, 10], [5, 10, 5, 0, 5]]
    assert ratio[:, 0].tolist() == [0, 2, 2]
    assert ratio[:, 1].tolist() == [1, 0, 1]
    assert cosine[:, 0].tolist() == pytest.approx([0, 1, 1])
    assert cosine[:, 1].tolist() == pytest.approx([1, 0, 1])
    assert cosine[:, 2].tolist() == pytest.approx([0, -1, -1])


def test_an_identity_layer_contributes_nothing() -> None:
    h = torch.randn((6, 8), generator=torch.Generator().manual_seed(3))
    result = layer_statistics(h, torch.zeros_like(h), torch.zeros_like(h))
    assert torch.equal(result[0], result[1])
    assert not result[2:].any()


def test_zero_stream_is_clamped_and_not_finite_values_stay_visible() -> None:
    h, a, m = torch.zeros((1, 4)), torch.ones((1, 4)), torch.ones((1, 4))
    result = layer_statistics(h, a, m)[:, 0]
    assert result[5].item() == pytest.approx(2.0 / 1e-6)
    assert result[8].item() == 0.0
    for bad in (torch.nan, torch.inf):
        a = torch.tensor([[1.0, bad, 0.0, 0.0]])
        cosines = layer_statistics(torch.ones((1, 4)), a, m)[8:, 0]
        assert cosines.isnan()[0]
        assert cosines.isnan()[2]


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    h, a, m = torch.randn((3, 50, 16), generator=torch.Generator().manual_seed(4))
    whole = layer_statistics(h, a, m)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 7 * 16)
    assert torch.equal(whole, layer_statistics(h, a, m))
    assert layer_statistics(h[:0], a[:0], m[:0]).shape == (11, 0)
