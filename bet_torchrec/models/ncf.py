"""NCF (He et al., WWW 2017) in BET's set-up: a dense layer and GMF side by side, BPR-trained.

    score(u, v) = gmf . (p_u * q_v) + hidden . relu(W_user e_u + W_item e_v + b)

One dense layer 2 d -> H after the concatenation (256 -> 128 at d 128) and a second pair of tables
for GMF, so NCF has four tables under one budget. A constant in the score would change neither BPR
nor a ranking, so there is none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..evaluation.separable import SeparableScores
from .protocol import BPRTerms, EmbeddingModule, check_rows, principal_axes


class NCF(nn.Module):
    """Tables: "user", "item" (dense layer), "user_gmf", "item_gmf"; each at most ``dim`` wide.

    hidden: H, units of the dense layer, ``dim`` unless given. Tables narrower than ``dim`` use the
    first columns of the weights, as if padded with zeros.
    """

    def __init__(
        self, num_users: int, num_items: int, *, dim: int, hidden: int | None = None
    ) -> None:
        super().__init__()
        self.num_users, self.num_items, self.dim = num_users, num_items, dim
        hidden = dim if hidden is None else hidden
        self.user_weight = nn.Parameter(torch.empty(hidden, dim))
        self.item_weight = nn.Parameter(torch.empty(hidden, dim))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.hidden_weight = nn.Parameter(torch.empty(hidden))
        self.gmf_weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @property
    def table_sides(self) -> Mapping[str, str]:
        return {"user": "user", "item": "item", "user_gmf": "user", "item_gmf": "item"}

    @property
    def table_rows(self) -> Mapping[str, int]:
        return {
            "user": self.num_users,
            "item": self.num_items,
            "user_gmf": self.num_users,
            "item_gmf": self.num_items,
        }

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Glorot-uniform dense layer and prediction; GMF starts as a plain inner product."""
        hidden, dim = self.user_weight.shape
        for weight, fans in (
            (self.user_weight, 2 * dim + hidden),
            (self.item_weight, 2 * dim + hidden),
            (self.hidden_weight, hidden + 1),
        ):
            bound = (6 / fans) ** 0.5
            draws = torch.rand(weight.shape, generator=generator)
            weight.copy_((2 * draws - 1) * bound)
        self.bias.zero_()
        self.gmf_weight.fill_(1.0)

    def forward(
        self,
        embedding: EmbeddingModule,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> BPRTerms:
        items = torch.cat([positives, negatives])
        user, item = embedding.lookup("user", users), embedding.lookup("item", items)
        p, q = embedding.lookup("user_gmf", users), embedding.lookup("item_gmf", items)
        width = embedding.width
        half = user @ self.user_weight[:, :width].T + self.bias
        positive, negative = (item @ self.item_weight[:, :width].T).chunk(2)
        margin = (torch.relu(half + positive) - torch.relu(half + negative)) @ self.hidden_weight
        liked, other = q.chunk(2)
        margin = margin + (p * (liked - other)) @ self.gmf_weight[:width]
        norms = [rows.square().sum() for rows in (user, item, p, q)]
        return BPRTerms(margin=margin, l2=torch.stack(norms).sum() / 2)

    def scores(self, embedding: EmbeddingModule) -> SeparableScores:
        """Exact ranking by the separable first layer; see ``SeparableScores``."""
        width = embedding.width
        with torch.no_grad():
            return SeparableScores(
                hidden_users=embedding.table("user") @ self.user_weight[:, :width].T + self.bias,
                hidden_items=embedding.table("item") @ self.item_weight[:, :width].T,
                weights=self.hidden_weight.detach(),
                linear_users=embedding.table("user_gmf") * self.gmf_weight[:width],
                linear_items=embedding.table("item_gmf"),
            )

    @torch.no_grad()
    def rotate(self, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each table of the dense layer by a rotation of its own, which its weights take back.

        GMF's weights are split evenly over its two tables, which leaves a plain inner product, so
        that one rotation of both is free too.
        """
        check_rows(tables, self.table_rows)
        turned = {}
        for name, weight in (("user", self.user_weight), ("item", self.item_weight)):
            axes = principal_axes(tables[name])
            turned[name] = tables[name] @ axes
            weight.copy_(weight @ axes)
        root = self.gmf_weight.abs().sqrt()
        p, q = tables["user_gmf"] * root, tables["item_gmf"] * root * self.gmf_weight.sign()
        axes = principal_axes(p, q)
        turned["user_gmf"], turned["item_gmf"] = p @ axes, q @ axes
        self.gmf_weight.fill_(1.0)
        return turned
