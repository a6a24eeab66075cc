"""`depthscope plan`: what a run would cost, schedule by schedule."""

from __future__ import annotations

import json
from collections.abc import Callable

from depthscope.pipeline.plan import choose
from depthscope.storage.errors import RequestError

from .plan_build import build_plan
from .plan_spec import PlanSpec
from .plan_table import plan_content, plan_text


def run_plan(
    spec: PlanSpec, *, as_json: bool, report: Callable[[str], None] = lambda _: None
) -> None:
    """Print the plan, as a table or as one JSON object.

    Raises
    ------
    RequestError
        the request is wrong, or (after the answer has been printed) no schedule fits.
    """
    found = build_plan(spec, report)
    try:
        choice, nothing = choose(found), None
    except RequestError as error:
        choice, nothing = None, error
    if as_json:
        print(json.dumps(plan_content(found, choice), default=str))
    else:
        print(plan_text(found, choice))
    if nothing is not None:
        raise nothing
