"""A DLRM's 26 tables, of sizes like Criteo's, under one budget: bytes of weights and Adagrad state.

python examples/dlrm_budget.py    # on criteo-sample in $BET_TORCHREC_DATA, or on made-up clicks
"""

import argparse

import numpy as np
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM
from torchrec.optim import RowWiseAdagrad

from bet_torchrec import BET, Budget, BudgetPlanner, SizePlan
from bet_torchrec.data import data_directory
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection

ROWS = [1460, 583, 20000, 20000, 305, 24, 12517, 633, 3, 20000, 5683, 20000, 3194, 27, 14992]
ROWS += [20000, 10, 5652, 2173, 4, 20000, 18, 15, 20000, 105, 20000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, default=8)
    probes = parser.parse_args().probes
    ids, dense, clicks = (torch.from_numpy(part) for part in read_clicks())
    test, validation, *batches = torch.arange(8000).split([1000, 1000] + [125] * 48)
    names, tables, counts = [f"cat_{i}" for i in range(26)], [], {}
    for name, rows, column in zip(names, ROWS, ids.T, strict=True):
        tables.append(EmbeddingBagConfig(num_embeddings=rows, embedding_dim=16, name=name))
        counts[name] = torch.bincount(column[2000:], minlength=rows)

    def train(plan: SizePlan | None) -> list[float]:
        """The log loss of every step of TorchRec's DLRM, then of validation, then of test."""
        torch.manual_seed(0)
        collection = EmbeddingBagCollection(tables)
        if plan is not None:
            collection = BudgetedEmbeddingBagCollection(tables, plan)
        model, losses = DLRM(collection, 13, [32, 16], [32, 1]), []
        rest = [*model.dense_arch.parameters(), *model.over_arch.parameters()]
        optimizers = RowWiseAdagrad(collection.parameters(), lr=0.05), torch.optim.Adam(rest)
        for part in (*batches, validation, test):
            values = ids[part].T.flatten()
            sparse = KeyedJaggedTensor(names, values, lengths=torch.ones_like(values))
            logits = model(dense[part], sparse).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, clicks[part])
            losses.append(round(loss.item(), 4))
            if len(part) < 1000:  # the others are held out
                model.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
        return losses

    budget = Budget.bytes(3 << 20, purpose="training", dtype="fp32", optimizer="rowwise_adagrad")
    sizer = BET(iterations=probes, finalists=0)
    planner = BudgetPlanner(budget=budget, widths=(0, 4, 8, 16), sizer=sizer)
    plan = planner.plan(tables, counts, lambda plan: -train(plan)[-2])
    # In full, 16 weights and one state a row, all fp32.
    for size, chosen in ((17 * 4 * sum(ROWS), None), (plan.cost(), plan)):
        *steps, _, tested = train(chosen)
        print(f"{size:,} bytes: log loss {steps[::8]}, test {tested}")


def read_clicks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (8000, 26), logarithms of counts (8000, 13) and clicks (8000,)."""
    path = data_directory() / "criteo-sample" / "train.txt"
    if not path.is_file():
        print(f"{path} was not found (set BET_TORCHREC_DATA): clicks are made up")
        ids = (np.random.default_rng(0).random((8000, 26)) ** 4 * ROWS).astype(np.int64)
        return ids, np.log1p(ids[:, :13], dtype=np.float32), (ids[:, 0] < 90).astype(np.float32)
    lines = np.loadtxt(path, dtype=str, delimiter="\t", comments=None)
    lines[lines == ""] = "0"
    ids = np.vectorize(lambda text: int(text, 16))(lines[:, 14:]) % ROWS
    return ids, np.log1p(lines[:, 1:14].astype(np.float32).clip(0)), lines[:, 0].astype(np.float32)


if __name__ == "__main__":
    main()
