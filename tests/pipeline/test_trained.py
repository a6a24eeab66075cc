"""SmolLM2 over real documents: its stream and its lens against transformers' own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from depthscope.pipeline.description import describe_model
from depthscope.pipeline.head_export import export_head
from depthscope.pipeline.lens import LensMeasure
from depthscope.pipeline.model import Body, load_body, load_tokenizer, resolve_folder
from depthscope.storage.errors import RequestError
from torch import nn

from tests.conftest import shared_data

pytestmark = pytest.mark.trained


@pytest.fixture(scope="module")
def folder() -> Any:
    try:
        return resolve_folder("demo")
    except RequestError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def documents(folder: Path) -> Any:
    """Six GSM8K questions of different lengths, as token ids."""
    tokenizer = load_tokenizer(folder)
    lines = shared_data("gsm8k.jsonl").read_text().splitlines()[:60:10]
    return [tokenizer(json.loads(line)["question"]).input_ids for line in lines]


def reference(folder: Path, documents: list[list[int]], dtype: Any) -> Any:
    """Points 0..L of each document, run alone by transformers."""
    model = hf.AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    model.norm = nn.Identity()
    with torch.no_grad():
        for ids in documents:
            out = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
            yield torch.cat([*out.hidden_states[:-1], out.last_hidden_state])


def points_of(body: Body, ids: Any, position_ids: torch.Tensor | None = None) -> Any:
    points = []
    body.run(ids, lambda point, h: points.append(h.clone()), position_ids=position_ids)
    return torch.stack(points)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stream_of_padded_packed_and_single_documents(
    folder: Path, documents: list[list[int]], dtype: Any
) -> None:
    body = load_body(folder, describe_model(folder, dtype))
    width = max(map(len, documents))
    padded = torch.zeros((len(documents), width), dtype=torch.long)
    for row, ids in enumerate(documents):
        padded[row, : len(ids)] = torch.tensor(ids)
    in_padded = points_of(body, padded)
    packed = torch.tensor([[token for ids in documents for token in ids]])
    positions = torch.tensor([[k for ids in documents for k in range(len(ids))]])
    in_packed = points_of(body, packed, positions)[:, 0]
    body.check_identity(packed, positions)
    start = 0
    for row, expected in enumerate(reference(folder, documents, getattr(torch, dtype))):
        ids = documents[row]
        assert torch.equal(points_of(body, torch.tensor([ids]))[:, 0], expected)
        for ours in (in_padded[:, row, : len(ids)], in_packed[:, start : start + len(ids)]):
            difference, size = (ours.double() - expected.double()), expected.double()
            if dtype == "float32":
                assert (difference.norm(dim=-1) / size.norm(dim=-1)).max() <= 1e-5
            else:
                assert (difference.norm(dim=(1, 2)) / size.norm(dim=(1, 2))).max() <= 2e-2
        start += len(ids)


def test_lens_agrees_with_the_language_model(folder: Path, documents: list[list[int]]) -> None:
    """At point L the lens is the model; at point 20 it is its head on that point."""
    ids = documents[0][:40]
    info = describe_model(folder, "float32")
    points = points_of(load_body(folder, info), torch.tensor([ids]))[:, 0]
    next_ids = torch.tensor([*ids[1:], -1])
    values = LensMeasure(export_head(folder, info), 64 << 20).measure(points, next_ids)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
        final = out.logits[0].double().log_softmax(-1)
        middle = model.lm_head(model.model.norm(out.hidden_states[20][0]))
        middle = middle.double().log_softmax(-1)
    rows = torch.arange(len(ids) - 1)
    probability = final[rows, next_ids[:-1]].exp()
    np.testing.assert_allclose(values["next_probability"][-1, :-1], probability, rtol=1e-3)
    entropy = -(final.exp() * final).sum(-1)
    np.testing.assert_allclose(values["entropy"][-1], entropy, rtol=1e-3, atol=1e-4)
    kl = (middle.exp() * (middle - final)).sum(-1)
    np.testing.assert_allclose(values["kl"][20], kl, rtol=1e-3, atol=1e-4)
    assert not values["kl"][-1].any()
