"""Figures of papers, to stand beside our own.

RANKINGS is Table 1 of BET (WSDM 2024): data, model, method, share of the full parameters, test
Recall@20 and NDCG@20. Two entries are misprints there (0.9980 and 0.6570) and left out: "-". ESAPN
and OptEmbed have no budget in the paper: their shares are what they came to. CLICKS are the full
models of BARS on Frappe (NFM's split): data, model, method, share, test AUC and log loss.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

RANKINGS = """\
gowalla lightgcn esapn 1/4 0.1579 0.1329
gowalla ngcf esapn 17/100 0.1396 0.1193
gowalla ncf esapn 13/50 0.1280 0.0959
gowalla lightgcn optembed 13/50 0.1314 0.1115
gowalla ngcf optembed 1/4 0.1227 0.1005
gowalla ncf optembed 9/50 0.0877 0.0653
gowalla lightgcn pep-mask 1/5 0.1588 0.1347
gowalla ngcf pep-mask 1/5 0.1524 0.1245
gowalla ncf pep-mask 1/5 0.1282 0.0957
gowalla lightgcn equal 1/5 0.1674 0.1400
gowalla ngcf equal 1/5 0.1466 0.1170
gowalla ncf equal 1/5 0.1235 0.0916
gowalla lightgcn mr 1/5 0.1583 0.1323
gowalla ngcf mr 1/5 0.1223 0.0982
gowalla ncf mr 1/5 0.1243 0.0910
gowalla lightgcn ciess 1/5 0.1750 0.1461
gowalla ngcf ciess 1/5 0.1504 0.1251
gowalla ncf ciess 1/5 0.1307 0.0997
gowalla lightgcn bet 1/5 0.1753 0.1483
gowalla ngcf bet 1/5 0.1454 0.1204
gowalla ncf bet 1/5 0.1294 0.0973
gowalla lightgcn pep-mask 1/10 0.1274 0.1102
gowalla ngcf pep-mask 1/10 0.1327 0.1081
gowalla ncf pep-mask 1/10 0.1121 0.0839
gowalla lightgcn equal 1/10 0.1477 0.1217
gowalla ngcf equal 1/10 0.1380 0.1115
gowalla ncf equal 1/10 0.1112 0.0796
gowalla lightgcn mr 1/10 0.1403 0.1171
gowalla ngcf mr 1/10 0.1123 0.0911
gowalla ncf mr 1/10 0.1069 0.0769
gowalla lightgcn ciess 1/10 0.1589 0.1353
gowalla ngcf ciess 1/10 0.1380 0.1140
gowalla ncf ciess 1/10 0.1131 0.0841
gowalla lightgcn bet 1/10 0.1620 0.1376
gowalla ngcf bet 1/10 0.1426 0.1177
gowalla ncf bet 1/10 0.1122 0.0845
gowalla lightgcn pep-mask 1/20 0.0803 0.0712
gowalla ngcf pep-mask 1/20 0.0674 0.0554
gowalla ncf pep-mask 1/20 0.0897 0.0712
gowalla lightgcn equal 1/20 0.1085 0.0872
gowalla ngcf equal 1/20 0.1213 0.1007
gowalla ncf equal 1/20 0.0952 0.0682
gowalla lightgcn mr 1/20 0.1178 0.0975
gowalla ngcf mr 1/20 0.1040 0.0859
gowalla ncf mr 1/20 0.0918 0.0674
gowalla lightgcn ciess 1/20 0.1214 0.0997
gowalla ngcf ciess 1/20 0.1129 0.0964
gowalla ncf ciess 1/20 0.0933 0.0717
gowalla lightgcn bet 1/20 0.1374 0.1171
gowalla ngcf bet 1/20 0.1172 -
gowalla ncf bet 1/20 0.0963 0.0756
yelp2018 lightgcn esapn 27/100 0.0812 0.0773
yelp2018 ngcf esapn 29/100 0.0632 0.0603
yelp2018 ncf esapn 6/25 0.0490 0.0430
yelp2018 lightgcn optembed 1/5 0.0534 0.0489
yelp2018 ngcf optembed 33/100 0.0412 0.0369
yelp2018 ncf optembed 23/100 0.0238 0.0203
yelp2018 lightgcn pep-mask 1/5 0.0723 0.0682
yelp2018 ngcf pep-mask 1/5 0.0275 0.0223
yelp2018 ncf pep-mask 1/5 0.0406 0.0327
yelp2018 lightgcn equal 1/5 0.0822 0.0758
yelp2018 ngcf equal 1/5 0.0665 0.0603
yelp2018 ncf equal 1/5 0.0465 0.0351
yelp2018 lightgcn mr 1/5 0.0783 0.0698
yelp2018 ngcf mr 1/5 0.0618 0.0573
yelp2018 ncf mr 1/5 0.0342 0.0268
yelp2018 lightgcn ciess 1/5 0.0839 0.0783
yelp2018 ngcf ciess 1/5 0.0701 0.0652
yelp2018 ncf ciess 1/5 0.0533 0.0474
yelp2018 lightgcn bet 1/5 0.0873 0.0816
yelp2018 ngcf bet 1/5 0.0741 0.0685
yelp2018 ncf bet 1/5 0.0620 0.0554
yelp2018 lightgcn pep-mask 1/10 0.0657 0.0610
yelp2018 ngcf pep-mask 1/10 0.0276 0.0215
yelp2018 ncf pep-mask 1/10 0.0427 0.0335
yelp2018 lightgcn equal 1/10 0.0722 0.0648
yelp2018 ngcf equal 1/10 0.0622 0.0592
yelp2018 ncf equal 1/10 0.0416 0.0309
yelp2018 lightgcn mr 1/10 0.0642 0.0573
yelp2018 ngcf mr 1/10 0.0573 0.0524
yelp2018 ncf mr 1/10 0.0309 0.0242
yelp2018 lightgcn ciess 1/10 0.0730 0.0705
yelp2018 ngcf ciess 1/10 0.0669 0.0619
yelp2018 ncf ciess 1/10 0.0500 0.0442
yelp2018 lightgcn bet 1/10 0.0816 0.0762
yelp2018 ngcf bet 1/10 0.0736 0.0676
yelp2018 ncf bet 1/10 0.0565 0.0499
yelp2018 lightgcn pep-mask 1/20 0.0600 0.0561
yelp2018 ngcf pep-mask 1/20 0.0259 0.0206
yelp2018 ncf pep-mask 1/20 0.0399 0.0330
yelp2018 lightgcn equal 1/20 0.0624 0.0571
yelp2018 ngcf equal 1/20 0.0573 0.0545
yelp2018 ncf equal 1/20 0.0303 0.0238
yelp2018 lightgcn mr 1/20 0.0583 0.0540
yelp2018 ngcf mr 1/20 0.0528 0.0486
yelp2018 ncf mr 1/20 0.0275 0.0216
yelp2018 lightgcn ciess 1/20 - 0.0640
yelp2018 ngcf ciess 1/20 0.0662 0.0613
yelp2018 ncf ciess 1/20 0.0483 0.0446
yelp2018 lightgcn bet 1/20 0.0727 0.0676
yelp2018 ngcf bet 1/20 0.0639 0.0588
yelp2018 ncf bet 1/20 0.0545 0.0491
"""

CLICKS = """\
frappe fm full 1 0.9671 0.2065
frappe deepfm full 1 0.9842 0.1482
frappe dlrm full 1 0.9840 0.1444
frappe dcn full 1 0.9845 0.1491
"""

_ALSO = {"bet-paper": "bet"}  # of our methods, what else is the paper's
Key = tuple[str, str, str, Fraction, str]


def published(data: str, model: str, method: str, budget: str, metric: str) -> float | None:
    """The paper's figure for a cell's test metric, or None; budget: a ``Share`` in parameters."""
    words = budget.split()
    if len(words) != 1:
        return None
    key = (data, model, _ALSO.get(method, method), Fraction(words[0]), metric)
    return _table().get(key)


@cache
def _table() -> dict[Key, float]:
    found: dict[Key, float] = {}
    for text, metrics in ((RANKINGS, ("recall@20", "ndcg@20")), (CLICKS, ("auc", "log_loss"))):
        for line in text.splitlines():
            data, model, method, share, *values = line.split()
            for metric, value in zip(metrics, values, strict=True):
                if value != "-":
                    found[data, model, method, Fraction(share), metric] = float(value)
    return found
