"""Two towers over sharded tables of a plan, on any number of processes, CPU or GPU.

    torchrun --nproc-per-node 2 examples/train_sharded.py --steps 200
    torchrun --nproc-per-node 3 examples/train_sharded.py --steps 400    # goes on at step 200

Ctrl-C saves a checkpoint first. Interactions are made up.
"""

import argparse
import signal

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.optimizers import in_backward_optimizer_filter

from bet_torchrec import Budget, BudgetPlanner, EqualSizes, embeddings, generate


class TwoTowers(torch.nn.Module):
    def __init__(self, rows: torch.nn.Module) -> None:
        super().__init__()
        self.rows, self.layer = rows, torch.nn.Linear(64, 64)

    def forward(self, pairs: KeyedJaggedTensor) -> torch.Tensor:
        found = self.rows(pairs)
        scores = self.layer(found["user"]) @ found["item"].T
        return -scores.log_softmax(dim=1).diagonal().mean()  # of the users' own items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", default="train_sharded", help="of the checkpoint")
    args = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    data = generate()
    tables = [EmbeddingBagConfig(len(c), 64, name=name) for name, c in data.counts().items()]
    budget = Budget.sparsity(0.8)  # bytes would be those of so many ranks, an id map each
    plan = BudgetPlanner(budget=budget, sizer=EqualSizes()).collective_plan(tables, data.counts())
    towers = TwoTowers(embeddings.BudgetedEmbeddingBagCollection(tables, plan, device="meta"))
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.05}
    sharder = embeddings.BudgetedEmbeddingBagCollectionSharder(fused_params=fused)
    model = DistributedModelParallel(towers, device=device, sharders=[sharder])
    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    optimizer = torch.optim.Adam(rest.values())
    try:
        step = embeddings.load_checkpoint(model, args.folder, optimizer)["step"]
    except FileNotFoundError:
        step = 0
    stop = torch.zeros(1, device=device)
    while not stop and step < args.steps:
        pairs = np.random.default_rng([step, dist.get_rank()]).integers(len(data), size=256)
        ids = torch.from_numpy(np.concatenate([data.users[pairs], data.items[pairs]])).to(device)
        loss = model(KeyedJaggedTensor(["user", "item"], ids.long(), lengths=torch.ones_like(ids)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        stop += len(asked)
        dist.all_reduce(stop)  # all ranks stop after the same step
        if stop or step % 50 == 0 or step == args.steps:
            embeddings.save_checkpoint(model, args.folder, optimizer, facts={"step": step})
            if dist.get_rank() == 0:
                print(f"step {step}: loss {loss.item():.4f}, saved in {args.folder}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
