"""Training a tuned lens: descent of KL(p_L ‖ p_lens) on a torch device.

The gradient of the divergence with respect to a lens's logits is softmax(logits) - p_L, so no graph
is kept over the vocabulary: logits are made a slice of rows at a time, turned in place into their
gradient and multiplied back through the unembedding; only the final norm and the translator are
differentiated by torch. All translators of a group see the same rows, and p_L is made once for all
of them. Source of the lens and of the recipe ``sgd``: Belrose et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from depthscope.storage.head import Head
from numpy.typing import NDArray

from .torch_device import open_device

Float32 = NDArray[np.float32]
Optimizer = Literal["adamw", "sgd"]

#: Bytes of a slice of logits; three arrays of that size live at a time.
LOGIT_BYTES = 64 << 20
#: Learning rates and weight decays by default; those of ``sgd`` are the published ones.
RATES: dict[str, float] = {"adamw": 1e-3, "sgd": 0.1}
DECAYS: dict[str, float] = {"adamw": 0.0, "sgd": 1e-3}
#: Largest norm of a translator's gradient; longer ones are shortened.
CLIP = 1.0


@dataclass(frozen=True)
class Recipe:
    """How translators are trained.

    Attributes
    ----------
    steps, batch_rows
        Steps, and rows of each.
    optimizer, learning_rate
        ``adamw`` or ``sgd`` (Nesterov, momentum 0.9); the rate falls to zero in a straight line.
    """

    steps: int
    batch_rows: int
    optimizer: Optimizer
    learning_rate: float


class LensDevice:
    """The head on a torch device, and what translators do in front of it.

    Raises
    ------
    RequestError
        torch cannot use the device.
    """

    def __init__(self, head: Head, device: str) -> None:
        self.torch, self.device = open_device(device, "use cpu, or leave --device away")
        self._head = head
        self._unembedding = self.put(head.unembedding)
        self._weight = self.put(head.weight)
        self._shift = None if head.norm_bias is None else self.put(head.norm_bias)
        self._bias = None if head.bias is None else self.put(head.bias) * head.scale
        self._slice = max(1, LOGIT_BYTES // (4 * len(head.unembedding)))

    def put(self, values: NDArray[Any]) -> Any:
        """A float32 copy on the device."""
        contiguous = np.ascontiguousarray(values, dtype=np.float32)
        return self.torch.from_numpy(contiguous).to(self.device, copy=True)

    def get(self, values: Any) -> Float32:
        """A copy in the host's memory."""
        return np.array(values.detach().cpu().numpy())

    def normed(self, rows: Any) -> Any:
        """The final norm of rows."""
        if self._head.norm == "layernorm":
            rows = rows - rows.mean(dim=1, keepdim=True)
        square = rows.square().mean(dim=1, keepdim=True)
        rows = rows * self.torch.rsqrt(square + self._head.epsilon) * self._weight
        return rows if self._shift is None else rows + self._shift

    def logits(self, normed: Any) -> Any:
        """Logits of normed rows."""
        found = (normed * self._head.scale) @ self._unembedding.T
        if self._bias is not None:
            found += self._bias
        if self._head.soft_cap is not None:
            found.div_(self._head.soft_cap).tanh_().mul_(self._head.soft_cap)
        return found

    def divergences(
        self, rows: Any, last: Any, translate: Callable[[int, Any], Any], backward: bool
    ) -> Any:
        """Mean KL(p_L ‖ p_lens) of every point.

        Parameters
        ----------
        rows
            (point, n, hidden), the stream at the points that are translated.
        last
            (n, hidden), the stream at the last point.
        translate
            Called with a point's number and some of its rows.
        backward
            Whether the gradients of the means are added to the translators' parameters.

        Returns
        -------
        (point,) float64.
        """
        torch, total = self.torch, len(last)
        found = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        for first in range(0, total, self._slice):
            part = slice(first, first + self._slice)
            with torch.no_grad():
                final = torch.log_softmax(self.logits(self.normed(last[part])), dim=1)
                # Σ p_L · log p_L, which no lens changes.
                own = (final.exp() * final).sum(dim=1).double().sum()
                target = final.exp_()
            for number in range(len(rows)):
                with torch.set_grad_enabled(backward):
                    normed = self.normed(translate(number, rows[number, part]))
                found[number] += own + self._cross(normed, target, total if backward else 0)
        return found / max(total, 1)

    def _cross(self, normed: Any, target: Any, total: int) -> Any:
        """-Σ p_L · log p_lens over some rows; with a total, also the gradients of its share."""
        torch = self.torch
        with torch.no_grad():
            logits = self.logits(normed)
            slope = None
            if total and self._head.soft_cap is not None:
                slope = 1 - (logits / self._head.soft_cap).square_()
            shift = torch.logsumexp(logits, dim=1, keepdim=True)
            value = shift.double().sum() - (target * logits).sum(dim=1).double().sum()
            if total:
                # In place: the gradient with respect to the logits.
                logits.sub_(shift).exp_().sub_(target)
                if slope is not None:
                    logits.mul_(slope)
                back = (logits @ self._unembedding) * (self._head.scale / total)
        if total:
            normed.backward(back)
        return value


class Descent:
    """Some translators and their optimizer.

    Parameters
    ----------
    device
        Where to compute.
    weights, biases
        (point, hidden, hidden) and (point, hidden): where to begin.
    recipe
        How to train.
    """

    def __init__(
        self, device: LensDevice, weights: Float32, biases: Float32, recipe: Recipe
    ) -> None:
        torch = device.torch
        self._device, self._recipe = device, recipe
        self.weights = [device.put(weight).requires_grad_() for weight in weights]
        self.biases = [device.put(bias).requires_grad_() for bias in biases]
        parameters = [*self.weights, *self.biases]
        rate, decay = recipe.learning_rate, DECAYS[recipe.optimizer]
        self._optimizer = (
            torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
            if recipe.optimizer == "adamw"
            else torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True,
                                 weight_decay=decay)
        )  # fmt: skip

    def translate(self, number: int, rows: Any) -> Any:
        """h + A·h + b."""
        return rows + rows @ self.weights[number].T + self.biases[number]

    def step(self, number: int, rows: Float32, last: Float32) -> NDArray[np.float64]:
        """Take a step on some rows, and return the divergences before it."""
        left = 1 - number / self._recipe.steps
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * left
        self._optimizer.zero_grad()
        put = self._device.put
        found = self._device.divergences(put(rows), put(last), self.translate, backward=True)
        if not len(last):
            return np.full(len(rows), np.nan)
        for pair in zip(self.weights, self.biases, strict=True):
            self._device.torch.nn.utils.clip_grad_norm_(pair, CLIP)
        self._optimizer.step()
        return np.asarray(found.cpu().numpy())

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that a training needs to go on, by name."""
        kept = {f"weight.{n}": self._device.get(w) for n, w in enumerate(self.weights)}
        kept |= {f"bias.{n}": self._device.get(b) for n, b in enumerate(self.biases)}
        for number, values in self._optimizer.state_dict()["state"].items():
            kept |= {
                f"{name}.{number}": np.atleast_1d(self._device.get(value))
                for name, value in values.items()
                if value is not None
            }
        return kept

    def restore(self, kept: dict[str, NDArray[Any]]) -> None:
        """Take up what :meth:`state` has kept."""
        torch = self._device.torch
        with torch.no_grad():
            for name, targets in (("weight", self.weights), ("bias", self.biases)):
                for place, target in enumerate(targets):
                    target.copy_(self._device.put(kept[f"{name}.{place}"]))
        state: dict[int, dict[str, Any]] = {}
        for full, values in kept.items():
            name, number = full.rsplit(".", 1)
            if name not in ("weight", "bias"):
                value = torch.from_numpy(values.copy())
                state.setdefault(int(number), {})[name] = value[0] if name == "step" else value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
