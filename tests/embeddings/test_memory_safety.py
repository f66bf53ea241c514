"""The kernels touch no memory but what they were given, whatever a batch says."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import sys

import pytest
import torch
from sharded_cases import batch, full_tables, make_module, make_plan
from torchrec import KeyedJaggedTensor

from bet_torchrec.embeddings import FusedBudgetedEmbeddingBagCollection, quantize
from bet_torchrec.errors import InvalidInputError

COMPILER = next((c for c in ("g++", "c++") if shutil.which(c)), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


class Guarded:
    """Memory whose end is the end of what may be touched: one byte more is a crash."""

    def __init__(self) -> None:
        self.maps: list[mmap.mmap] = []

    def copy(self, values: torch.Tensor) -> torch.Tensor:
        page = mmap.PAGESIZE
        size = -(-max(1, values.nbytes) // page) * page
        area = mmap.mmap(-1, size + page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
        self.maps.append(area)
        if not values.numel():
            return values
        here = torch.frombuffer(
            area, dtype=values.dtype, count=values.numel(), offset=size - values.nbytes
        )
        return here.copy_(values.view(-1)).view(values.shape)


def guarded(kjt: KeyedJaggedTensor, guard: Guarded) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=kjt.keys(), values=guard.copy(kjt.values()), lengths=guard.copy(kjt.lengths())
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_nothing_beyond_the_end_is_touched(dtype):
    """Ids, lengths, weights and gradients each end where their memory does."""
    guard = Guarded()
    plain = make_module(make_plan()).load_full_tables(full_tables())
    model = FusedBudgetedEmbeddingBagCollection(plain, optimizer="sgd", lr=0.1)
    for weight in plain.parameters():
        weight.data = guard.copy(weight.data)
    served = [quantize(plain, precision=precision) for precision in ("int8", "int4", "int2")]
    for step in range(4):
        kjt, _ = batch(step)
        typed = KeyedJaggedTensor(
            keys=kjt.keys(), values=kjt.values().to(dtype), lengths=kjt.lengths().to(dtype)
        )
        own = guarded(typed, guard)
        out = model(own).values()
        torch.testing.assert_close(out, plain(own).values())
        out.backward(guard.copy(torch.ones_like(out)))
        for module in served:
            assert torch.equal(module(own).values(), module(typed).values())


def test_a_batch_that_says_more_than_there_is_is_refused_before_it_is_read():
    guard = Guarded()
    plain = make_module(make_plan()).load_full_tables(full_tables())
    model = FusedBudgetedEmbeddingBagCollection(plain, optimizer="adagrad", lr=0.1)
    modules = [plain, model, quantize(plain, precision="int8")]
    kjt, _ = batch(0)
    for change in (1, 10**6, 2**40, -1):
        lengths = kjt.lengths().long().clone()
        lengths[int(lengths.argmax())] += change
        bad = guarded(
            KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values(), lengths=lengths), guard
        )
        for module in modules:
            with pytest.raises(InvalidInputError, match="as many ids as there are"):
                module(bad)


SANITIZED = """
import sys
import torch
from bet_torchrec.embeddings.native import build, calls, operators
build.FLAGS = ("-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer", "-mavx2", "-mf16c",
               "-mfma", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
sys.path.insert(0, {here!r})
if sys.argv[1] == "lie":
    ids = torch.zeros(4, dtype=torch.int64)
    bags = calls.Bags(1, 1, ids, torch.tensor([4000]), None, None)
    bags.ids_count = 4000
    table = [torch.tensor([row]) for row in ([0, 0, 4, 0], [9, -1, 0, 0, 1], [0] * 10)]
    tables = calls.Tables(calls.integers([0]), None, *table)
    import ctypes
    calls.run("bet_lookup", bags, ctypes.byref(tables), calls.integers([0]),
              calls.pointer(torch.empty(1, 4)), calls.integer(4), None, calls.threads())
    sys.exit("not noticed")
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def sanitized(tmp_path, *arguments: str) -> subprocess.CompletedProcess:
    # libstdc++ too: torch throws through C++, and Python alone does not load it early enough.
    runtimes = [
        subprocess.run(
            [str(COMPILER), f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(os.path.isabs(runtime) for runtime in runtimes):
        pytest.skip("the compiler has no AddressSanitizer")
    here = os.path.dirname(__file__)
    env = {
        **os.environ,
        "LD_PRELOAD": " ".join(os.path.realpath(runtime) for runtime in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", SANITIZED.format(here=here), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_under_address_sanitizer(tmp_path):
    """The kernels' own tests, with every access checked; and that a wrong one is noticed."""
    noticed = sanitized(tmp_path, "lie")
    assert noticed.returncode
    assert "AddressSanitizer" in noticed.stderr, noticed.stderr[-2000:]
    here = os.path.dirname(__file__)
    files = ("test_one_pass.py", "test_fused.py", "test_fused_state.py", "test_routing.py")
    leave = "not compiler and not registered and not fake"
    tests = [os.path.join(here, name) for name in files]
    done = sanitized(tmp_path, "tests", *tests, "-k", leave)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert " passed" in done.stdout
