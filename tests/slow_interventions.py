"""Interventions the slow, obvious way: hooks, one full pass per branch, one document at a time.

Transformers and torch alone; nothing of depthscope.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


@dataclass
class Pass:
    """One forward pass: what each layer adds (L, n, d), and the next-token probabilities (n, V)."""

    added: Tensor
    attention: Tensor
    mlp: Tensor
    inputs: Tensor
    final: Tensor
    logits: Tensor


class SlowInterventions:
    """A Llama-like model whose parts are changed by hooks."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        self.layers = self.model.model.layers

    def run(
        self,
        ids: list[int],
        part: str = "",
        source: int = -1,
        acts: Tensor | None = None,
        factor: float = 0.0,
        replacement: Tensor | None = None,
    ) -> Pass:
        """``part`` of layer ``source`` is multiplied, or replaced, at positions ``acts``."""
        added: list[Tensor] = []
        parts: list[tuple[Tensor, Tensor]] = []
        inputs: list[Tensor] = []
        seen: dict[str, Tensor] = {}

        def change(value: Tensor) -> Tensor:
            new = value * factor if replacement is None else replacement.expand_as(value)
            return torch.where(acts[None, :, None], new, value)

        def attention(index: int):
            def hook(_, args, out):
                value = out[0]
                if part == "attention" and index == source:
                    value = change(value)
                seen["a"] = value
                return (value, *out[1:])

            return hook

        def mlp(index: int):
            def hook(_, args, out):
                value = change(out) if part == "mlp" and index == source else out
                seen["m"] = value
                return value

            return hook

        def before(_, args):
            inputs.append(args[0][0].clone())

        def after(index: int):
            def hook(_, args, out):
                c = seen["a"].float() + seen["m"].float()
                result = out
                if part == "layer" and index == source:
                    c = change(c)
                    result = torch.where(acts[None, :, None], args[0] + c.to(out.dtype), out)
                added.append(c[0].clone())
                parts.append((seen["a"][0].clone(), seen["m"][0].clone()))
                return result

            return hook

        handles = []
        for index, layer in enumerate(self.layers):
            handles.append(layer.self_attn.register_forward_hook(attention(index)))
            handles.append(layer.mlp.register_forward_hook(mlp(index)))
            handles.append(layer.register_forward_pre_hook(before))
            handles.append(layer.register_forward_hook(after(index)))
        handles.append(self.model.model.norm.register_forward_pre_hook(before))
        try:
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return Pass(
            torch.stack(added),
            torch.stack([a for a, _ in parts]),
            torch.stack([m for _, m in parts]),
            torch.stack(inputs[:-1]),
            inputs[-1],
            logits.float(),
        )

    def run_erased(self, ids: list[int], point: int, acts: Tensor, mean: Tensor) -> Tensor:
        """Logits (n, V) when the stream at a point is replaced by its mean at some positions."""

        def replace(_, args):
            return (torch.where(acts[None, :, None], mean.to(args[0].dtype), args[0]), *args[1:])

        last = point == len(self.layers)
        module = self.model.model.norm if last else self.layers[point]
        handle = module.register_forward_pre_hook(replace)
        try:
            with torch.no_grad():
                return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        finally:
            handle.remove()

    def gradients(
        self, ids: list[int], part: str, layer: int, steps: int
    ) -> tuple[Tensor, float, float]:
        """Attribution (n,) of what a part of a layer gives, F(x) and F(b): one step at a time."""
        modules = {
            "layer": self.layers[layer],
            "attention": self.layers[layer].self_attn,
            "mlp": self.layers[layer].mlp,
        }
        put: list[Tensor] = []
        seen: list[Tensor] = []

        def hook(_, args, out):
            plain = out[0] if isinstance(out, tuple) else out
            seen.append(plain.detach().clone())
            if not put:
                return out
            return (put[-1], *out[1:]) if isinstance(out, tuple) else put[-1]

        following = torch.tensor(ids[1:])

        def value() -> Tensor:
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
            return logits.float().softmax(-1).gather(-1, following[:, None]).sum()

        handle = modules[part].register_forward_hook(hook)
        try:
            reached = float(value().detach())
            x = seen[0]
            b = x.mean(1, keepdim=True).expand_as(x)
            total = torch.zeros_like(x)
            for step in range(steps):
                put[:] = [(b + (step + 0.5) / steps * (x - b)).requires_grad_()]
                (gradient,) = torch.autograd.grad(value(), put[0])
                total += gradient
            put[:] = [b]
            with torch.no_grad():
                begun = float(value())
        finally:
            handle.remove()
        return ((x - b) * total / steps).sum(-1)[0], reached, begun

    def local(
        self, ids: list[int], base: Pass, part: str, source: int, target: int, acts: Tensor
    ) -> Tensor:
        """What layer ``target`` adds when the source's contribution is taken away before it."""
        taken = {"layer": base.added, "attention": base.attention.float(), "mlp": base.mlp.float()}[
            part
        ][source]
        h = base.inputs[target]
        changed = torch.where(acts[:, None], (h.float() - taken).to(h.dtype), h)[None]
        positions = torch.arange(len(ids))[None]
        rotary = self.model.model.rotary_emb(changed, positions)
        seen: dict[str, Tensor] = {}
        layer = self.layers[target]
        handles = [
            layer.self_attn.register_forward_hook(lambda _, i, o: seen.update(a=o[0])),
            layer.mlp.register_forward_hook(lambda _, i, o: seen.update(m=o)),
        ]
        try:
            with torch.no_grad():
                layer(
                    changed, position_ids=positions, position_embeddings=rotary, attention_mask=None
                )
        finally:
            for handle in handles:
                handle.remove()
        return (seen["a"].float() + seen["m"].float())[0]


def effect(base: Tensor, changed: Tensor, measures: Tensor) -> tuple[float, float]:
    """Largest and mean ‖c − c'‖ / max(‖c‖, 1e-6) over the measured positions."""
    ratio = (base - changed).norm(dim=-1) / base.norm(dim=-1).clamp_min(1e-6)
    return float(ratio[measures].max()), float(ratio[measures].double().mean())


def outputs(base: Tensor, changed: Tensor, measures: Tensor) -> tuple[float, float, float]:
    """L2 of probabilities (largest, mean) and mean KL over the measured positions."""
    p, q = base[measures].softmax(-1), changed[measures].softmax(-1)
    distance = (p - q).norm(dim=-1)
    kl = (p * (p.log() - q.log())).sum(-1)
    return float(distance.max()), float(distance.mean()), float(kl.mean())
