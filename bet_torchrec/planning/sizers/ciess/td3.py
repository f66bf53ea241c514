"""TD3 (Fujimoto et al., 2018) for one action, a size from 1 to d, in a state of three numbers.

Shapes: n transitions. States are (n, 3) in [-1, 1]; actions are sizes (n,).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ....errors import InvalidInputError

STATE, HIDDEN = 3, 256


@dataclass(frozen=True, kw_only=True)
class TD3Settings:
    """CIESS's. noise: of the target's action, in sizes, clipped at ``noise_clip``. delay: critic
    updates for one of the actor and the targets. batch: transitions an update, as far as there are.
    """

    gamma: float = 0.99
    tau: float = 0.005
    delay: int = 2
    noise: float = 2.0
    noise_clip: float = 5.0
    actor_rate: float = 1e-3
    critic_rate: float = 3e-3
    batch: int = 4096

    def __post_init__(self) -> None:
        if not (0 <= self.gamma <= 1 and 0 < self.tau <= 1):
            raise InvalidInputError(
                "gamma should be from 0 to 1 and tau above 0 and at most 1, got "
                f"{self.gamma!r} and {self.tau!r}"
            )
        for name in ("delay", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} should be an int from 1 on, got {value!r}")
        for name in ("noise", "noise_clip", "actor_rate", "critic_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInputError(f"{name} should be at least 0 and finite, got {value!r}")


class Transitions(NamedTuple):
    """What followed from what; done: 1.0 at an episode's end."""

    state: Tensor
    action: Tensor
    reward: Tensor
    following: Tensor
    done: Tensor


class TD3:
    """An actor, twin critics and their targets. d: the largest size."""

    def __init__(self, d: int, settings: TD3Settings, generator: torch.Generator) -> None:
        self.d, self.settings, self._drawn = d, settings, generator
        self.actor = _mlp(STATE, generator)
        self.critics = nn.ModuleList(_mlp(STATE + 1, generator) for _ in range(2))
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critics = copy.deepcopy(self.critics)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=settings.actor_rate)
        self._critic_optimizer = torch.optim.Adam(
            self.critics.parameters(), lr=settings.critic_rate
        )
        self._updates = 0

    def act(self, state: Tensor) -> Tensor:
        """(n,) sizes from 1 to d, not rounded."""
        return self._sizes(self.actor(state))

    def value(self, state: Tensor, action: Tensor) -> Tensor:
        """(n,) the first critic's."""
        return self._q(self.critics[0], state, action)

    @torch.no_grad()
    def target(self, batch: Transitions) -> Tensor:
        """(n,) reward + gamma * the lesser target critic, of the target's action with noise."""
        s = self.settings
        action = self._sizes(self.target_actor(batch.following))
        noise = torch.randn(action.shape, generator=self._drawn) * s.noise
        action = (action + noise.clamp(-s.noise_clip, s.noise_clip)).clamp(1, self.d)
        both = [self._q(critic, batch.following, action) for critic in self.target_critics]
        return batch.reward + s.gamma * (1 - batch.done) * torch.minimum(*both)

    def update(self, memory: Transitions) -> None:
        """One update from a batch of the memory."""
        n = len(memory.reward)
        chosen = torch.randint(n, (min(n, self.settings.batch),), generator=self._drawn)
        batch = Transitions(*(part[chosen] for part in memory))
        wanted = self.target(batch)
        loss = sum(
            (self._q(critic, batch.state, batch.action) - wanted).square().mean()
            for critic in self.critics
        )
        assert isinstance(loss, Tensor)
        self._critic_optimizer.zero_grad()
        loss.backward()
        self._critic_optimizer.step()
        self._updates += 1
        if self._updates % self.settings.delay:
            return
        self._actor_optimizer.zero_grad()
        (-self.value(batch.state, self.act(batch.state)).mean()).backward()
        self._actor_optimizer.step()
        self._follow(self.target_actor, self.actor)
        self._follow(self.target_critics, self.critics)

    @torch.no_grad()
    def _follow(self, target: nn.Module, source: nn.Module) -> None:
        for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
            slow.lerp_(fast, self.settings.tau)

    def _sizes(self, raw: Tensor) -> Tensor:
        return 1 + (raw[:, 0].tanh() + 1) / 2 * (self.d - 1)

    def _q(self, critic: nn.Module, state: Tensor, action: Tensor) -> Tensor:
        scaled = 2 * (action - 1) / max(self.d - 1, 1) - 1
        found: Tensor = critic(torch.cat([state, scaled[:, None]], 1))
        return found[:, 0]


def _mlp(inputs: int, generator: torch.Generator) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, 1),
    )  # fmt: skip
    with torch.no_grad():
        for weight in layers.parameters():
            bound = HIDDEN**-0.5 if weight.ndim == 1 else weight.shape[1] ** -0.5
            weight.uniform_(-bound, bound, generator=generator)
    return layers


def walk(start: Tensor, d: int, *, steps: int, reach: int, generator: torch.Generator) -> Tensor:
    """(n, steps + 1) sizes of random walks from start (n,), which is the first.

    A step goes to another size within ``reach``, with a probability in proportion to 1 / distance;
    what would leave 1 .. d ends at its edge.
    """
    moves = torch.tensor([m for m in range(-reach, reach + 1) if m], dtype=torch.float)
    seen = [start.clamp(1, d)]
    for _ in range(steps):
        drawn = torch.multinomial(
            1 / moves.abs(), len(start), replacement=True, generator=generator
        )
        seen.append((seen[-1] + moves[drawn]).clamp(1, d))
    return torch.stack(seen, 1)
