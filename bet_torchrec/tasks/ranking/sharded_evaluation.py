"""``evaluation.evaluate`` with the users shared out among the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from ...errors import CollectiveError
from ...evaluation import KS, Metrics, evaluate
from ...team import Team

if TYPE_CHECKING:
    from ...data import Split
    from ...models.protocol import Scores


def evaluate_together(
    scores: Scores,
    split: Split,
    team: Team,
    *,
    on: Literal["validation", "test"] = "test",
    mask: Literal["train", "train+validation"] | None = None,
    ks: Sequence[int] = KS,
    users: ArrayLike | None = None,
) -> Metrics:
    """All ranks call this alike, with the scores of all users; each gets all metrics.

    Raises:
        CollectiveError: another rank failed.
    """
    everyone = np.arange(split.train.num_users) if users is None else np.asarray(users)
    mine = everyone[team.rank :: team.size]
    part = team.together(
        "evaluation", lambda: evaluate(scores, split, on=on, mask=mask, ks=ks, users=mine)
    )
    return part if team.size == 1 else _joined(team.gather(part))


def _joined(parts: Sequence[Metrics]) -> Metrics:
    users = np.concatenate([part.users for part in parts])
    order = users.argsort()
    first = parts[0]
    if any((part.ks, part.on, part.masked) != (first.ks, first.on, first.masked) for part in parts):
        raise CollectiveError("all ranks should evaluate the same part of the split at the same ks")
    return Metrics(
        users=users[order],
        recall={k: np.concatenate([p.recall[k] for p in parts])[order] for k in first.ks},
        ndcg={k: np.concatenate([p.ndcg[k] for p in parts])[order] for k in first.ks},
        on=first.on,
        masked=first.masked,
        left_out=sum(part.left_out for part in parts),
    )
