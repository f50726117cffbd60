"""Shape a space to a chosen density: kernel estimates, Gaussian-mixture targets, DeepKDE.

Equations are numbered as in the DeepKDE paper; "corrected" marks those whose printed form does
not hold (the book's errata page, K1 to K15, shows each with numbers).
"""

import math

import torch
from torch.autograd.function import once_differentiable

from latentspace.threads import on_all_cores

__all__ = [
    "TargetMixture", "centre_loss", "hyperplane_loss", "js_divergence", "js_loss", "log_density",
    "mean_log_density", "reconstruction_loss", "scott_bandwidth",
]  # fmt: skip

LOG_2PI = math.log(2 * math.pi)


# --- kernel density estimate ----------------------------------------------------------------------


def scott_bandwidth(n: int, d: int, sigma: float = 1.0) -> float:
    """Scott's rule for a Gaussian kernel: ``sigma * n ** (-1 / (d + 4))``.

    Parameters
    ----------
    n : int
        Number of observations.
    d : int
        Dimension.
    sigma : float
        Standard deviation of one component, in the units of the data. The global standard
        deviation of a mixture is far too wide (errata K5).
    """
    if n < 1 or d < 1 or not sigma > 0:
        raise ValueError(f"need n >= 1, d >= 1 and sigma > 0, got {n}, {d}, {sigma}")
    return sigma * n ** (-1 / (d + 4))


def log_density(
    locations: torch.Tensor,
    observations: torch.Tensor,
    bandwidth: float,
    leave_one_out: bool | torch.Tensor = False,
    floor: float = 0.0,
) -> torch.Tensor:
    """Log of the Gaussian kernel density estimate at each location (DeepKDE eq. 5, corrected: K2).

    ``log f(z) = logsumexp_i(-|z - z_i|^2 / 2h^2) - d/2 log(2 pi) - d log h - log l``

    Parameters
    ----------
    locations : tensor (n, d)
        Where to evaluate.
    observations : tensor (l, d)
        The sample that makes the estimate.
    bandwidth : float
        The kernel's standard deviation ``h``, > 0.
    leave_one_out : bool or int64 tensor (n,)
        True: location i is observation i and is left out of its own estimate. A tensor names, for
        each location, the observation to leave out, -1 for none.
    floor : float in [0, 1]
        The weight that a left-out kernel keeps: 0 drops it, 1 is as if it had not been left out.
        Any other counts it, and the observation, as that part of one (K15).

    Returns
    -------
    tensor (n,), without gradient; see :func:`mean_log_density` for one with.
    """
    skip = _check(locations, observations, bandwidth, leave_one_out, floor)
    with torch.no_grad(), _full_precision(locations):
        value, _, _ = _estimate(locations, observations, bandwidth, skip, floor, False, False)
    return value


def mean_log_density(
    locations: torch.Tensor,
    observations: torch.Tensor,
    bandwidth: float,
    leave_one_out: bool | torch.Tensor = False,
    floor: float = 0.0,
) -> torch.Tensor:
    """Mean over the locations of :func:`log_density`, differentiable (once) in both point sets.

    One pass over blocks of rows gives the value and both gradients, so memory grows with
    ``n + l`` and not with ``n * l`` (DeepKDE eq. 6 and 8, corrected: K3).

    Parameters and errors are those of :func:`log_density`. Returns a scalar tensor.
    """
    skip = _check(locations, observations, bandwidth, leave_one_out, floor)
    return _MeanLogDensity.apply(locations, observations, bandwidth, skip, floor)


def _check(locations, observations, bandwidth, leave_one_out, floor):
    """Validate the arguments; return the index of the observation each location leaves out."""
    for name, points in (("locations", locations), ("observations", observations)):
        if points.ndim != 2 or 0 in points.shape:
            raise ValueError(f"{name} must be a non-empty (n, d) tensor, got {tuple(points.shape)}")
        if not points.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {points.dtype}")
        if not torch.isfinite(points).all():
            raise ValueError(f"{name} contain NaN or infinity")
    n, d = locations.shape
    n_obs = len(observations)
    if observations.shape[1] != d or observations.dtype != locations.dtype:
        raise ValueError(
            f"locations {tuple(locations.shape)} {locations.dtype} and observations "
            f"{tuple(observations.shape)} {observations.dtype} must agree in width and dtype"
        )
    if not (bandwidth > 0 and math.isfinite(bandwidth)):
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}")
    if not 0 <= floor <= 1 or (floor and leave_one_out is False):
        raise ValueError(f"floor, in [0, 1], is the weight of what is left out, got {floor}")
    if leave_one_out is False:
        return None
    if leave_one_out is True:
        if n != n_obs:
            raise ValueError(
                f"leave_one_out=True needs as many observations as locations: {n}, {n_obs}"
            )
        leave_one_out = torch.arange(n, device=locations.device)
    if leave_one_out.dtype != torch.int64 or leave_one_out.shape != (n,):
        raise ValueError(f"leave_one_out must be a bool or an int64 tensor of {n} indices")
    if leave_one_out.max() >= n_obs or leave_one_out.min() < -1:
        raise ValueError(f"leave_one_out must hold indices between -1 and {n_obs - 1}")
    if n_obs < 2 and not floor:
        raise ValueError("nothing is left of one observation when one is left out")
    return leave_one_out


def _full_precision(points: torch.Tensor) -> torch.autocast:
    """Autocast would run some of the matrix products below in 16 bits."""
    return torch.autocast(points.device.type, enabled=False)


def _estimate(locations, observations, bandwidth, skip, floor, want_locations, want_observations):
    """Log density per location, and the gradients of its *sum* where asked for."""
    n, d = locations.shape
    n_obs = len(observations)
    dtype = locations.dtype
    centre = observations.mean(0)
    x, y = (locations - centre) / bandwidth, (observations - centre) / bandwidth
    half_norm, half_norm_y = 0.5 * x.square().sum(1), 0.5 * y.square().sum(1)
    # |x - y|^2 = |x|^2 - 2 x.y + |y|^2 loses digits when points lie far from the centre; beyond
    # 64 bandwidths single precision is not enough.
    reach = torch.maximum(half_norm.max(), half_norm_y.max())
    if dtype != torch.float64 and not reach < 64**2 / 2:
        where = "cpu" if locations.device.type == "mps" else locations.device  # MPS has no doubles
        double = [points.to(where, torch.float64) for points in (locations, observations)]
        skip = None if skip is None else skip.to(where)
        results = _estimate(*double, bandwidth, skip, floor, want_locations, want_observations)
        return [None if result is None else result.to(locations) for result in results]
    if not reach < 1e6**2 / 2:  # where double precision has no digits left
        raise ValueError(f"points lie a million bandwidths of {bandwidth} apart, or more")
    # One product of these gives the exponents -|x - y|^2 / 2.
    right = torch.cat([y, torch.ones_like(y[:, :1]), -half_norm_y[:, None]], 1).T.contiguous()
    left = torch.cat([x, -half_norm[:, None], torch.ones_like(x[:, :1])], 1)
    augmented = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    log_floor = math.log(floor) if floor else -math.inf

    value = x.new_empty(n)
    grad_x = torch.empty_like(x) if want_locations else None

    def rows(first, last):
        """Fill rows of the value and of grad_x; return these rows' share of the pull on y."""
        pull = x.new_zeros(d + 1, n_obs) if want_observations else None
        size = max(16, (2**26 if x.is_cuda else 2**18) // n_obs)
        kernel = x.new_empty(min(size, last - first), n_obs)
        for start in range(first, last, size):
            block = slice(start, min(start + size, last))
            k = torch.mm(left[block], right, out=kernel[: block.stop - start])
            if skip is not None:
                row = torch.nonzero(skip[block] >= 0).squeeze(1)
                k[row, skip[block][row]] += log_floor
            top = k.amax(1, keepdim=True)
            if top.min() < -30:  # far from all observations every term would vanish
                k.sub_(top)
            else:
                top = torch.zeros_like(top)
            # exp(-80) is nothing beside 1, but smaller results would be subnormal numbers,
            # which a CPU computes with a hundred times more slowly.
            k.clamp_(min=-80).exp_()
            total = k.sum(1, keepdim=True)
            value[block] = (total.log() + top).squeeze(1)
            if want_locations:
                grad_x[block] = (k @ y) / total - x[block]
            if want_observations:
                pull.addmm_((augmented[block] / total).T.contiguous(), k)
        return pull

    pull = on_all_cores(rows, n, serial=x.is_cuda or n * n_obs < 2**22)
    count = torch.full_like(value, n_obs)
    if skip is not None:
        count -= (1 - floor) * (skip >= 0).to(value)
    value = value - count.log() - d * (math.log(bandwidth) + LOG_2PI / 2)
    if want_locations:
        grad_x /= bandwidth
    if want_observations:
        pull = (pull[:d] - pull[d] * y.T).T / bandwidth
    return value, grad_x, pull


class _MeanLogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, locations, observations, bandwidth, skip, floor):
        need = ctx.needs_input_grad
        with _full_precision(locations):
            value, *gradients = _estimate(
                locations, observations, bandwidth, skip, floor, need[0], need[1]
            )
        ctx.gradients = [None if g is None else g / len(value) for g in gradients]
        return value.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        loc, obs = (None if g is None else upstream * g for g in ctx.gradients)
        return loc, obs, None, None, None


# --- targets --------------------------------------------------------------------------------------


class TargetMixture:
    """A mixture of unit-covariance Gaussians with equal weights: the density to be reached.

    Parameters
    ----------
    centres : tensor (k, d)
        One centre a component; ``k = 1`` at the origin is the standard normal.
    """

    def __init__(self, centres: torch.Tensor) -> None:
        if centres.ndim != 2 or 0 in centres.shape or not torch.isfinite(centres).all():
            raise ValueError("centres must be a non-empty, finite (k, d) tensor")
        self.centres = centres

    @classmethod
    def on_axes(
        cls, k: int, d: int, radius: float = 6.0, device: str | torch.device | None = None
    ) -> "TargetMixture":
        """Centres at ``radius * e_1 ... radius * e_k`` (DeepKDE eq. 14; axes: K13)."""
        if not 1 <= k <= d:
            raise ValueError(f"{k} orthogonal centres do not fit into {d} dimensions")
        return cls(radius * torch.eye(k, d, device=device))

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw ``n`` points (n, d)."""
        k, d = self.centres.shape
        where = self.centres.device
        component = torch.randint(k, (n,), generator=generator, device=where)
        noise = torch.randn(n, d, generator=generator, device=where, dtype=self.centres.dtype)
        return self.centres[component] + noise

    def log_joint(self, z: torch.Tensor) -> torch.Tensor:
        """``log p(z, component)``: tensor (n, k) for ``z`` (n, d)."""
        k, d = self.centres.shape
        square = (z[:, None, :] - self.centres.to(z)).square().sum(-1)
        return -0.5 * (square + d * LOG_2PI) - math.log(k)

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """``log p(z)``: tensor (n,) for ``z`` (n, d)."""
        return self.log_joint(z).logsumexp(1)

    def entropy(self, n: int = 20_000, seed: int = 0) -> float:
        """Differential entropy ``h(p)`` in nats, a float.

        ``h(z) = h(z | c) + H(c) - H(c | z)``: the first two are exact and the last, a mean over
        ``n`` draws, nearly vanishes for separated components, and so does its sampling error.
        """
        k, d = self.centres.shape
        generator = torch.Generator(self.centres.device).manual_seed(seed)
        posterior = self.log_joint(self.sample(n, generator)).log_softmax(1)
        unknown = -(posterior.exp() * posterior).sum(1).mean().item()
        return d / 2 * (LOG_2PI + 1) + math.log(k) - unknown


# --- the terms of the loss ------------------------------------------------------------------------


def js_loss(
    latent: torch.Tensor,
    target: torch.Tensor,
    bandwidth: float,
    leave_one_out: bool = True,
    generator: torch.Generator | None = None,
    floor: float = 0.0,
) -> torch.Tensor:
    """``L_pdf = 2 D_JS(q | p) + h(p)`` from two samples (DeepKDE eq. 7; the constant: K1).

    Half of the observations of the mixture density are random rows of ``latent``, half of
    ``target``. With ``leave_one_out`` no point contributes to its own estimate (K4), and the
    estimate has no lower bound (K15) unless a ``floor`` > 0 keeps that weight of its own kernel;
    the paper's loss is the one with ``leave_one_out=False``, or with a floor of 1.

    Parameters
    ----------
    latent, target : tensors (n, d), n >= 4
        A batch of the latent space, and as many draws from the target density.
    bandwidth : float
        Kernel width ``h`` > 0.
    generator : torch.Generator, optional
        Chooses the rows.
    floor : float in [0, 1]
        As in :func:`log_density`; it moves the minimum to narrower clusters, by a little if small.

    Returns
    -------
    scalar tensor, differentiable; its least value is ``h(p)``, not 0.
    """
    n = len(latent)
    if latent.shape != target.shape or n < 4:
        raise ValueError(
            f"need two samples of one shape with 4 rows or more, got {tuple(latent.shape)} "
            f"and {tuple(target.shape)}"
        )
    half = n // 2
    device = latent.device
    pick_q = torch.randperm(n, generator=generator, device=device)[:half]
    pick_p = torch.randperm(n, generator=generator, device=device)[:half]
    observations = torch.cat([latent[pick_q], target[pick_p]])
    skip: bool | torch.Tensor = False
    if leave_one_out:
        skip = torch.full((2 * n,), -1, device=device)
        skip[pick_q] = torch.arange(half, device=device)
        skip[n + pick_p] = torch.arange(half, 2 * half, device=device)
    log_q = mean_log_density(latent, latent, bandwidth, leave_one_out, floor)
    # One call for the mean over both samples: half of the sum that eq. (7) wants.
    log_m = mean_log_density(torch.cat([latent, target]), observations, bandwidth, skip, floor)
    return log_q - 2 * log_m


def js_divergence(loss: torch.Tensor | float, entropy: float) -> torch.Tensor | float:
    """Jensen-Shannon divergence in nats, 0 to log 2, from :func:`js_loss` and ``h(p)`` (K1).

    An estimate: with few points or many dimensions it can leave that interval.
    """
    return (loss - entropy) / 2


def centre_loss(
    latent: torch.Tensor, labels: torch.Tensor, centres: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Mean distance beyond ``threshold`` from each point to its class's centre (DeepKDE eq. 9).

    ``latent`` (n, d), ``labels`` (n,) int64 in 0..k-1, ``centres`` (k, d), ``threshold`` >= 0 in
    the latent space's units (the paper gives none: K6).
    """
    _check_labels(labels, len(latent), len(centres))
    distance = torch.linalg.vector_norm(latent - centres[labels], dim=1)
    return torch.relu(distance - threshold).mean()


def hyperplane_loss(latent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Push class 0 to ``z_0 < 0`` and class 1 to ``z_0 > 0`` (DeepKDE eq. 10, corrected: K7).

    ``latent`` (n, d), ``labels`` (n,) with values 0 and 1.
    """
    _check_labels(labels, len(latent), 2)
    sign = 1 - 2 * labels.to(latent.dtype)
    return torch.relu(sign * latent[:, 0]).mean()


def reconstruction_loss(x: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """Mean Euclidean length of the residual, not its square (DeepKDE eq. 11); both (n, D)."""
    if x.shape != reconstructed.shape or x.ndim != 2:
        raise ValueError(
            f"need two (n, D) tensors, got {tuple(x.shape)} and {tuple(reconstructed.shape)}"
        )
    return torch.linalg.vector_norm(x - reconstructed, dim=1).mean()


def _check_labels(labels: torch.Tensor, n: int, k: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise ValueError(f"labels must be an int64 tensor ({n},), got {tuple(labels.shape)}")
    if labels.max() >= k or labels.min() < 0:
        raise ValueError(f"labels must lie between 0 and {k - 1}")
