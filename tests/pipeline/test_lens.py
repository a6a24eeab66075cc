"""Lens values against a slow reference in float64, known answers, and the memory they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from depthscope.pipeline.lens import LENS_VALUES, LensMeasure
from depthscope.storage.errors import RequestError
from depthscope.storage.head import Head
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WIDTH = 24
LARGE = 1 << 30


def make_head(vocabulary: int = 211, norm: Any = "rmsnorm", **settings: Any) -> Any:
    draw = np.random.default_rng(5)
    biased = norm == "layernorm"
    return Head(
        norm=norm,
        epsilon=1e-5,
        weight=draw.normal(1.0, 0.3, WIDTH).astype(np.float32),
        norm_bias=draw.normal(0.0, 0.3, WIDTH).astype(np.float32) if biased else None,
        unembedding=draw.normal(0.0, 0.6, (vocabulary, WIDTH)).astype(np.float32),
        bias=draw.normal(0.0, 0.5, vocabulary).astype(np.float32) if biased else None,
        **settings,
    )


def make_points(n: int = 9, points: Any = 4, seed: int = 6) -> Any:
    return torch.randn((points, n, WIDTH), generator=torch.Generator().manual_seed(seed)) * 3


def slow_logits(head: Head, h: Any) -> Any:
    h = h.double().numpy()
    if head.norm == "layernorm":
        h = h - h.mean()
    h = h / np.sqrt((h**2).mean() + head.epsilon) * head.weight.astype(float)
    if head.norm_bias is not None:
        h = h + head.norm_bias
    logits = head.unembedding.astype(float) @ h
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * np.tanh(logits / head.soft_cap)
    return logits


def slow(head: Head, points: Any, next_ids: torch.Tensor) -> Any:
    """One row and point at a time, in the order of LENS_VALUES."""
    results = np.empty((6, *points.shape[:2]))
    for row, token in enumerate(next_ids.tolist()):
        final = slow_logits(head, points[-1, row])
        final_log = final - np.log(np.exp(final).sum())
        for point in range(points.shape[0]):
            logits = slow_logits(head, points[point, row])
            log = logits - np.log(np.exp(logits).sum())
            best, best_final = (np.argsort(-x)[:5].tolist() for x in (logits, final))
            results[:, point, row] = [
                (np.exp(log) * (log - final_log)).sum(),
                len(set(best) & set(best_final)) / 5,
                best[0] == best_final[0],
                -(np.exp(log) * log).sum(),
                np.nan if token < 0 else 1 + (logits > logits[token]).sum(),
                np.nan if token < 0 else np.exp(log[token]),
            ]
    return results


@pytest.mark.parametrize(
    "head",
    [
        make_head(),
        make_head(norm="layernorm"),
        make_head(soft_cap=4.0, scale=0.25),
        make_head(norm="layernorm", scale=2.0),
        make_head(vocabulary=5003),
    ],
    ids=["rms", "layer", "capped", "scaled", "columns"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_slow_reference(head: Head, dtype: Any) -> None:
    points = make_points().to(dtype)
    next_ids = torch.tensor([3, -1, 0, 210, 77, 5, 6, 7, -1])
    values = LensMeasure(head, LARGE).measure(points, next_ids)
    assert tuple(values) == LENS_VALUES
    expected = dict(zip(LENS_VALUES, slow(head, points, next_ids), strict=True))
    for name, value in values.items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=2e-4, atol=5e-6)


def test_the_last_point_agrees_with_itself_exactly() -> None:
    values = LensMeasure(make_head(), LARGE).measure(make_points(50), torch.zeros(50).long())
    assert not values["kl"][-1].any()
    assert (values["top5_overlap"][-1] == 1).all()
    assert (values["top1_agreement"][-1] == 1).all()
    assert (values["kl"][:-1] > 0.01).all()


def test_uniform_and_certain_distributions() -> None:
    head = make_head(vocabulary=64)
    flat = Head("rmsnorm", 1e-5, head.weight, np.zeros_like(head.unembedding))
    values = LensMeasure(flat, LARGE).measure(make_points(3), torch.tensor([0, 1, 2]))
    np.testing.assert_allclose(values["entropy"], np.log(64), rtol=1e-6)
    np.testing.assert_allclose(values["next_probability"], 1 / 64, rtol=1e-6)
    assert (values["next_rank"] == 1).all()
    certain = Head("rmsnorm", 0.0, np.ones(WIDTH, np.float32), 300 * np.eye(WIDTH, dtype="f4"))
    one_hot = torch.eye(WIDTH)[None, :2].repeat(2, 1, 1)
    values = LensMeasure(certain, LARGE).measure(one_hot, torch.tensor([0, 0]))
    assert values["entropy"].abs().max() < 1e-6
    assert values["next_probability"][0].tolist() == [1.0, 0.0]
    assert values["next_rank"][0].tolist()[0] == 1


def test_rows_that_are_not_finite_are_nan_and_leave_others_alone() -> None:
    points = make_points(4)
    expected = LensMeasure(make_head(), LARGE).measure(points, torch.ones(4).long())
    points[1, 2, 0] = torch.nan
    points[3, 1, 0] = torch.inf
    values = LensMeasure(make_head(), LARGE).measure(points, torch.ones(4).long())
    for name, value in values.items():
        bad = torch.zeros((4, 4), dtype=torch.bool)
        bad[1, 2] = True
        bad[:, 1] = True
        assert value.isnan().equal(bad), name
        torch.testing.assert_close(value[~bad], expected[name][~bad])


class _Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Storages of every array as wide as the vocabulary, kept alive so that none is reused."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and self.vocabulary // 2 < max(
                tensor.shape, default=0
            ):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = storage
        return result


@pytest.mark.parametrize("rows", [4, 7, 30])
def test_budget_bounds_what_is_held_and_does_not_change_the_numbers(rows: int) -> None:
    vocabulary = 5003
    head, points, next_ids = make_head(vocabulary), make_points(40), torch.arange(40)
    expected = LensMeasure(head, LARGE).measure(points, next_ids)
    budget = rows * vocabulary * 4
    measure = LensMeasure(head, budget)
    with _Allocated(vocabulary) as watch:
        values = measure.measure(points, next_ids)
    sizes = sorted(storage.nbytes() for storage in watch.storages.values())
    assert sizes.pop() == head.unembedding.nbytes
    assert 0 < sum(sizes) <= budget
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_budget_too_small_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(RequestError, match=str(4 * 4 * 211)):
        LensMeasure(make_head(), 4 * 4 * 211 - 1)
