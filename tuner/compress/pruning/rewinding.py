"""Pruning in rounds of training, with or without putting back what is left to where it started."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from tuner.compress.hooks import round_length
from tuner.compress.pruning.masking import MaskedTraining, Schemes
from tuner.compress.pruning.schedules import Timing, exponential
from tuner.errors import PlanError
from tuner.model.torch_view import TorchView


class Rounds(MaskedTraining):
    """Prune, train, prune what is left, train again (Han et al., 2015, arXiv:1506.02626, section 3.4).

    Every pruning takes the same share of what is left, (1 − s_f)^(1/n) of it stays (Frankle and Carbin, 2019, arXiv:1803.03635,
    section 1). One pruning stands before each round, and every round trains with learning rates of its own."""

    unpruned = 0
    """Rounds that train before the first pruning."""

    def __init__(self, schemes: Schemes, *, prunings: int = 4, given: Mapping[str, Tensor] | None = None) -> None:
        if prunings < 1:
            raise PlanError(f"pruning in rounds needs at least one, got {prunings}. Leave it out for the default.")
        super().__init__(schemes, Timing("iterative", end=1.0, rounds=prunings), given=given)
        self.rounds = prunings + self.unpruned
        self.boundaries: tuple[int, ...] = ()
        """The steps done when weights are pruned."""

    def begin(self, view: TorchView, steps: int) -> None:
        length = round_length(steps, self.rounds)
        self.boundaries = tuple(range(self.unpruned * length, steps, length)) if length else ()
        super().begin(view, steps)

    def advance(self, view: TorchView, done: int) -> None:
        self.done = done
        if done in self.boundaries:
            reached = (self.boundaries.index(done) + 1) / len(self.boundaries)
            self.renew(view, {name: exponential(reached, scheme.ratio, 1) for name, scheme in self.schemes.items()})
        self.apply(view)

    def settled(self, step: int) -> bool:
        return bool(self.boundaries) and step >= self.boundaries[-1]


class Lottery(Rounds):
    """Iterative magnitude pruning with rewinding (Frankle and Carbin, 2019, arXiv:1803.03635, section 1 and appendix B, strategy 1).

    Training is cut into `prunings` + 1 rounds. At the end of each but the last the lowest magnitudes of every layer go, and everything
    else returns to θ_k, the values after k steps of the first round: all weights, those of layers that are not pruned too, and the
    statistics of normalizations (Frankle et al., 2020, arXiv:1912.05671, section 2). The last round trains the ticket.

    rewind: k as a share of the first round; at 0 everything returns to the values that the model came with. These are trained ones:
    this is the rewinding of Renda et al. (2020, arXiv:2003.02389), not a search for tickets in a random initialisation."""

    unpruned = 1

    def __init__(self, schemes: Schemes, *, prunings: int = 3, rewind: float = 0.0) -> None:
        if not 0 <= rewind < 1:
            raise PlanError(f"lottery needs 0 <= rewind < 1, got rewind={rewind:g}. It is a share of the first round.")
        super().__init__(schemes, prunings=prunings)
        self.rewind = rewind
        self.kept_at = 0
        self.origin: dict[str, Tensor] = {}
        """θ_k, by the keys of the view's state_dict."""

    def begin(self, view: TorchView, steps: int) -> None:
        self.kept_at = math.floor(self.rewind * round_length(steps, self.rounds))
        super().begin(view, steps)

    def advance(self, view: TorchView, done: int) -> None:
        if done == self.kept_at:
            self.origin = {key: values.detach().clone() for key, values in view.state_dict().items()}
        super().advance(view, done)
        if done in self.boundaries:
            for key, values in view.state_dict().items():
                values.copy_(self.origin[key])
            self.apply(view)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"origin/{key}": values for key, values in self.origin.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        places = {key: values.device for key, values in self.origin.items()}
        stored = {key.removeprefix("origin/"): values for key, values in state.items() if key.startswith("origin/")}
        self.origin = {key: values.to(places.get(key, values.device), copy=True) for key, values in stored.items()}
