"""Where the training of a tuned lens begins: the best affine map from h_l to h_L, in closed form.

The same moments, ridges and row masks as those of ``linear_maps``, with the last point as the only
target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .lens_rows import LensRows
from .map_choice import RIDGES, choose
from .map_moments import SKETCH, train
from .map_plan import Plan, Spill, held_now
from .map_rows import PairReader, Pilot, RowMask, Side
from .products import Products
from .stored_arrays import StoredArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Start:
    """A translator to begin with.

    Attributes
    ----------
    weight, bias
        A and b of h + A·h + b, float32.
    ridge
        The ridge that was chosen on validation rows.
    """

    weight: Float32
    bias: Float32
    ridge: float


def closed_form(
    residual: StoredArray,
    points: tuple[int, ...],
    at: tuple[int, ...],
    last: int,
    rows: LensRows,
    massive: float,
    products: Products,
    memory: int,
    seed: int,
) -> list[Start]:
    """The ridge regressions of the last point on some others.

    Parameters
    ----------
    residual
        The residual stream.
    points, at
        Numbers of the points, and their places along the first axis.
    last
        Place of the last point.
    rows
        What to fit and to choose the ridge on.
    massive
        Rows whose norm exceeds so many times a point's median are left out; 0 keeps them.
    products, memory, seed
        As for maps.

    Raises
    ------
    RequestError
        The memory is not enough for one point.
    """
    places = np.concatenate([rows.fitted, rows.chosen])
    training = np.arange(len(rows.fitted))
    validation = np.arange(len(rows.fitted), len(places))
    source = Side(residual, points, at, places)
    target = Side(residual, (points[-1] + 1,), (last,), places)
    pilots = (
        Pilot.of(source, training, massive or None),
        Pilot.of(target, training, massive or None),
    )
    limits = tuple(
        pilot.length * massive if massive else np.full(len(pilot.length), np.inf)
        for pilot in pilots
    )
    plan = Plan.of(source, target, min(SKETCH, target.width), memory, held_now())
    mask = RowMask((limits[0], limits[1]), np.ones(len(places), np.bool_))
    reader = PairReader(source, target, mask, plan.block_rows)
    shape = source.width, target.width
    with Spill(len(source), shape, len(plan.tiles) == 1, None) as spill:
        trained = train(reader, training, pilots, plan, products, spill, seed, lambda _: None)
        choice = choose(reader, validation, trained, RIDGES, products, spill, lambda _: None)
        found = []
        for number in range(len(points)):
            factor = trained.factors[number]
            rotated = choice.scale[number, 0][:, None] * spill.read(number)
            linear = factor.vectors @ rotated
            bias = trained.target_mean - factor.mean @ linear
            weight = linear.T - np.eye(len(linear))
            found.append(
                Start(
                    weight.astype(np.float32),
                    bias.astype(np.float32),
                    float(choice.ridge[number, 0]),
                )
            )
    return found
