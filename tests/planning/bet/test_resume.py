"""A search's history: interrupted, resumed, made longer, refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fake_workbench import FakeWorkbench
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated
from searches import bet, lines, plan, quality

from bet_torchrec.errors import BetError
from bet_torchrec.files import FolderInUseError
from bet_torchrec.files.lines import append_line
from bet_torchrec.planning import BET
from bet_torchrec.planning.sizers.bet import History, HistoryError, SingleSamples

PAPER = BET.paper(iterations=9, candidates=20, finalists=0, trainer=SingleSamples(updates=1))


@pytest.mark.parametrize("sizer", [bet(iterations=9), PAPER])
@pytest.mark.parametrize("stop", [1, 6])
def test_an_interrupted_search_continues_to_the_identical_plan(tmp_path, sizer, stop):
    undisturbed = plan(sizer, run_dir=tmp_path / "a")
    calls = []

    def interrupted(p):
        calls.append(p)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return quality(p)

    with pytest.raises(KeyboardInterrupt):
        plan(sizer, run_dir=tmp_path / "b", evaluate=interrupted)
    assert len(lines(tmp_path / "b")) == stop
    assert plan(sizer, resume=tmp_path / "b") == undisturbed
    a, b = lines(tmp_path / "a"), lines(tmp_path / "b")
    assert [{**p, "seconds": 0} for p in a] == [{**p, "seconds": 0} for p in b]


def test_kill_minus_nine(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path[:0] = sys.argv[2:]
        from searches import plan, quality, bet
        calls = []
        def dying(p):
            calls.append(p)
            if len(calls) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return quality(p)
        plan(bet(iterations=10), run_dir=sys.argv[1], evaluate=dying)
        """
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run"), here], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(lines(tmp_path / "run")) == 5
    resumed = plan(bet(iterations=10), resume=tmp_path / "run")
    assert resumed == plan(bet(iterations=10))


@pytest.mark.parametrize("cut", [40, 1])
def test_a_line_cut_short_is_forgotten(tmp_path, cut):
    plan(bet(iterations=4), run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert plan(bet(iterations=4), resume=tmp_path) == plan(bet(iterations=4))
    assert [p["iteration"] for p in lines(tmp_path)] == [0, 1, 2, 3]


def test_a_header_cut_short_is_a_new_search(tmp_path):
    plan(bet(iterations=2), run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:30])
    assert plan(bet(iterations=2), resume=tmp_path) == plan(bet(iterations=2))
    assert len(lines(tmp_path)) == 2


def test_a_search_can_be_made_longer(tmp_path):
    plan(bet(iterations=4), run_dir=tmp_path)
    longer = plan(bet(iterations=8), resume=tmp_path)
    assert longer == plan(bet(iterations=8))


def test_another_searchs_history_is_refused(tmp_path):
    plan(bet(iterations=3), run_dir=tmp_path)
    with pytest.raises(HistoryError, match="seed: 0 there, 1 now"):
        plan(bet(iterations=3), resume=tmp_path, seed=1)
    with pytest.raises(HistoryError, match=r"settings.candidates: '20' there, '7' now"):
        plan(bet(iterations=3, candidates=7), resume=tmp_path)
    with pytest.raises(BetError, match="already holds a search"):
        plan(bet(iterations=3), run_dir=tmp_path)


def test_another_workbench_is_refused_saying_what_differs(tmp_path):
    def bench(**said):
        identity = {"task": {"data": "gowalla", "fields": (1, 2)}, "seed": 0, **said}
        return FakeWorkbench(quality, identity=identity)

    sizer = bet(iterations=3)
    found = plan(sizer, workbench=bench(), run_dir=tmp_path)
    assert plan(sizer, workbench=bench(), resume=tmp_path) == found
    with pytest.raises(
        HistoryError, match=r"tried_with.workbench.task.data: 'gowalla' there, 'yelp' now"
    ):
        plan(sizer, workbench=bench(task={"data": "yelp", "fields": (1, 2)}), resume=tmp_path)
    with pytest.raises(HistoryError, match=r"seed: 0 there, 5 now"):
        plan(sizer, workbench=bench(seed=5), resume=tmp_path)
    with pytest.raises(HistoryError, match=r"workbench: .* there, None now"):
        plan(sizer, evaluate=quality, resume=tmp_path)


def test_a_users_own_identity_is_asked_for_again(tmp_path):
    sizer = bet(iterations=2)
    plan(sizer, evaluate=quality, identity="DeepFM on Monday's data", run_dir=tmp_path)
    plan(sizer, evaluate=quality, identity="DeepFM on Monday's data", resume=tmp_path)
    with pytest.raises(HistoryError, match=r"Monday's data\" there, 'Tuesday' now"):
        plan(sizer, evaluate=quality, identity="Tuesday", resume=tmp_path)


@pytest.mark.parametrize("content", [b"\x00\x01garbage\n", b"[1, 2]\n", b"{}\n", b'{"kind": 3}\n'])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "history.jsonl").write_bytes(content)
    with pytest.raises(HistoryError):
        History.open(tmp_path / "history.jsonl", {"seed": 0}, resume=True)


DAMAGES = {
    "no UTF-8": lambda line: line.encode().replace(b"predicted", b"pre\xff\xfed"),
    "no JSON": lambda line: line[:-3].encode(),
    "NaN": lambda line: line.replace('"fitness": 0', '"fitness": NaN, "x": 0').encode(),
    "huge": lambda line: line.replace('"fitness": 0', '"fitness": 1e999, "x": 0').encode(),
    "fitness missing": lambda line: line.replace('"fitness"', '"fit"').encode(),
    "fitness null": lambda line: changed(line, fitness=None),
    "fitness text": lambda line: changed(line, fitness="0.5"),
    "fitness bool": lambda line: changed(line, fitness=True),
    "state": lambda line: changed(line, state="fine"),
    "iteration": lambda line: changed(line, iteration=7),
    "negative": lambda line: changed(line, buckets=[[[32, -1]], [[32, 1]]]),
    "buckets": lambda line: changed(line, buckets=[[32, 300]]),
    "kind": lambda line: changed(line, kind="probes"),
    "a field more": lambda line: changed(line, other=1),
    "no object": lambda line: b"[]",
}


def signed(path, text):
    """Write these lines with checksums that fit: what is wrong must be found by its content."""
    path.unlink()
    before = 0
    for line in text:
        try:
            value = {k: v for k, v in json.loads(line).items() if k != "crc32"}
            before = append_line(path, value, before)
        except (ValueError, AttributeError):
            with open(path, "ab") as file:
                file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")


def changed(line, **changes):
    return json.dumps({**json.loads(line), **changes}).encode()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_named(tmp_path, damage):
    plan(bet(iterations=3), run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    text = path.read_text().splitlines()
    damaged = DAMAGES[damage](text[2])
    assert damaged != text[2].encode()
    signed(path, [text[0], text[1], damaged, text[3]])
    with pytest.raises(HistoryError, match="line 3"):
        plan(bet(iterations=3), resume=tmp_path)


@pytest.mark.parametrize(
    "buckets", [[[[32, 300]], [[33, 500]]], [[[32, 300]], [[32, 499]]], [[[32, 300]]]]
)
def test_sizes_that_this_search_never_tries_are_refused(tmp_path, buckets):
    plan(bet(iterations=3), run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    text = path.read_text().splitlines()
    signed(path, [*text[:2], changed(text[2], buckets=buckets), *text[3:]])
    with pytest.raises(HistoryError, match="sizes"):
        plan(bet(iterations=3), resume=tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"quality": None}, {"iteration": 9}, {"start": "cold"}, {"seed": -1}]
)
def test_a_damaged_retraining_is_named(tmp_path, wrong):
    sizer = bet(iterations=3, finalists=1, starts=("full",))
    plan(sizer, workbench=FakeWorkbench(quality), run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    text = path.read_text().splitlines()
    signed(path, [*text[:4], changed(text[4], **wrong)])
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="line 5"):
        plan(sizer, workbench=FakeWorkbench(quality), resume=tmp_path)
    assert path.read_bytes() == before


def test_any_flipped_bit_is_noticed(tmp_path):
    plan(bet(iterations=3), run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    good = path.read_bytes()
    for at in range(0, len(good) - 1, 7):
        damaged = bytearray(good)
        damaged[at] ^= 1 << at % 7
        path.write_bytes(bytes(damaged))
        with pytest.raises(HistoryError, match="line [1-4]|another search"):
            plan(bet(iterations=3), resume=tmp_path)


def test_lines_that_are_lost_doubled_or_moved_are_noticed(tmp_path):
    plan(bet(iterations=4), run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    first, *probes = path.read_bytes().splitlines(keepends=True)
    for wrong in (probes[1:], [probes[0], *probes], probes[::-1]):
        path.write_bytes(first + b"".join(wrong))
        with pytest.raises(HistoryError, match="changed or moved"):
            plan(bet(iterations=4), resume=tmp_path)


def test_two_searches_in_one_folder(tmp_path):
    """The second would write every probe again, and a later resume end in another plan."""
    calls = []

    def evaluate(found):
        if not calls:
            calls.append(found)
            with pytest.raises(FolderInUseError, match=f"in use by process {os.getpid()} on"):
                plan(bet(iterations=3), resume=tmp_path)
        return quality(found)

    alone = plan(bet(iterations=3))
    assert plan(bet(iterations=3), evaluate=evaluate, run_dir=tmp_path) == alone
    assert len(lines(tmp_path)) == 3
    assert plan(bet(iterations=3), resume=tmp_path) == alone


def test_sizes_over_the_budget_are_no_history(tmp_path):
    sizer = bet(iterations=3)
    plan(sizer, run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    text = path.read_text().splitlines()
    probe = json.loads(text[2])
    probe["buckets"][0] = [[32, sum(rows for _, rows in probe["buckets"][0])]]
    signed(path, [*text[:2], json.dumps(probe), *text[3:]])
    with pytest.raises(HistoryError, match="sizes that this search never tries.*should cost at"):
        plan(sizer, resume=tmp_path)


def test_only_our_error_comes_out_of_a_crafted_line(tmp_path_factory):
    good = tmp_path_factory.mktemp("good")
    sizer = bet(iterations=3, finalists=1, starts=("full",))
    plan(sizer, workbench=FakeWorkbench(quality), run_dir=good)
    text = (good / "history.jsonl").read_text().splitlines()

    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def check(data):
        number = data.draw(st.integers(0, len(text) - 1))
        wrong = json.dumps(mutated(data.draw, json.loads(text[number])))
        folder = tmp_path_factory.mktemp("bad")
        path = folder / "history.jsonl"
        path.touch()
        signed(path, [*text[:number], wrong, *text[number + 1 :]])
        with contextlib.suppress(HistoryError):
            plan(sizer, workbench=FakeWorkbench(quality), resume=folder)

    check()
