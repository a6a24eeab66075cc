"""Charts of how a model uses its depth: flips of guesses, onsets of tokens, the tuned lens."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .charts import STORE_STYLES, TOKEN_SET_STYLES, Chart, Curve, Panel, Style, curve_of, floats
from .result_charts import LENS_PANELS, interval_name, sample_size
from .row_classes import ANY

POINT = "Point of the residual stream"

FLIPS = (
    "At every point the final norm and unembedding give a best guess of the next token; the tokens "
    "are put into buckets by how common they are. Left: how often the best guess of a bucket is "
    "not the final one. Right: how many of the best guesses come from each bucket. Where nearly "
    "all early guesses are common words and nearly all of them are overturned, the early layers "
    "guess by frequency and the later ones by context."
)
ONSET = (
    "From which point on a token is among the k likeliest. The first crossing is the first point "
    "at which it is; the lasting one is the first from which on it always is, so it is never "
    "earlier, and the distance of both says how often a guess is lost again. Means are over the "
    "rows that reach the rank at all."
)
TUNED = (
    "The tuned lens translates the stream at every point into the terms of the last one, by an "
    "affine map that was trained on other documents, before the final norm and unembedding read "
    "it; the logit lens reads it as it is. Where the two part, the prediction is there, but "
    "written differently; where both are far from the final prediction, it is not there yet."
)
BY = {
    "bucket": ("token frequency", "Frequency rank of the target"),
    "pos": ("part of speech", "Part of speech of the word that follows"),
    "fact": ("place in an answer", "Token of the answer"),
    "options": ("option", "Option, ranked among the options"),
}
_TARGETS = {
    "final": "Target: the model's own final token.",
    "next": "Target: the token that follows in the text.",
}
_OPTION_TARGETS = {
    "final": "Target: the option that the model prefers in the end.",
    "next": "Target: the right option.",
}
CROSSINGS = (("first", "First crossing"), ("stays", "Lasting crossing"))
_ANY_STYLE = Style("#5a6675", "triangle", "solid")
#: From so many classes on the panels stand below each other.
MANY = 7


def flip_chart(result: xr.Dataset, model: str) -> Chart:
    """Flip rates and shares by bucket, over points."""
    name = token_set_of(result)
    chosen = result.sel(token_set=name)
    styles = dict(zip(chosen["bucket"].values.tolist(), STORE_STYLES, strict=False))
    styles[ANY] = _ANY_STYLE
    rates = tuple(
        curve_of(chosen.sel(bucket=label), "rate", "", _bucket(label), style)
        for label, style in styles.items()
    )
    shares = tuple(
        curve_of(chosen.sel(bucket=label), "share", "share_", _bucket(label), style)
        for label, style in styles.items()
        if label != ANY
    )
    panels = (
        Panel("Overturned guesses", POINT, "Share of the bucket's best guesses", rates, (0, 1.03)),
        Panel("Origin of the guesses", POINT, "Share of all best guesses", shares, (0, 1.03)),
    )
    return Chart(
        str(result.attrs["analysis"]),
        f"Flips of early guesses{_through(result)}",
        "How often an early best guess is overturned, by how common it is",
        f"{model}, {result.attrs['layers']} layers. {rows_of(result)}. Buckets: rank by "
        f"frequency ({result.attrs['parameters']['frequencies']}). Bands: {_interval(result)}.",
        FLIPS,
        panels,
    )


def onset_chart(result: xr.Dataset, model: str) -> Chart:
    """Mean onset depth by class, a panel for each rank."""
    name = token_set_of(result)
    chosen = result.sel(token_set=name, outcome="all")
    by, target = (result.attrs["parameters"][key] for key in ("by", "target"))
    used = chosen["class_rows"].isel(criterion=0, rank=0).values > 0
    chosen = chosen.isel({"class": np.flatnonzero(used)})
    labels = tuple(str(label) for label in chosen["class"].values)
    ranks = telling_ranks(result)
    panels = tuple(_onset_panel(chosen.sel(rank=rank), labels, by) for rank in ranks)
    heading, _ = BY[by]
    targets = _OPTION_TARGETS if by == "options" else _TARGETS
    return Chart(
        str(result.attrs["analysis"]),
        f"Onset by {heading}{_through(result)}",
        f"At which depth {'an option' if by == 'options' else 'a token'} becomes a candidate, by "
        f"{heading}",
        f"{model}, {result.attrs['layers']} layers. {rows_of(result)}. {targets[target]} "
        f"Whiskers: {_interval(result)} of the mean.",
        ONSET,
        panels,
        same_y=True,
        across=1 if len(labels) >= MANY else None,
    )


def tuned_lens_chart(result: xr.Dataset, model: str) -> Chart:
    """The tuned lens beside the logit lens on the same held-out rows, a panel per measure."""
    name = token_set_of(result)
    chosen = result.sel(token_set=name)
    styles = tuple(TOKEN_SET_STYLES.values())
    panels = []
    for measure, (title, label, limits) in LENS_PANELS.items():
        curves = tuple(
            curve_of(chosen, f"{prefix}{measure}_mean", f"{prefix}{measure}_", words, style)
            for prefix, words, style in (
                ("", "Tuned lens", styles[0]),
                ("logit_", "Logit lens", styles[1]),
            )
        )
        panels.append(Panel(title, POINT, label, curves, limits))
    return Chart(
        "tuned_lens",
        "The tuned lens",
        "What is predicted at every point, translated and as it stands",
        f"{model}, {result.attrs['layers']} layers. {sample_size(result, name)} that were held "
        f"out ({name} tokens); trained on {result.attrs['training_documents']:,} documents. "
        + (
            f"Bands: {_interval(result)}."
            if result.attrs["documents"][name] > 1
            else "A single document leaves no intervals."
        ),
        TUNED,
        tuple(panels),
    )


def _onset_panel(at: xr.Dataset, labels: tuple[str, ...], by: str) -> Panel:
    rank = int(at["rank"])
    places = np.arange(len(labels), dtype=np.float64)
    curves = tuple(
        Curve(
            words,
            places,
            floats(one["depth_mean"]),
            style,
            floats(one["low"]),
            floats(one["high"]),
        )
        for (criterion, words), style in zip(CROSSINGS, STORE_STYLES, strict=False)
        for one in (at.sel(criterion=criterion),)
    )
    rows = int(at["count"].sel({"class": ANY, "criterion": "stays"}))
    return Panel(
        f"{rank_title(rank, by)} ({rows:,} {'questions' if by == 'options' else 'rows'})",
        BY[by][1],
        "Mean depth (point)",
        curves,
        form="points",
        x_ticks=labels,
    )


def _bucket(label: str) -> str:
    if label == ANY:
        return "all tokens"
    return "rarer" if label == "rest" else f"ranks {label}"


def telling_ranks(result: xr.Dataset) -> list[int]:
    """Rank thresholds that say something: among four options every one is of the four likeliest."""
    ranks = [int(rank) for rank in result["rank"].values]
    if result.attrs["parameters"]["by"] != "options":
        return ranks
    options = result.sizes["class"] - 1
    return [rank for rank in ranks if rank < options] or ranks


def rank_title(rank: int, by: str) -> str:
    """What it means to have reached a rank, for a kind of classes."""
    one = "option" if by == "options" else "token"
    return f"The likeliest {one}" if rank == 1 else f"Among the {rank} likeliest"


def token_set_of(result: xr.Dataset) -> str:
    """The token set that is shown: content tokens, or all where there are none."""
    rows = result["rows"] if "rows" in result else result["count"]
    return "content" if int(rows.sel(token_set="content")) else "all"


def rows_of(result: xr.Dataset) -> str:
    """Such as ``14,203 content tokens of 240 documents``."""
    name = token_set_of(result)
    rows = int((result["rows"] if "rows" in result else result["count"]).sel(token_set=name))
    documents = result.attrs["documents"][name]
    if result.attrs["parameters"].get("by") == "options":
        return f"{rows:,} questions{_through(result)}"
    return f"{rows:,} {name} tokens of {documents:,} documents{_through(result)}"


def _through(result: xr.Dataset) -> str:
    return ", tuned lens" if "translators" in result.attrs["parameters"] else ""


def _interval(result: xr.Dataset) -> str:
    return f"{interval_name(result)} over documents"
