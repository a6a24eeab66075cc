"""The tuned lens: known answers, its gradient by finite differences, and killed trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis import flips, lens_descent, lens_training, onset
from depthscope.analysis import open as open_store
from depthscope.analysis.lens_descent import Descent, LensDevice, Recipe
from depthscope.analysis.lens_rows import Draws, LensRows
from depthscope.analysis.lens_training import Training
from depthscope.analysis.translators import Translators
from depthscope.analysis.tuned_lens import LensSettings, tuned_lens
from depthscope.analysis.use_findings import tuned_lens_findings
from depthscope.storage.errors import RequestError
from depthscope.storage.head import Head
from numpy.typing import NDArray
from safetensors.numpy import load_file

from .paired_stores import store
from .small_store import SmallStore, build, lens_of

Array = NDArray[Any]
D, LENGTH, DOCUMENTS = 8, 10, 60
QUICK = LensSettings(steps=0, test=0.2, validation=0.2)


def rotated(root: Path, seed: int = 0) -> SmallStore:
    """Every earlier point is an invertible map of the last, another at each."""
    random = np.random.default_rng(seed)
    rows = LENGTH * DOCUMENTS
    h = np.empty((4, rows, D))
    h[3] = random.normal(size=(rows, D)) * 2
    for point in range(3):
        h[point] = h[3] @ random.normal(size=(D, D)) + random.normal(size=D)
    return store(root, h, [LENGTH] * DOCUMENTS)


def mixed(root: Path) -> SmallStore:
    """A few long rows are turned in one way, all others in another: squares follow the few."""
    random = np.random.default_rng(1)
    rows = LENGTH * DOCUMENTS
    long = random.random(rows) < 0.1
    h = np.empty((3, rows, D))
    states = random.normal(size=(rows, D))
    h[2] = states * np.where(long, 8, 1)[:, None]
    for point in range(2):
        few, many = random.normal(size=(2, D, D))
        h[point] = np.where(long[:, None], states @ few, states @ many)
    return store(root, h, [LENGTH] * DOCUMENTS)


def translated(made: SmallStore, translator: int, point: int) -> Array:
    """The stream at a point through the saved translator of that or another one."""
    folder = made.root / "analysis" / "tuned_lens.translators"
    kept = load_file(folder / f"point-{translator:03d}.safetensors")
    h = made.h[point]
    return np.asarray(h + h @ kept["weight"].astype(np.float64).T + kept["bias"])


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallStore, xr.Dataset]:
    made = rotated(tmp_path_factory.mktemp("turned") / "s")
    return made, tuned_lens(open_store(made.root), QUICK, resamples=50)


def test_maps_that_can_be_undone(turned: tuple[SmallStore, xr.Dataset]) -> None:
    _, result = turned
    assert (result.kl_mean < 1e-6).all()
    assert (result.loss_mean < 1e-6).all()
    assert (result.top1_agreement_mean == 1).all()
    assert (result.logit_kl_mean.sel(point=[0, 1, 2]) > 0.5).all()
    last = result.sel(point=3)
    for name in ("kl", "loss", "logit_kl", "logit_loss"):
        assert (last[f"{name}_mean"] == 0).all()
    assert (last.top5_overlap_mean == 1).all()


def test_a_lens_that_is_off_by_one_fails(turned: tuple[SmallStore, xr.Dataset]) -> None:
    made, _ = turned

    def divergence(translator: int, point: int) -> float:
        rows = translated(made, translator, point)
        found = [
            lens_of(row, final, made.weight, made.unembedding)[0]
            for row, final in zip(rows[:40], made.h[3, :40], strict=True)
        ]
        return float(np.mean(found))

    for point in range(3):
        assert divergence(point, point) < 1e-6
        assert divergence(point, (point + 1) % 4) > 0.5


def test_the_logit_lens_beside_it(mixture: SmallStore) -> None:
    made = mixture
    run = open_store(made.root)
    result = tuned_lens(run, QUICK, resamples=20)
    rows = LensRows.of(run, run.stored("residual").axis, 0.2, 0.2, 0)
    assert result["count"].sel(token_set="all") == len(rows.test)
    for point in range(3):
        found = np.array(
            [
                lens_of(made.h[point, row], made.h[2, row], made.weight, made.unembedding)
                for row in rows.test
            ]
        )
        at = result.sel(token_set="all", point=point)
        for number, name in enumerate(("kl", "top5_overlap", "top1_agreement", "entropy")):
            mean = float(at[f"logit_{name}_mean"])
            assert mean == pytest.approx(found[:, number].mean(), rel=1e-4, abs=1e-6)
        backwards = [reverse(made, point, row) for row in rows.test]
        assert float(at.logit_loss_mean) == pytest.approx(np.mean(backwards), rel=1e-4, abs=1e-6)


def reverse(made: SmallStore, point: int, row: int) -> float:
    logs = []
    for h in (made.h[point, row], made.h[-1, row]):
        logits = made.unembedding @ (h / np.sqrt((h * h).mean() + 1e-5) * made.weight)
        logits = logits - logits.max()
        logs.append(logits - np.log(np.exp(logits).sum()))
    return float((np.exp(logs[1]) * (logs[1] - logs[0])).sum())


def test_parts_are_documents(mixture: SmallStore) -> None:
    made = mixture
    run = open_store(made.root)
    rows = LensRows.of(run, run.stored("residual").axis, 0.2, 0.2, 0)
    parts = [
        set(made.document[one].tolist()) for one in (rows.training, rows.validation, rows.test)
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == DOCUMENTS
    assert len(rows.training) + len(rows.validation) + len(rows.test) == made.rows
    assert (made.position[rows.fitted] > 0).all()
    drawn = Draws(rows.training, 64, 3)
    every = np.concatenate([drawn.batch(step) for step in range(-(-len(rows.training) // 64))])
    assert set(every.tolist()) == set(rows.training.tolist())


def test_descent_improves_on_the_closed_form(mixture: SmallStore, tmp_path: Path) -> None:
    run = open_store(mixture.root)
    start = tuned_lens(run, QUICK, resamples=20, out=tmp_path / "start.zarr")
    lens = LensSettings(steps=100, batch_rows=128, learning_rate=0.02, test=0.2, validation=0.2)
    result = tuned_lens(run, lens, resamples=20)
    early = {"token_set": "all", "point": [0, 1]}
    before, after = (one.loss_mean.sel(early).values for one in (start, result))
    assert (before <= start.logit_loss_mean.sel(early).values).all()
    assert (after < 0.7 * before).all()
    assert result.attrs["translators_kept"] == ["trained", "trained"]
    assert result.attrs["training_documents"] + result.attrs["validation_documents"] < DOCUMENTS
    xr.testing.assert_identical(tuned_lens(run, lens, resamples=20), result)


HEADS: list[dict[str, Any]] = [
    {"norm": "rmsnorm"},
    {"norm": "layernorm", "scale": 0.5, "shift": True},
    {"norm": "rmsnorm", "soft_cap": 2.0, "scale": 1.5, "shift": True},
]


@pytest.mark.parametrize("settings", HEADS, ids=["plain", "layernorm", "cap"])
def test_the_gradient_by_finite_differences(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(2)
    monkeypatch.setattr(lens_descent, "LOGIT_BYTES", 4 * 9 * 3)
    monkeypatch.setattr(lens_descent, "CLIP", 1e9)
    shift, bias = random.normal(size=5), random.normal(size=9)
    shifted = settings.get("shift")
    head = Head(
        norm=settings["norm"],
        epsilon=1e-3,
        weight=random.normal(size=5).astype(np.float32),
        unembedding=random.normal(size=(9, 5)).astype(np.float32),
        norm_bias=shift.astype(np.float32) if shifted else None,
        bias=bias.astype(np.float32) if shifted else None,
        soft_cap=settings.get("soft_cap"),
        scale=settings.get("scale", 1.0),
    )
    h, last = random.normal(size=(2, 7, 5)).astype(np.float32)
    a, b = (0.3 * random.normal(size=s).astype(np.float32) for s in ((1, 5, 5), (1, 5)))

    def logs(rows: Array) -> Array:
        if head.norm == "layernorm":
            rows = rows - rows.mean(axis=1, keepdims=True)
        rows = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-3) * head.weight
        logits = (rows + (shift if shifted else 0)) @ head.unembedding.astype(np.float64).T
        logits = head.scale * (logits + (bias if shifted else 0))
        if head.soft_cap:
            logits = head.soft_cap * np.tanh(logits / head.soft_cap)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    def loss(weight: Array, offset: Array) -> float:
        own, lens = logs(last.astype(np.float64)), logs(h + h @ weight.T + offset)
        return float((np.exp(own) * (own - lens)).sum(axis=1).mean())

    recipe = Recipe(steps=1, batch_rows=7, optimizer="sgd", learning_rate=1.0)
    monkeypatch.setitem(lens_descent.DECAYS, "sgd", 0.0)
    descent = Descent(LensDevice(head, "cpu"), a, b, recipe)
    before = descent.step(0, h[None], last)
    assert before[0] == pytest.approx(loss(a[0].astype(float), b[0]), rel=1e-5)
    # Nesterov's first step is the gradient times 1 + momentum.
    moved = (a[0] - descent.weights[0].detach().numpy()) / 1.9
    moved_bias = (b[0] - descent.biases[0].detach().numpy()) / 1.9
    for i in range(5):
        for j in range(5):
            step = np.zeros((5, 5))
            step[i, j] = 1e-5
            slope = (loss(a[0] + step, b[0]) - loss(a[0] - step, b[0])) / 2e-5
            assert float(moved[i, j]) == pytest.approx(slope, rel=1e-3, abs=1e-5)
        step = np.zeros(5)
        step[i] = 1e-5
        slope = (loss(a[0], b[0] + step) - loss(a[0], b[0] - step)) / 2e-5
        assert float(moved_bias[i]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


class Killed(BaseException):
    pass


def trained(
    made: SmallStore, folder: Path, optimizer: str, steps: int, progress: Any = None
) -> dict[str, Array]:
    """Train alone, without the evaluation; the translators by point and name."""
    run = open_store(made.root)
    residual = run.stored("residual")
    work = Training(
        residual,
        run.points,
        LensRows.of(run, residual.axis, 0.2, 0.2, 0),
        Head.load(made.root),
        Recipe(steps, 64, optimizer, 0.01),  # type: ignore[arg-type]
        massive=20.0,
        seed=0,
        device=None,
        memory=None,
    )
    work.run(Translators(folder, f"{optimizer} {steps}"), progress)
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["point-000.safetensors", "point-001.safetensors"]
    return {
        f"{path.stem} {name}": values for path in files for name, values in load_file(path).items()
    }


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return mixed(tmp_path_factory.mktemp("mixture") / "s")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_training_goes_on(
    mixture: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    whole = trained(mixture, tmp_path / "whole", optimizer, 6)
    monkeypatch.setattr(lens_training, "KEEP_SECONDS", 0.0)

    def kill(done: int, total: int) -> None:
        assert total == 6
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        trained(mixture, tmp_path / "killed", optimizer, 6, kill)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["training.safetensors"]
    later: list[int] = []
    found = trained(
        mixture, tmp_path / "killed", optimizer, 6, lambda done, total: later.append(done)
    )
    # The fourth step had been taken but not been kept.
    assert later == [4, 5, 6]
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)
    trained(mixture, tmp_path / "killed", optimizer, 6, kill)  # nothing is left to do


def test_groups_of_points_that_fit_the_memory(
    mixture: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = trained(mixture, tmp_path / "a", "adamw", 3)
    monkeypatch.setattr(lens_training.Training, "_group_size", lambda *_: 1)
    apart = trained(mixture, tmp_path / "b", "adamw", 3)
    for name, values in together.items():
        np.testing.assert_allclose(apart[name], values, rtol=1e-4, atol=1e-5)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    headless = build(tmp_path / "a")
    (headless.root / "head.json").unlink()
    cases: list[tuple[SmallStore, str]] = [
        (headless, "--no-head"),
        (build(tmp_path / "b", points=(0, 1)), "last point, 3, is not stored"),
        (build(tmp_path / "c", points=()), "--points none"),
        (build(tmp_path / "d", committed=()), "nothing is committed"),
        (build(tmp_path / "e", lengths=(9, 9)), "needs three different documents"),
    ]
    for made, message in cases:
        with pytest.raises(RequestError, match=message) as raised:
            tuned_lens(open_store(made.root))
        assert "\n" not in str(raised.value)
    run = open_store(build(tmp_path / "f").root)
    wrong: list[tuple[LensSettings, dict[str, Any], str]] = [
        (LensSettings(optimizer="adam"), {}, "unknown optimizer"),  # type: ignore[arg-type]
        (LensSettings(steps=-1), {}, "steps"),
        (LensSettings(test=0.9, validation=0.2), {}, "leave documents to train on"),
        (LensSettings(learning_rate=0), {}, "learning rate"),
        (QUICK, {"device": "nowhere"}, "device 'nowhere' cannot be used"),
        (QUICK, {"memory": 1000}, "give --memory"),
    ]
    for lens, options, message in wrong:
        with pytest.raises(RequestError, match=message) as raised:
            tuned_lens(run, lens, **options)
        assert "\n" not in str(raised.value)


def test_guesses_through_the_lens(turned: tuple[SmallStore, xr.Dataset]) -> None:
    made, _ = turned
    run = open_store(made.root)
    every = {"token_set": "all", "bucket": "any"}
    plain = flips(run, resamples=20)
    tuned = flips(run, lens="tuned", resamples=20)
    assert (plain.rate.sel(every)[:3] > 0.5).all()
    assert (tuned.rate.sel(every) == 0).all()
    assert tuned.attrs["analysis"] == "flips_tuned"
    assert "tuned lens" in tuned.depthscope.charts()[0].subtitle
    found = onset(run, lens="tuned", ranks=(1,), resamples=20)
    at = found.sel({"token_set": "all", "outcome": "all", "class": "any", "rank": 1})
    assert (at.depth_mean == 0).all()
    assert (at["count"] == made.rows).all()
    assert found.attrs["analysis"] == "onset_tuned"


def test_guesses_without_a_lens(tmp_path: Path) -> None:
    run = open_store(build(tmp_path / "s").root)
    for analysis in (flips, onset):
        with pytest.raises(RequestError, match="has no tuned lens of its points: run depthscope"):
            analysis(run, lens="tuned")
        with pytest.raises(RequestError, match="unknown lens 'some'"):
            analysis(run, lens="some")


def test_chart_and_sentence(turned: tuple[SmallStore, xr.Dataset]) -> None:
    _, result = turned
    chart = result.depthscope.charts()[0]
    assert chart.name == "tuned_lens"
    count = int(result["count"].sel(token_set="content"))
    assert (
        f"{count} tokens of {count // (LENGTH - 1)} documents that were held out" in chart.subtitle
    )
    panel = chart.panels[0]
    assert panel.y_label == "KL divergence (nats)"
    assert [curve.label for curve in panel.curves] == ["Tuned lens", "Logit lens"]
    for curve, prefix in zip(panel.curves, ("", "logit_"), strict=True):
        for name, values in (("mean", curve.mean), ("low", curve.low), ("high", curve.high)):
            expected = result[f"{prefix}kl_{name}"].sel(token_set="content")
            np.testing.assert_array_equal(values, expected)
    (sentence,) = tuned_lens_findings(result)
    assert "at point 1 of 3" in sentence
    assert "0.00 [0.00, 0.00] for the tuned lens" in sentence
