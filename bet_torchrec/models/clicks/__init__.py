"""Click models: from the fields' rows to a logit. They know no tables and no sizes."""

from .autoint import AutoInt
from .dcn import DCN
from .deepfm import DeepFM
from .dlrm import DLRM
from .fm import FM
from .make import CLICK_MODELS, click_model_settings, make_click_model
from .protocol import ClickModel

__all__ = [
    "CLICK_MODELS",
    "DCN",
    "DLRM",
    "FM",
    "AutoInt",
    "ClickModel",
    "DeepFM",
    "click_model_settings",
    "make_click_model",
]
