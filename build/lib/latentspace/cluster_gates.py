"""Gates that are the posterior of the mixture which their loss fits.

The mixture loss (`gates.GateMixture`) looks at scores that are normalised over the batch. A router
that goes on using the raw scores can hide from it whatever normalising removes: the mean of a score
and its scale, which are what makes a gate skewed or indifferent. Here the router uses the
normalised scores, too: a gate is the softmax of a* + log prior, the mixture's own posterior.

Source: the reading of Tissera's thesis, chapter 5, that its text leaves open (errata T19).
"""

import torch
from torch import Tensor, nn

from latentspace.relevance import RelevanceNorm, update_prior
from latentspace.routing import GateNetwork

__all__ = ["ClusterScores", "use_posteriors"]


class ClusterScores(nn.Module):
    """The scores of a gate network, normalised, plus the log of a prior that follows them.

    Parameters
    ----------
    scores : nn.Module
        From paths (n, m, c, ...) to raw scores (n, m, k).
    inputs, outputs : int
        m and k.
    rate : float in [0, 1]
        How far the prior moves to the batch's mean posterior; with 0 it stays uniform.

    In training it normalises by the batch, in evaluation by running statistics, so that one image
    can be routed alone. ``prior`` is a buffer (m, k).
    """

    def __init__(self, scores: nn.Module, inputs: int, outputs: int, rate: float = 0.1) -> None:
        super().__init__()
        self.raw, self.rate = scores, rate
        self.norm = RelevanceNorm(inputs * outputs)
        self.prior: Tensor
        self.register_buffer("prior", torch.full((inputs, outputs), 1 / outputs))

    def forward(self, paths: Tensor) -> Tensor:
        raw = self.raw(paths)
        scores = self.norm(raw.flatten(1)).view_as(raw) + self.prior.clamp_min(1e-12).log()
        if self.training:
            self.prior = update_prior(self.prior, scores.softmax(-1), self.rate)
        return scores


def use_posteriors(model: nn.Module, rate: float = 0.1) -> nn.Module:
    """Let every gate network of ``model`` gate by its mixture's posterior; returns the model.

    For a network before its training. `gates.read`, `gates.watched` and all that works on gate
    networks goes on working: a gate is still the softmax of ``scores``. ValueError for a model
    without gates that look at their input.
    """
    found = [module for module in model.modules() if isinstance(module, GateNetwork)]
    if not found:
        raise ValueError("the model has no gates that look at their input")
    for gates in found:
        gates.scores = ClusterScores(gates.scores, gates.inputs, gates.outputs, rate)
    return model
