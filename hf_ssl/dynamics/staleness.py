"""How stale the keys of a momentum encoder become: a first-order theory, foretold from the drift of the queries.

Setting. The query encoder has weights q(t) after t steps, the key encoder k(t) = m k(t - 1) + (1 - m) q(t), and
k(0) = q(0). Written out,

    k(t) = sum over j of w_j(t) q(j),   w_j(t) = (1 - m) m^(t - j) for j = 1 ... t,   w_0(t) = m^t.        (1)

First order. Let F(w) be the vector that weights w give to a fixed view. While weights move little, F is affine in
them: F(w) = F(w0) + J (w - w0). Affine maps commute with the averages of (1), whose weights add up to 1, so that the
vector of the key encoder is the same average of what the query encoder has made of that view at all times.

Cosines. Let the query encoder's vectors have the length n(s), the same for all views, and C(s, s') be the cosine of
those of two times, mean over views. Then the vectors of the key encoder have the products

    G(t, t') = sum over i, j of w_i(t) w_j(t') n(i) n(j) C(i, j),                                          (2)

and the cosine of a key of age a is G(t, t - a) / sqrt(G(t, t) G(t - a, t - a)). What the two encoders make of one view
at one time has the cosine (sum over j of w_j(t) n(j) C(j, t)) / sqrt(G(t, t)): the lag of the key encoder. Vectors are
short in a fresh network and grow, so that the key encoder forgets its start sooner than w_0 = m^t says.

What momentum does, where n is constant, C depends on a = |s - s'| alone and t is large: w_i w_j sums to
p(d) = (1 - m) / (1 + m) m^|d| over pairs with a distance d, and the key's 1 - C is the query's, smoothed by p, less
its value at 0, to first order in what C loses over 1 / (1 - m) steps. Two cases have closed forms:

- a random walk, 1 - C(a) = D a: the keys have D (a - 2 m (1 - m^a) / (1 - m^2)), for young keys about
  D (1 - m) a^2 / 2: their staleness is (1 - m) a / 2 of that of the queries.
- a constant velocity on a great circle, C(a) = cos(theta a): the keys have the same cosine for every m, not to first
  order alone. Momentum delays a key encoder that runs straight on, but does not slow it down.

So momentum averages noise away, and cannot make keys of a network that learns steadily any fresher, until 1 / (1 - m)
is longer than the run, where w_0 = m^t holds the key encoder at its start. Without the formula it would be tempting to
say that keys age (1 - m) times as fast.

Drift. C is not known before a run. `Drift` is a law for it with three numbers, fitted to the first steps of a few runs
(`fit_drifts`), and n is what these runs had, constant after them. A unit vector that runs on with constant velocity
turns on a great circle, and its cosine is that of the angle; one that also walks at random loses the rest
exponentially, as Brownian motion on a sphere does:

    C(s, s') = exp(-walk x) cos(turn x),   x = (rate of a step / 0.01)^speed |s - s'|.                      (3)

For small x, 1 - C = walk x + turn^2 x^2 / 2 is the mixture of the two cases above. C is a product of positive definite
functions, so that (2) never contradicts itself. Fitted are angles, arccos C: in a logarithm of 1 - C the youngest keys
would count most, and in C itself not at all. That both motions are all there is, that they go on as they began, and
that a learning rate only makes them faster, are assumptions; (1) and (2) are derived. How queries move depends on the
keys that they flee from, so walk and turn are fitted for each momentum by itself; speed is the same for all.

`slowing` puts the steps on a clock u(t) = ((1 + t)^(1 - slowing) - 1) / (1 - slowing), for a drift that slows down. It
is not fitted: the first 200 steps mistake a slow turn for slowing down, and foretell later steps worse with it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

_RATE = 0.01  # learning rate of a step at which the clock runs with steps


@dataclass(frozen=True)
class Seen:
    """A measured cosine of what one encoder made of the same views at two times.

    Args:
        earlier: Optimizer steps done when the views were encoded first, at least 0.
        later: When they were encoded again, above `earlier`.
        learning_rate: Of a step, positive.
        momentum: Of the key encoder.
        cosine: Mean over the views.
    """

    earlier: int
    later: int
    learning_rate: float
    momentum: float
    cosine: float


@dataclass(frozen=True)
class Drift:
    """How the vectors of a query encoder move away from what they were: law (3) of this module.

    Args:
        walk: Rate of the random walk, at least 0.
        turn: Angle of the steady motion in a unit of the clock, at least 0.
        speed: Power of the learning rate by which the clock runs.
        slowing: In [0, 1); 0 for a drift that is always the same.
        lengths: Pairs of step and length of the vectors, the steps ascending; the length between them is interpolated
            and before and after them constant.
    """

    walk: float
    turn: float
    speed: float
    slowing: float = 0.0
    lengths: tuple[tuple[int, float], ...] = ((0, 1.0),)

    def cosine(self, earlier: Any, later: Any, learning_rate: Any) -> Any:
        """Cosine of the vectors of two times; numbers or arrays.

        Args:
            earlier: Optimizer steps, at least 0.
            later: Optimizer steps, at least 0, in either order.
            learning_rate: Positive.
        """
        passed = np.abs(self._clock(later) - self._clock(earlier)) * np.power(learning_rate / _RATE, self.speed)
        return np.exp(-self.walk * passed) * np.cos(self.turn * passed)

    def length(self, step: Any) -> Any:
        """Length of the vectors; numbers or arrays."""
        steps, lengths = zip(*self.lengths, strict=True)
        return np.interp(step, steps, lengths)

    def _clock(self, step: Any) -> Any:
        return ((1.0 + np.asarray(step, dtype=float)) ** (1 - self.slowing) - 1) / (1 - self.slowing)

    def record(self) -> dict[str, Any]:
        """Everything by name, JSON-able; `from_record` reads it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Drift":
        """A law from what `record` gave."""
        return cls(**{**record, "lengths": tuple((int(step), float(value)) for step, value in record["lengths"])})


def fit_drifts(seen: Sequence[Seen], speed: float | None = None) -> dict[float, Drift]:
    """The laws that come closest to measured cosines, in the angle whose cosine they are; of unit lengths.

    Args:
        seen: At least four, of at least two learning rates, or of one with `speed`.
        speed: Power of the learning rate by which clocks run; None: fitted as well.

    Returns:
        A law for each momentum, with a common `speed`.

    Raises:
        ValueError: If there are fewer.
    """
    if len(seen) < 4 or (speed is None and len({one.learning_rate for one in seen}) < 2):
        raise ValueError(f"A drift needs four cosines of two learning rates at least, got {len(seen)} cosines.")
    momenta = sorted({one.momentum for one in seen})
    groups = [[one for one in seen if one.momentum == momentum] for momentum in momenta]
    columns = [
        [np.array([getattr(one, name) for one in group]) for name in ("earlier", "later", "learning_rate")]
        for group in groups
    ]
    targets = [angle_of(np.array([one.cosine for one in group])) for group in groups]

    def drifts_of(point: NDArray[np.float64]) -> list[Drift]:
        power = float(point[0]) if speed is None else speed
        return [Drift(float(walk), float(turn), power) for walk, turn in np.exp(point[1:]).reshape(-1, 2)]

    def misfit(point: NDArray[np.float64]) -> NDArray[np.float64]:
        laws = zip(drifts_of(point), columns, targets, strict=True)
        return np.concatenate([angle_of(law.cosine(*column)) - target for law, column, target in laws])

    # From several starts: walk and turn can stand in for each other.
    starts = [
        (power, *(walk, turn) * len(momenta))
        for walk, turn, power in itertools.product((-7.0, -4.0), (-6.0, -3.0), (0.1, 1.0))
    ]
    bounds = ([-1.0, *[-30] * (2 * len(momenta))], [3.0, *[4] * (2 * len(momenta))])
    found = min((least_squares(misfit, start, bounds=bounds) for start in starts), key=lambda one: one.cost)
    return dict(zip(momenta, drifts_of(found.x), strict=True))


def angle_of(cosine: Any) -> Any:
    """The angle of a cosine, in [0, pi]; numbers or arrays, which rounding may have left a little out of [-1, 1]."""
    return np.arccos(np.clip(cosine, -1.0, 1.0))


def average_weights(step: int, momentum: float) -> NDArray[np.float64]:
    """Share of the query encoder's weights after j steps in the key encoder's after `step`: w_j of (1).

    Args:
        step: Optimizer steps done, at least 0.
        momentum: In [0, 1].

    Returns:
        (step + 1,), not negative, adding up to 1.
    """
    powers = np.power(float(momentum), np.arange(step, -1, -1), dtype=np.float64)
    weights = (1 - momentum) * powers
    weights[0] = powers[0]
    return weights


@dataclass(frozen=True)
class KeyTheory:
    """What a law of drift makes of the keys of a momentum encoder.

    Args:
        drift: Of the query encoder.
        learning_rate: Of a step, positive.
        momentum: m, in [0, 1].
    """

    drift: Drift
    learning_rate: float
    momentum: float

    def agreement(self, step: int, age: int) -> float:
        """Cosine of a key that was made `age` steps ago and of the same view encoded now.

        Args:
            step: Optimizer steps done now.
            age: In [0, step].
        """
        now, then = average_weights(step, self.momentum), average_weights(step - age, self.momentum)
        products = self._products(step)
        early = slice(step - age + 1)
        product = now @ products[:, early] @ then
        return float(product / np.sqrt((now @ products @ now) * (then @ products[early, early] @ then)))

    def lag(self, step: int) -> float:
        """Cosine of what key encoder and query encoder make of one view now.

        Args:
            step: Optimizer steps done now.
        """
        weights, products = average_weights(step, self.momentum), self._products(step)
        return float(weights @ products[:, -1] / np.sqrt((weights @ products @ weights) * products[-1, -1]))

    def _products(self, step: int) -> NDArray[np.float64]:
        """Products of the query encoder's vectors, n n C, of all pairs of steps up to one."""
        steps = np.arange(step + 1)
        lengths = self.drift.length(steps)
        return lengths[:, None] * lengths * self.drift.cosine(steps[:, None], steps[None], self.learning_rate)
