"""Click models small enough to be computed by hand, with every option somewhere."""

from __future__ import annotations

import torch
from torch import nn

from bet_torchrec.models.clicks import make_click_model

FIELDS, DIM, DENSE = 4, 6, 3

CASES = {
    "fm": ("fm", {}),
    "fm-factors-alone": ("fm", {"linear": False}),
    "fm-dense": ("fm", {"dense": True}),
    "deepfm": ("deepfm", {"layers": (5, 4)}),
    "deepfm-dense": ("deepfm", {"layers": (5,), "dense": True}),
    "deepfm-factors-alone": ("deepfm", {"layers": (5, 4), "linear": False}),
    "autoint": ("autoint", {"attention": (8, 4)}),
    "autoint-linear-mlp": ("autoint", {"attention": (8,), "layers": (5, 4), "linear": True}),
    "autoint-dense": ("autoint", {"attention": (4, 8), "heads": 1, "dense": True}),
    "dlrm": ("dlrm", {"layers": (7, 5)}),
    "dlrm-linear": ("dlrm", {"layers": (7,), "linear": True}),
    "dlrm-dense": ("dlrm", {"layers": (7,), "bottom": (5,), "dense": True}),
    "dcn": ("dcn", {"layers": (5, 4)}),
    "dcn-linear": ("dcn", {"layers": (5, 4), "cross_layers": 2, "linear": True}),
    "dcn-rank-dense": ("dcn", {"layers": (5,), "rank": 3, "dense": True}),
    "dcn-dense": ("dcn", {"layers": (5,), "dense": True}),
}


def built(case: str, **more: object) -> nn.Module:
    name, settings = CASES[case]
    settings = {**settings, **more}
    dense = DENSE if settings.pop("dense", False) else 0
    model = make_click_model(name, num_fields=FIELDS, dim=DIM, dense_features=dense, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and dense features' rows are not zero either
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 2)
    return model.eval()


def inputs(model: nn.Module, batch: int = 5, width: int = DIM) -> list[torch.Tensor | None]:
    """Rows and, if the model has them, dense features."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(batch, FIELDS, width, generator=generator)
    dense = torch.randn(batch, DENSE, generator=generator) if model.dense_features else None
    return [rows, dense]
