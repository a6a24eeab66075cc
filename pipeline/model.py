"""A model: finding its checkpoint, loading its decoder without the head, and one pass of that.

Padding needs no mask: rows of a batch are padded on the right, and a causal decoder's states
never depend on what stands to their right, so positions 0, 1, 2, ... are right for every token
that counts. Packing several documents in one row needs only position ids that start again at 0
with every document: transformers' masks (full and sliding-window alike) see the restart and keep
the documents apart, provided that no attention mask and no cache are given.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from depthscope.storage.errors import RequestError
from torch import Tensor, nn

from . import families
from .capture import OnLayer, OnPoint, capture, check_identity
from .checkpoint import read_json, tokenizer_digest, weight_files
from .demo_model import demo_folder
from .description import DTYPES, ModelInfo, one_line, quiet
from .hub import hub_folder
from .packing import attention_by_segment, can_attend_by_segment

_PROBE_TOKENS = 16


def resolve_folder(model: str, cache: Path | None = None, trust_remote_code: bool = False) -> Path:
    """The local folder of a model's checkpoint.

    Parameters
    ----------
    model
        a local folder; ``demo`` (SmolLM2-135M from its package, converted once into the
        cache folder); or a name on the Hugging Face hub, ``owner/name`` or
        ``owner/name@revision``.
    cache
        the folder for what can be made again; default: the user's cache folder, or
        $DEPTHSCOPE_CACHE.
    trust_remote_code
        fetch the checkpoint's own Python files as well.

    Raises
    ------
    RequestError
        no such folder or name, or the checkpoint's files are not whole.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        folder = path
    elif model == "demo":
        folder = demo_folder(cache)
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", model) and not model.startswith("."):
        folder = hub_folder(model, trust_remote_code)
    else:
        raise RequestError(
            f"no model folder {model}; give a folder, a name on the Hugging Face hub, or 'demo'"
        )
    read_json(folder / "config.json")
    weight_files(folder)
    return folder


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint's folder.

    Raises
    ------
    RequestError
        the folder has none, or it cannot be loaded.
    """
    if not tokenizer_digest(folder):
        raise RequestError(
            f"model folder {folder} has no tokenizer; add tokenizer.json, or give token ids"
        )
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise RequestError(
            f"the tokenizer of {folder} cannot be loaded: {one_line(error)}; fetch the model again"
        ) from error


class Body:
    """A decoder without its head, in evaluation mode, its KV cache off."""

    def __init__(self, model: nn.Module, info: ModelInfo, family: families.Family) -> None:
        self.model: Any = model
        self.info = info
        self.family = family

    @property
    def device(self) -> torch.device:
        """Where inputs belong: the device the first layer computes on."""
        hook = getattr(self.model.get_input_embeddings(), "_hf_hook", None)
        placed = getattr(hook, "execution_device", None)
        if placed is not None:
            return torch.device(placed)
        return torch.device(next(self.model.parameters()).device)

    def run(
        self,
        input_ids: Tensor,
        on_point: OnPoint | None = None,
        on_layer: OnLayer | None = None,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        """One forward pass of the body; the callbacks see the stream as it is made.

        Parameters
        ----------
        input_ids
            (batch, sequence) int64, padded on the right with any token.
        on_point
            called with l and h_l (batch, sequence, hidden) for l = 0..L in order;
            h_L is the stream before the final norm.
        on_layer
            called with l, h_l, a_l, m_l once layer l has run, before h_{l+1}.
        position_ids
            (batch, sequence) int64, only for packed documents: 0-based in each
            document, so that each restart at 0 begins a new one (padding: zeros).
        attention_mask
            handed to the model as it is; not needed for right padding or packing.

        Callbacks get the model's own tensors and must not write to them.
        """
        with torch.inference_mode(), capture(self.model, self.family, on_point, on_layer):
            self._forward(input_ids, position_ids, attention_mask)

    def check_identity(self, input_ids: Tensor, position_ids: Tensor | None = None) -> None:
        """Check h_{l+1} == h_l + a_l + m_l for every layer, bit for bit in the model's dtype.

        Raises
        ------
        RequestError
            names the family, the first layer that differs and by how much.
        """
        check_identity(self.model, self.family, lambda: self._forward(input_ids, position_ids))

    def _forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        device = self.device
        arguments = {"position_ids": position_ids, "attention_mask": attention_mask}
        given = {key: value.to(device) for key, value in arguments.items() if value is not None}
        config = self.model.config
        packed = attention_mask is None and can_attend_by_segment(config, position_ids)
        with attention_by_segment(config, position_ids) if packed else nullcontext():
            self.model(input_ids=input_ids.to(device), use_cache=False, **given)


def load_body(
    folder: Path,
    info: ModelInfo,
    *,
    device_map: str | dict[str, Any] | None = "auto",
    max_memory: dict[Any, int | str] | None = None,
    offload_folder: Path | None = None,
    trust_remote_code: bool = False,
    threads: int | None = None,
) -> Body:
    """Load the decoder without its head, placed on this node's devices.

    Parameters
    ----------
    folder
        the checkpoint's folder.
    info
        from `describe_model`; dtype, attention and experts are taken from it.
    device_map
        ``auto`` lets accelerate place the layers over the GPUs (then CPU, then disk);
        without a GPU and without ``max_memory`` or ``offload_folder``, all on the CPU.
    max_memory
        bytes (or "10GiB") per device, for accelerate's plan.
    offload_folder
        where accelerate keeps what fits no device.
    trust_remote_code
        run the checkpoint's own Python files.
    threads
        intra-op threads of this process.

    Raises
    ------
    RequestError
        weights that the architecture needs are missing or of another shape, or the
        architecture is unknown and its layers are not input + attention + MLP.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    plain = not torch.cuda.is_available() and max_memory is None and offload_folder is None
    placement: dict[str, Any] = {} if device_map == "auto" and plain else {"device_map": device_map}
    if plain and info.quantisation is not None:
        placement = {"device_map": {"": "cpu"}}
    if placement and max_memory is not None:
        placement["max_memory"] = max_memory
    if placement and offload_folder is not None:
        placement["offload_folder"] = str(offload_folder)
    model = _load(folder, info, placement, trust_remote_code)
    config = model.config.get_text_config()
    parallel = bool(getattr(config, "use_parallel_residual", False))
    found = families.candidates(model, info.family, info.layers, parallel)
    if info.family in families.FAMILIES:
        return Body(model, info, found[0])
    return _first_that_holds(model, info, found)


def _load(folder: Path, info: ModelInfo, placement: dict[str, Any], remote: bool) -> Any:
    if info.experts is not None:
        placement = {**placement, "experts_implementation": info.experts}
    try:
        with quiet():
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                dtype=DTYPES[info.dtype],
                attn_implementation=info.attention,
                use_safetensors=True,
                trust_remote_code=remote,
                output_loading_info=True,
                **placement,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise RequestError(f"the model in {folder} cannot be loaded: {one_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise RequestError(
            f"the weights in {folder} lack {len(missing)} tensors that its config asks for "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); fetch it again"
        )
    model.eval()
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def _first_that_holds(model: Any, info: ModelInfo, found: list[families.Family]) -> Body:
    """Body of an architecture the table does not know: the first guess whose identity holds."""
    ids = torch.arange(_PROBE_TOKENS).remainder(info.vocabulary)[None]
    refusals: list[RequestError] = []
    for family in found:
        body = Body(model, info, family)
        try:
            body.check_identity(ids)
        except RequestError as error:
            refusals.append(error)
        else:
            return body
    raise refusals[0]
