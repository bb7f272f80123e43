"""Minimum of the ridge logistic loss for one penalty after the other: L-BFGS that knows the curvature. Functions of tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4096
"""Samples scored at a time, so that their scores stay in the cache of a CPU."""
MEMORY = 20
"""Pairs of steps and changes of the gradient that are remembered."""
MOST_STEPS, MOST_TRIALS = 1000, 20


@dataclass(frozen=True)
class Minimum:
    """Where a fit ended.

    Attributes:
        weight: [K, D], bias: [K], in the solver's coordinates.
        objective: mean cross-entropy + penalty / 2 * |weight|^2 there.
        gradient: largest absolute entry of its gradient by the caller's weight and bias.
    """

    weight: Tensor
    bias: Tensor
    objective: float
    gradient: float


@dataclass(frozen=True)
class _Point:
    """Parameters, and what a pass over the samples says of them.

    Attributes:
        place: [K, D + 1], weight and bias.
        loss: mean cross-entropy. slope: [K, D + 1], its gradient, without the penalty's.
        curvature: mean over samples and classes of p (1 - p), for probabilities p.
    """

    place: Tensor
    loss: float
    slope: Tensor
    curvature: float


class ProbeSolver:
    """Limited-memory BFGS (Nocedal and Wright 2006, algorithm 7.4) for penalties from large to small, each from the last minimum.

    Features of encoders are ill-conditioned, and L-BFGS on them takes hundreds of passes. Three things make it a few:

    - coordinates are the eigenbasis of the features' covariance, where the Hessian is nearly diagonal: curvature * eigenvalue_i +
      penalty. That diagonal is the first estimate of every step; its curvature, mean p (1 - p), is measured on the way, as it falls
      where a small penalty lets the model be sure;
    - the pairs (step, change of the gradient) are kept from penalty to penalty. Only the penalty's part of the change is another,
      and that is penalty * step: the pairs stay exact;
    - steps have length 1 unless they fail the conditions of Wolfe, so that most cost one pass.

    Args:
        rows: [n, D], centred and rotated features.
        labels: [n] int64, in 0 ... K-1.
        classes: K.
        values: [D], eigenvalues.
        basis: [D, D], columns are the axes, in the caller's coordinates.
        mean: [D], what was subtracted from the caller's features.
        tolerance: largest entry of the gradient by the caller's weight and bias at the end, as in scikit-learn; and a hundredth of
            it bounds the decrease that is left, as the diagonal estimates it. Otherwise a fit with a small penalty, which starts
            from the minimum of a larger one, would end where it starts.
    """

    def __init__(
        self, rows: Tensor, labels: Tensor, classes: int, values: Tensor, basis: Tensor, mean: Tensor, tolerance: float
    ) -> None:
        self.rows, self.labels, self.basis, self.mean, self.tolerance = rows, labels, basis, mean, tolerance
        self.values = torch.cat([values.clamp_min(0), values.new_ones(1)])  # the bias' feature is 1
        self.penalised = torch.ones_like(self.values)
        self.penalised[-1] = 0
        self._scores = rows.new_empty(min(BLOCK, len(rows)), classes)
        self._pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)
        self._point = self._pass(rows.new_zeros(classes, rows.shape[1] + 1))

    def minimise(self, penalty: float) -> Minimum:
        """The minimum for a penalty, not above that of the last call."""
        decay = penalty * self.penalised
        for _ in range(MOST_STEPS):
            point = self._point
            gradient = point.slope + decay * point.place
            least = torch.finfo(decay.dtype).tiny
            estimate = (point.curvature * self.values + decay).clamp_min(least)
            left = float((gradient.square() / (self.values / len(gradient) + decay).clamp_min(least)).sum()) / 2
            if not left > self.tolerance / 100 and not self._largest(gradient) > self.tolerance:
                break
            found = self._search(gradient, self._direction(gradient, estimate, decay), decay)
            if found is None:
                break
            step, change = found.place - point.place, found.slope - point.slope
            if float((step * (change + decay * step)).sum()) > 0:
                self._pairs.append((step, change))
            self._point = found
        point = self._point
        gradient = point.slope + decay * point.place
        return Minimum(point.place[:, :-1], point.place[:, -1], self._objective(point, decay), self._largest(gradient))

    def _largest(self, gradient: Tensor) -> float:
        """Largest entry of the gradient by the caller's weight and bias."""
        by_bias = gradient[:, -1]
        by_weight = gradient[:, :-1] @ self.basis.T + by_bias[:, None] * self.mean
        return max(float(by_weight.abs().max()), float(by_bias.abs().max()))

    def _direction(self, gradient: Tensor, estimate: Tensor, decay: Tensor) -> Tensor:
        """The two loops: minus the estimated inverse Hessian times the gradient."""
        pairs = [(step, change + decay * step) for step, change in self._pairs]
        whole = [(step, change, 1 / (step * change).sum()) for step, change in pairs if (step * change).sum() > 0]
        left = gradient.clone()
        shares: list[Tensor] = []
        for step, change, inverse in reversed(whole):
            shares.append(inverse * (step * left).sum())
            left -= shares[-1] * change
        if whole:
            _, change, inverse = whole[-1]
            left /= inverse * (change.square() / estimate).sum()
        left /= estimate
        for (step, change, inverse), share in zip(whole, reversed(shares), strict=True):
            left += (share - inverse * (change * left).sum()) * step
        return -left

    def _search(self, gradient: Tensor, direction: Tensor, decay: Tensor) -> _Point | None:
        """A point on the line that meets the weak conditions of Wolfe, by doubling and bisection; None: rounding hides all."""
        start, value = self._point, self._objective(self._point, decay)
        fall = float((gradient * direction).sum())
        slack = 8 * torch.finfo(gradient.dtype).eps * abs(value)  # of sums over samples
        length, low, high = 1.0, 0.0, float("inf")
        for _ in range(MOST_TRIALS if fall < 0 else 0):
            found = self._pass(start.place + length * direction)
            reached = self._objective(found, decay)
            slope = float(((found.slope + decay * found.place) * direction).sum())
            if not reached <= value + 1e-4 * length * fall + slack:
                high = length
            elif slope < 0.9 * fall:
                low = length
            else:
                return found
            length = (low + high) / 2 if high < float("inf") else 2 * length
        return None

    @staticmethod
    def _objective(point: _Point, decay: Tensor) -> float:
        return point.loss + float((decay * point.place.square()).sum()) / 2

    def _pass(self, place: Tensor) -> _Point:
        """One pass over the samples. Its gradient is by hand: nearly all time goes here."""
        weight, bias = place[:, :-1].T.contiguous(), place[:, -1].contiguous()
        slope = torch.zeros_like(place.T)
        by_weight, by_bias = slope[:-1], slope[-1]
        loss = square = 0.0
        for rows, labels in self._blocks():
            scores = torch.addmm(bias, rows, weight, out=self._scores[: len(rows)])
            scores -= scores.amax(1, keepdim=True)
            true = scores.gather(1, labels)
            sums = scores.exp_().sum(1, keepdim=True)
            loss += float((sums.log() - true).sum())
            scores /= sums
            square += float(scores.square().sum())
            scores.scatter_add_(1, labels, torch.full_like(true, -1))
            by_weight.addmm_(rows.T, scores)
            by_bias += scores.sum(0)
        n = len(self.rows)
        # Where the model is sure of all samples, rounding hides the small difference 1 - sum p^2.
        return _Point(place, loss / n, slope.T.contiguous() / n, max(1 - square / n, 1e-6) / len(place))

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(torch.split(self.rows, BLOCK), torch.split(self.labels[:, None], BLOCK), strict=True)
