"""Which arrays a store may have: their groups, names and labels, said once for all packages."""

from __future__ import annotations

from pathlib import Path

from .layout import ACTIVATIONS, LENS, STATISTICS

#: Name of each group in run.json, and its folder.
GROUPS = {"activations": ACTIVATIONS, "statistics": STATISTICS, "lens": LENS}

#: What attention and what the MLP add to the stream.
SUBLAYERS = ("attention_output", "mlp_output")

#: The first axis of each statistics array.
STATISTICS_AXES = {"norm": "quantity", "norm_ratio": "part", "cosine": "part"}

#: The arrays of each group.
ARRAYS: dict[str, tuple[str, ...]] = {
    "activations": ("residual", *SUBLAYERS),
    "statistics": tuple(STATISTICS_AXES),
    "lens": (
        "kl",
        "top5_overlap",
        "top1_agreement",
        "entropy",
        "next_rank",
        "next_probability",
    ),
}

#: Order of the norms: the stream, the stream after attention, what attention, MLP, layer add.
QUANTITIES = ("h", "h_mid", "a", "m", "c")

#: Order of the norm ratios and of the cosines.
PARTS = ("attention", "mlp", "layer")

#: Labels of the axes that are not numbered.
LABELS = {"quantity": QUANTITIES, "part": PARTS}


def array_paths(root: Path) -> list[str]:
    """Every sharded array that a store has, as paths below it."""
    return [
        f"{folder}/{name}"
        for group, folder in GROUPS.items()
        for name in ARRAYS[group]
        if (root / folder / name).is_dir()
    ]


def group_of(path: str) -> str:
    """The group of an array at a path below the store.

    Raises
    ------
    KeyError
        It lies in no group.
    """
    return {folder: group for group, folder in GROUPS.items()}[path.rsplit("/", 1)[0]]
