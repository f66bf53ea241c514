"""A model whose annotations are types, not text, as torch.jit.script needs them."""

from torch import nn
from torchrec import KeyedJaggedTensor


class Scriptable(nn.Module):
    """A collection inside something."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, features: KeyedJaggedTensor):
        return self.tables(features)
