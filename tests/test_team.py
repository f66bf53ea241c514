"""Messages of a team of one; those of several are in planning/test_collective.py."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from bet_torchrec.team import Alone, group_or_default, team


def test_a_team_of_one():
    alone = team(None)
    assert isinstance(alone, Alone)
    assert (alone.rank, alone.size) == (0, 1)
    assert alone.gather("mine") == ["mine"]
    assert alone.broadcast("said") == "said"
    assert alone.together("work", lambda: 3) == alone.first("work", lambda: 3) == 3
    assert alone.mean("work", lambda: 0.1) == 0.1
    alone.agree("everything", {})
    with pytest.raises(ZeroDivisionError):
        alone.together("work", lambda: 1 / 0)


def test_a_group_of_one_is_no_group(tmp_path):
    assert group_or_default(None) is None
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/a", rank=0, world_size=1)
    try:
        assert group_or_default(None) is group_or_default(dist.group.WORLD) is None
        assert team(dist.group.WORLD).gather(1) == [1]
    finally:
        dist.destroy_process_group()
