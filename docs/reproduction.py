"""Writes reproduction.md: what the paper reports, and what a store shows, figure by figure.

    python docs/reproduction.py STORE [--effects NAME] [--out docs/reproduction.md]

Every number on the page is read from the results of `depthscope analyze`; the commands that make
them stand on the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import depthscope.analysis as da
import numpy as np
import xarray as xr

#: What the page calls a model, and the command that makes its folder, by the name in the store.
TITLES = {
    "demo": ("SmolLM2-135M", ""),
    "gemma": ("Gemma-3-270m", "python tests/benchmarks/gemma.py models\n"),
}


def main() -> None:
    """Read the results and fill the page in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--effects", default="skip")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("reproduction.md"))
    options = parser.parse_args()
    run = da.open(options.store)
    parts = da.contributions(run)
    pairs = da.interactions(run, options.effects, partial=True)
    values = {**model(run, options.out), "store": options.store.name}
    values |= {**sample(run, pairs), **contributions(parts), **cosines(parts), **effects(pairs)}
    values |= verdicts(parts, pairs)
    page = Path(__file__).with_name("reproduction.md.in").read_text(encoding="utf-8")
    options.out.write_text(page.format(**values), encoding="utf-8")


def model(run: Any, out: Path) -> dict[str, Any]:
    """The model, and the commands that name it."""
    record = run.snapshots[0].record.model
    name = Path(record["name"]).name
    title, conversion = TITLES.get(name, (name, ""))
    return {
        "title": title,
        "conversion": conversion,
        "model": f"models/{name}" if conversion else record["name"],
        "millions": round(record["parameters"] / 1e6),
        "layers": record["layers"],
        "dtype": record["dtype"],
        "out": "" if out.name == "reproduction.md" else f" --out docs/{out.name}",
    }


def sample(run: Any, pairs: xr.Dataset) -> dict[str, Any]:
    """How much was measured."""
    record, request = run.snapshots[0].record, pairs.attrs["request"]
    shortest, longest, tokens = run.sql(
        "SELECT min(n_tokens), max(n_tokens), sum(n_tokens) FROM documents"
    ).fetchall()[0]
    return {
        "corpus_documents": record.documents,
        "rows": f"{tokens:,}",
        "shortest": shortest,
        "longest": longest,
        "unfinished": _unfinished(pairs.attrs["effects_tasks"]),
        "documents": pairs.attrs["documents"]["all"],
        "future_documents": pairs.attrs["documents"]["future"],
        "splits": pairs.attrs["splits"]["future"],
        "splits_per_document": request["splits_per_document"],
        "seed": request["seed"],
        "noise": f"{float(pairs['noise_floor'].max()):.2g}",
        "output_noise": f"{float(pairs['output_noise_floor'].max()):.2g}",
    }


def contributions(result: xr.Dataset) -> dict[str, Any]:
    """Norm ratios of whole layers: means over thirds of the depth, and their largest."""
    layers = result.sizes["layer"]
    half = layers // 2
    found: dict[str, Any] = {
        "half": half,
        "half_before": half - 1,
        "before_last": layers - 4,
        "last": layers - 1,
        "first_sources": f"0 to {half - 1}",
        "second_sources": f"{half} to {layers - 2}",
    }
    for tokens in ("all", "content"):
        at = result.sel(token_set=tokens, part="layer")
        ratio = at["norm_ratio_mean"]
        found[f"ratio_{tokens}_first"] = _number(ratio[1 : layers // 2].mean())
        found[f"ratio_{tokens}_second"] = _number(ratio[layers // 2 : layers - 3].mean())
        for name, layer in (("start", 0), ("end", layers - 1)):
            found[f"ratio_{tokens}_{name}"] = _interval(at, "norm_ratio", layer)
        most = int(ratio.values[1:].argmax()) + 1
        least = int(ratio.values.argmin())
        found[f"ratio_{tokens}_most"] = f"layer {most}: {_interval(at, 'norm_ratio', most)}"
        found[f"ratio_{tokens}_least"] = f"layer {least}: {_interval(at, 'norm_ratio', least)}"
    return found


def cosines(result: xr.Dataset) -> dict[str, Any]:
    """Where what layers add begins to point along the stream."""
    found: dict[str, Any] = {}
    for tokens in ("all", "content"):
        at = result.sel(token_set=tokens, part="layer")
        values = at["cosine_mean"].values
        below = np.flatnonzero(values < 0)
        found[f"cosine_{tokens}_negative"] = _ranges(below)
        found[f"cosine_{tokens}_start"] = _interval(at, "cosine", 0)
        lowest = int(values.argmin())
        found[f"cosine_{tokens}_lowest"] = f"layer {lowest}: {_interval(at, 'cosine', lowest)}"
        highest = int(values[len(values) // 2 :].argmax()) + len(values) // 2
        found[f"cosine_{tokens}_late"] = f"layer {highest}: {_interval(at, 'cosine', highest)}"
    return found


def effects(result: xr.Dataset) -> dict[str, Any]:
    """Means over pairs of layers by half of the source, strongest pairs, and output effects."""
    layers = result.sizes["source"]
    half = layers // 2
    found: dict[str, Any] = {}
    for scope in ("all", "future"):
        at = result.sel(scope=scope, kind="propagated", part="layer")
        later = at["target"] > at["source"]
        for kind in ("mean", "max"):
            matrix = at[f"effect_{kind}"].where(later).values
            found[f"{scope}_{kind}_first"] = _number(np.nanmean(matrix[:half]))
            found[f"{scope}_{kind}_second"] = _number(np.nanmean(matrix[half:]))
            inner = np.nanmean(matrix[:half, :half]), np.nanmean(matrix[:half, half:])
            found[f"{scope}_{kind}_near"], found[f"{scope}_{kind}_far"] = map(_number, inner)
        matrix = at["effect_mean"].where(later).values
        source, target = np.unravel_index(int(np.nanargmax(matrix)), matrix.shape)
        found[f"{scope}_pair"] = (
            f"{source} on {target}: {_interval(at.isel(target=target), 'effect', source, 'source')}"
        )
        rows = np.array([np.nanmean(row[n + 1 :]) for n, row in enumerate(matrix[:-1])])
        found[f"{scope}_top_sources"] = ", ".join(map(str, np.argsort(rows)[::-1][:3]))
        found[f"{scope}_weak_sources"] = ", ".join(map(str, np.argsort(rows)[:3]))
        out = at["output_l2_mean"].values
        found[f"{scope}_output_first"] = _number(out[1:half].mean())
        found[f"{scope}_output_second"] = _number(out[half:].mean())
        for name, layer in (("start", 0), ("most", int(out.argmax())), ("least", int(out.argmin())),
                            ("end", layers - 1)):  # fmt: skip
            text = _interval(at, "output_l2", layer, "source")
            found[f"{scope}_output_{name}"] = f"layer {layer}: {text}"
        most = at["output_l2_max"].values
        found[f"{scope}_output_max_first"] = _number(most[1:half].mean())
        found[f"{scope}_output_max_second"] = _number(most[half:].mean())
    return found


def verdicts(parts: xr.Dataset, pairs: xr.Dataset) -> dict[str, str]:
    """Where the shapes agree with the paper's and where they differ, decided by the numbers."""
    layers = parts.sizes["layer"]
    half = layers // 2
    at = parts.sel(token_set="content", part="layer")
    ratio, cosine = at["norm_ratio_mean"].values, at["cosine_mean"].values
    middle = ratio[half : layers - 3].mean()
    fallen, risen = middle / ratio[1:half].mean(), ratio[-1] / middle
    negative = int((cosine[:half] < 0).sum()), int((cosine[half:] < 0).sum())
    shares: dict[str, tuple[float, float]] = {}
    for scope in ("all", "future"):
        here = pairs.sel(scope=scope, kind="propagated", part="layer")
        matrix = here["effect_mean"].where(here["target"] > here["source"]).values
        out = here["output_l2_mean"].values
        shares[scope] = (
            float(np.nanmean(matrix[half:]) / np.nanmean(matrix[:half])),
            float(out[half:].mean() / out[1:half].mean()),
        )
    every, future = shares["all"], shares["future"]
    return {
        "ratio_verdict": (
            f"The second half adds {_number(fallen)} times as much as the first, relative to the "
            f"stream: {_agrees(fallen < 0.75)} (there, to about a third). The last layer adds "
            f"{_number(risen)} times as much as those before it: {_agrees(risen > 1.2)}."
        ),
        "cosine_verdict": (
            f"Negative at {negative[0]} of the {half} layers of the first half and {negative[1]} "
            f"of the {layers - half} of the second: "
            f"{_agrees(negative[0] > half / 2 and negative[1] < (layers - half) / 2)}."
        ),
        "all_verdict": (
            f"A layer of the second half changes what later ones add {_number(every[0])} times as "
            f"much as one of the first: {_agrees(every[0] < 1)}, in which the first half is the "
            "brighter."
        ),
        "future_verdict": (
            f"The second half's effect is {_number(future[0])} of the first's at future positions "
            f"and {_number(every[0])} at all: the drop goes the same way as in the paper"
            if future[0] < every[0]
            else f"The second half's effect is {_number(future[0])} of the first's at future "
            f"positions and {_number(every[0])} at all: **unlike the paper**"
        )
        + (
            ", where the second half goes dark."
            if future[0] < 0.25
            else ", where the second half goes dark; **here it only weakens**."
        ),
        "output_verdict": (
            f"The second half moves predictions {_number(every[1])} times as much as the first "
            f"without layer 0 at all positions: {_agrees(0.5 < every[1] < 2)}; and "
            f"{_number(future[1])} times at future ones: {_agrees(future[1] < 0.75)}."
        ),
    }


def _unfinished(tasks: str) -> str:
    """A sentence where not all of the sweep was measured; such as ``17 of 100``."""
    done, total = tasks.split(" of ")
    if done == total:
        return ""
    return (
        f" **The sweep had committed {tasks} tasks when this page was written** (`analyze` was "
        "given `--partial`); documents were drawn at random, and running it again goes on."
    )


def _agrees(same: bool) -> str:
    return "as in the paper" if same else "**unlike the paper**"


def _interval(at: xr.Dataset, name: str, place: int, axis: str = "layer") -> str:
    """Such as ``0.42 [0.40, 0.44]``."""
    here = at.isel({axis: place})
    mean, low, high = (float(here[f"{name}_{end}"]) for end in ("mean", "low", "high"))
    return f"{_number(mean)} [{_number(low)}, {_number(high)}]"


def _number(value: Any) -> str:
    return f"{float(value):.3f}" if abs(float(value)) < 0.1 else f"{float(value):.2f}"


def _ranges(numbers: Any) -> str:
    """Such as ``3 to 7, 9``; ``none``."""
    found: list[list[int]] = []
    for number in map(int, numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    text = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in found)
    return text or "none"


if __name__ == "__main__":
    main()
