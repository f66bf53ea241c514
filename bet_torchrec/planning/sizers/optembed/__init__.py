"""OptEmbed: a supernet of all widths with a learnt row mask, then evolution over fields' widths."""

from .settings import OptEmbed
from .supernet import SuperNet

__all__ = ["OptEmbed", "SuperNet"]
