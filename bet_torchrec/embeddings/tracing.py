"""Tracing and scripting: a collection is one node of any torch.fx graph, and no TorchScript."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy

from ..errors import InvalidInputError


def as_leaf(module: nn.Module, features: Proxy) -> Any:
    """A call of ``module`` as one node of the graph being traced, whatever the tracer's leaves.

    Routing looks at values, which no trace can follow.

    Raises:
        InvalidInputError: it is the traced module itself.
    """
    tracer: Any = features.tracer
    path = tracer.path_of_module(module)
    if not path:
        raise InvalidInputError(
            f"a {type(module).__name__} is one node of a traced graph and cannot be all of it: "
            "trace a module that holds it"
        )
    return features.tracer.create_proxy("call_module", path, (features,), {})


class NotScriptable:
    """Says so before torch.jit.script fails somewhere inside."""

    def __prepare_scriptable__(self) -> Any:
        """Torch's hook, called before a module is compiled."""
        raise InvalidInputError(
            f"a {type(self).__name__} cannot be scripted, because its routing is Python: serve it "
            "in Python (quantize), or export_tables and read them with bet_torchrec.serving, or "
            "export_dense for TorchRec's own collections"
        )
