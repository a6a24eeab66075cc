"""On PYTHONPATH, makes every pass of a model wait, so that a tiny study can be disturbed.

The pause is no work: nodes that share two cores stay responsive, and the numbers stay the same.
"""

import importlib.util
import os
import sys
import time

PAUSE = float(os.environ.get("TEST_PAUSE", "0"))
SLOWED = "depthscope.pipeline.model"


class _Slow:
    """Finds the one module, and wraps its forward pass once it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != SLOWED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            run = module.Body.run

            def after_a_pause(*args, **kwargs):
                time.sleep(PAUSE)
                return run(*args, **kwargs)

            module.Body.run = after_a_pause

        spec.loader.exec_module = exec_module
        return spec


if PAUSE:
    sys.meta_path.insert(0, _Slow())
