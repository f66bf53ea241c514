"""The same collections on CUDA: equal to the CPU's, sharded and fused, one wait for the device."""

from __future__ import annotations

import pytest
import torch
from gloo_ranks import free_port, join_group
from sharded_cases import TABLES, all_rows, batch, full_tables, make_module, make_plan, reference
from torchrec import KeyedJaggedTensor

from bet_torchrec.embeddings import IdRangeError

pytestmark = pytest.mark.gpu
STEPS, LR = 10, 0.05


def on_gpu(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
    return kjt.to(torch.device("cuda"))


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("row_order", ["ranked", "interleaved"])
def test_forward_and_gradients_are_the_cpu_s(layout, row_order):
    plan = make_plan()
    cpu = make_module(plan, layout=layout, row_order=row_order).load_full_tables(full_tables())
    gpu = make_module(plan, layout=layout, row_order=row_order, device="cuda")
    gpu.load_full_tables({name: table.cuda() for name, table in full_tables().items()})
    kjt, target = batch(0)
    ours, theirs = gpu(on_gpu(kjt)).values(), cpu(kjt).values()
    torch.testing.assert_close(ours.cpu(), theirs)
    (ours - target.cuda()).square().sum().backward()
    (theirs - target).square().sum().backward()
    for mine, other in zip(gpu.parameters(), cpu.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.cpu(), other.grad, atol=1e-5, rtol=1e-5)


def test_ids_out_of_range_are_an_error():
    module = make_module(make_plan(), device="cuda")
    kjt, _ = batch(0)
    values = kjt.values().clone()
    values[-1] = 99
    bad = KeyedJaggedTensor(keys=kjt.keys(), values=values, lengths=kjt.lengths())
    with pytest.raises(IdRangeError, match="got 99"):
        module(on_gpu(bad))


def test_routing_waits_for_the_device_once(monkeypatch):
    module = make_module(make_plan(), device="cuda")
    kjt = on_gpu(batch(0)[0])
    kjt.sync()  # lengths a key on the host are the caller's, as for TorchRec's own modules
    module.router(kjt)
    waits = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: (waits.append(t), original(t))[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            module.router(kjt)  # the one that is unavoidable
    finally:
        torch.cuda.set_sync_debug_mode("default")
    module.router(kjt)
    assert len([t for t in waits if t.is_cuda]) == 2  # one a call


@pytest.fixture
def one_rank():
    join_group(0, 1, free_port(), "nccl")
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adam"])
@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_fused_training_is_the_masked_full_table_s(one_rank, optimizer, layout):
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed import DistributedModelParallel

    from bet_torchrec.embeddings import BudgetedEmbeddingBagCollectionSharder

    if (optimizer, layout) == ("rowwise_adagrad", "prefix"):
        pytest.skip("a row-wise state has one value a row and block in the prefix layout")
    fused = {
        "sgd": EmbOptimType.EXACT_SGD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adam": EmbOptimType.ADAM,
    }[optimizer]
    device = torch.device("cuda")
    sharder = BudgetedEmbeddingBagCollectionSharder(
        {"optimizer": fused, "learning_rate": LR, "eps": 1e-8}, sharding_types=["table_wise"]
    )
    model = DistributedModelParallel(
        make_module(make_plan(), layout=layout, device="meta"), device=device, sharders=[sharder]
    )
    model.module.load_full_tables({name: t.to(device) for name, t in full_tables().items()})
    for step in range(STEPS):
        kjt, target = batch(step)
        loss = (model(on_gpu(kjt)).values() - target.to(device)).square().sum(1).mean()
        loss.backward()
    if optimizer == "adam":  # touches looked-up rows only, unlike torch's: no plain reference
        assert all(torch.isfinite(t).all() for t in model.module.full_tables().values())
        return
    expected = reference(optimizer, STEPS, LR)
    for name, table in all_rows(lambda kjt: model(on_gpu(kjt))).items():
        torch.testing.assert_close(table.cpu(), expected[name], atol=1e-4, rtol=1e-4)
    assert [t.name for t in TABLES] == list(expected)
