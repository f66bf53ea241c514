"""A workbench that answers at once, from functions of a plan."""

from __future__ import annotations

from types import SimpleNamespace

from bet_torchrec.outcome import Outcome


class FakeWorkbench:
    """probe, final: plan -> quality or Outcome; final may take ``start`` too. Keeps what it did."""

    task = None

    def __init__(self, probe, final=None, *, full=1.0, identity=None):
        self.probe, self.final = probe, final or (lambda plan, start: probe(plan))
        self.full_quality = full
        self.said = {"model": "fake"} if identity is None else identity
        self.probed, self.trained = [], []

    def identity(self):
        return self.said

    def full(self):
        return SimpleNamespace(outcome=outcome(self.full_quality))

    def fine_tune(self, plan, *, epochs=None, floor=None):
        self.probed.append((plan, epochs, floor))
        return outcome(self.probe(plan))

    def train(self, plan, *, seed=None, start="scratch"):
        self.trained.append((plan, seed, start))
        return outcome(self.final(plan, start))


def outcome(answer):
    return answer if isinstance(answer, Outcome) else Outcome(quality=answer)
