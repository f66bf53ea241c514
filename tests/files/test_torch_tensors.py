"""Tensors of odd strides are written as they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bet_torchrec.files.torch_tensors import entry


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1)])
def test_a_stride_of_0_is_written(shape):
    tensor = torch.full((1,), 2.5).as_strided(shape, (0,) * len(shape))
    written = np.concatenate([*entry("a", tensor).pieces()]).view(np.float32)
    assert written.tolist() == [2.5] * tensor.numel()
