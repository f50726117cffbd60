"""The density loss against scipy, quadrature, torch's autograd and plain loops; errata K1 to K13.

An erratum's test writes the printed formula as a small function and asserts that it violates the
property which the library's version has.
"""

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi, gaussian_kde, multivariate_normal, norm

from latentspace.density import (
    TargetMixture,
    centre_loss,
    hyperplane_loss,
    js_divergence,
    js_loss,
    log_density,
    mean_log_density,
    reconstruction_loss,
    scott_bandwidth,
)
from latentspace.networks import Autoencoder

LIB = Path(__file__).parent.parent / "lib"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64).to(dtype)


def plain(x, y, h, skip=None):
    """Log density per location by the full matrix, differentiable by autograd."""
    log_kernel = -(x[:, None] - y[None]).square().sum(-1) / (2 * h**2)
    count = torch.full((len(x),), len(y), dtype=x.dtype)
    if skip is not None:
        rows = torch.nonzero(skip >= 0).squeeze(1)
        log_kernel = log_kernel.index_put((rows, skip[rows]), torch.tensor(-math.inf).to(x))
        count[rows] -= 1
    constant = x.shape[1] * (math.log(h) + math.log(2 * math.pi) / 2)
    return log_kernel.logsumexp(1) - count.log() - constant


def by_loops(x, y, h, skip=None):
    """The same sum, one pair at a time."""
    d, values = len(x[0]), []
    for i, a in enumerate(x):
        others = [b for j, b in enumerate(y) if skip is None or skip[i] != j]
        kernels = [math.exp(-(math.dist(a, b) ** 2) / (2 * h**2)) for b in others]
        values.append(math.log(sum(kernels) / (len(others) * (h * math.sqrt(2 * math.pi)) ** d)))
    return values


def value_and_gradients(function, *points):
    """Points that are one tensor stay one tensor, so that its gradients add up."""
    leaves = {id(p): p.detach().clone().requires_grad_() for p in points}
    value = function(*[leaves[id(p)] for p in points])
    return value.detach(), *torch.autograd.grad(value, list(leaves.values()))


def assert_all_close(ours, theirs, rtol=1e-10, atol=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


SKIPS = {
    "none": None,
    "some": torch.tensor([3, -1, 0, 0, -1, 11, 4]),
    "no row": torch.full((7,), -1),
}


# --- kernel density estimate ---


@pytest.mark.parametrize(("n", "n_obs", "d"), [(7, 40, 1), (23, 9, 2), (5, 60, 5), (1, 1, 3)])
@pytest.mark.parametrize("h", [0.3, 1.7])
def test_log_density_matches_brute_force(n, n_obs, d, h):
    x, y = normal(n, d, 1) * 1.5 + 0.3, normal(n_obs, d, 2)
    expected = torch.tensor(by_loops(x.tolist(), y.tolist(), h), dtype=torch.float64)
    torch.testing.assert_close(log_density(x, y, h), expected)
    torch.testing.assert_close(mean_log_density(x, y, h), expected.mean())


@pytest.mark.parametrize(("n_obs", "d"), [(30, 1), (50, 2), (200, 5)])
def test_log_density_matches_scipy_on_white_data(n_obs, d):
    """scipy's kernel has the data's covariance: whiten it, and its factor is our bandwidth."""
    raw = np.random.default_rng(3).gamma(2, size=(n_obs, d))
    whitener = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(raw.T))))
    y = raw @ whitener.T
    x = np.random.default_rng(4).normal(2, 1.5, (17, d))
    for h in (0.25, 0.9):
        ours = log_density(torch.tensor(x), torch.tensor(y), h)
        np.testing.assert_allclose(ours, gaussian_kde(y.T, bw_method=h).logpdf(x.T), rtol=1e-9)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_leave_one_out_is_deletion(d):
    z = normal(19, d) * torch.linspace(0.5, 2, d, dtype=torch.float64)
    ours = log_density(z, z, 0.6, leave_one_out=True)
    for i in range(len(z)):
        rest = torch.cat([z[:i], z[i + 1 :]])
        torch.testing.assert_close(ours[i], log_density(z[i : i + 1], rest, 0.6)[0])


@pytest.mark.parametrize("skip", SKIPS.values(), ids=SKIPS)
def test_index_form_leaves_out_what_it_names(skip):
    x, y = normal(7, 2, 1), normal(12, 2, 2)
    expected = by_loops(x.tolist(), y.tolist(), 0.8, None if skip is None else skip.tolist())
    ours = log_density(x, y, 0.8, False if skip is None else skip)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def weighted(x, y, h, weight):
    """Log of the estimate whose kernels have weights (n, l), plainly."""
    d = x.shape[1]
    kernels = torch.exp(-(x[:, None] - y[None]).square().sum(-1) / (2 * h**2))
    mass = weight.sum(1) * (h * math.sqrt(2 * math.pi)) ** d
    return ((weight * kernels).sum(1) / mass).log()


@pytest.mark.parametrize("floor", [1e-3, 0.3])
@pytest.mark.parametrize("d", [1, 5])
def test_floor_is_a_weight_of_what_is_left_out(d, floor):
    """Value and gradients, for a point set's own kernels and for any that an index names."""
    x, y = normal(7, d, 1) * 1.4, normal(12, d, 2)
    weight = torch.ones(7, 12, dtype=torch.float64)
    weight[[0, 1, 2, 3, 5, 6], [3, 2, 0, 0, 11, 4]] = floor
    skip = torch.tensor([3, 2, 0, 0, -1, 11, 4])
    assert_all_close(
        value_and_gradients(lambda a, b: mean_log_density(a, b, 0.6, skip, floor), x, y),
        value_and_gradients(lambda a, b: weighted(a, b, 0.6, weight).mean(), x, y),
    )
    own = torch.ones(12, 12, dtype=torch.float64).fill_diagonal_(floor)
    assert_all_close(
        value_and_gradients(lambda a, b: mean_log_density(a, b, 0.6, True, floor), y, y),
        value_and_gradients(lambda a, b: weighted(a, b, 0.6, own).mean(), y, y),
    )


def test_floor_leads_from_leave_one_out_to_the_printed_estimate():
    z, target = normal(40, 3), normal(40, 3, 1)
    torch.testing.assert_close(log_density(z, z, 0.5, True, 1.0), log_density(z, z, 0.5))
    losses = [
        js_loss(z, target, 0.5, True, generator(2), floor).item() for floor in (0, 1e-9, 1e-3, 1)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[3] == pytest.approx(js_loss(z, target, 0.5, False, generator(2)).item())
    assert len({round(loss, 3) for loss in losses}) == 3


@pytest.mark.parametrize(("n", "n_obs"), [(100, 20_000), (17, 20_000), (16, 20_000), (900, 700)])
def test_blocks_of_rows_do_not_show(n, n_obs):
    """At 20,000 observations a block has 16 rows, at 700 it has 374."""
    x, y = normal(n, 2, 1) * 1.3, normal(n_obs, 2, 2)
    skip = torch.where(torch.arange(n) % 3 == 0, -1, (torch.arange(n) * 31) % n_obs)
    whole = log_density(x, y, 0.4, skip)
    singly = torch.cat([log_density(x[[i]], y, 0.4, skip[[i]]) for i in range(0, n, 7)])
    torch.testing.assert_close(whole[::7], singly)
    assert_all_close(
        value_and_gradients(lambda a, b: mean_log_density(a, b, 0.4, skip), x, y),
        value_and_gradients(lambda a, b: plain(a, b, 0.4, skip).mean(), x, y),
    )


def test_threads_do_not_show():
    """The same value and gradients from one and from three threads, and none of them stays."""
    generator = torch.Generator().manual_seed(2)
    n, n_obs = 2_001, 2_500  # large enough to be divided
    x, y = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, n_obs))
    skip = torch.randint(-1, n_obs, (n,), generator=generator)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            points = x.clone().requires_grad_(), y.clone().requires_grad_()
            value = mean_log_density(*points, 0.4, leave_one_out=skip)
            found.append((value.detach(), *torch.autograd.grad(value, points)))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        torch.testing.assert_close(one, three)


@given(st.integers(1, 6), st.floats(0.05, 3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_integrates_to_one_in_one_dimension(n_obs, h, seed):
    y = normal(n_obs, 1, seed) * 3
    grid = torch.arange(float(y.min() - 9 * h), float(y.max() + 9 * h), h / 10).double()[:, None]
    assert (log_density(grid, y, h).exp().sum() * h / 10).item() == pytest.approx(1, abs=1e-6)


def plane(y, h):
    """A grid over the plane that holds the whole estimate, and the area of its cells."""
    low, high = float(y.min() - 8 * h), float(y.max() + 8 * h)
    axis = torch.arange(low, high, h / 4, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (h / 4) ** 2


@given(st.integers(1, 5), st.floats(0.2, 2), st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_integrates_to_one_in_the_plane(n_obs, h, seed):
    y = normal(n_obs, 2, seed)
    grid, area = plane(y, h)
    assert (log_density(grid, y, h).exp().sum() * area).item() == pytest.approx(1, abs=1e-6)


@given(
    st.integers(1, 5),
    st.floats(0.2, 3),
    st.floats(-50, 50),
    st.floats(0.01, 100),
    st.booleans(),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=40)
def test_translation_and_scale(d, h, shift, scale, leave_one_out, seed):
    z = normal(13, d, seed)
    base = log_density(z, z, h, leave_one_out)
    torch.testing.assert_close(log_density(z + shift, z + shift, h, leave_one_out), base)
    scaled = log_density(scale * z, scale * z, scale * h, leave_one_out)
    torch.testing.assert_close(scaled, base - d * math.log(scale))


@given(st.permutations(range(9)), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_order_of_observations_does_not_matter(order, seed):
    x, y = normal(4, 3, seed), normal(9, 3, seed + 1)
    skip = torch.tensor([2, -1, 8, 0])
    inverse = torch.tensor([*np.argsort(order), -1])  # index -1 stays -1
    torch.testing.assert_close(
        log_density(x, y[list(order)], 0.7, inverse[skip]), log_density(x, y, 0.7, skip)
    )


# --- gradients ---


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("skip", SKIPS.values(), ids=SKIPS)
def test_gradients_match_autograd(d, skip):
    x, y = normal(7, d, 1) * 1.4 + 0.2, normal(12, d, 2)
    loo = False if skip is None else skip
    assert_all_close(
        value_and_gradients(lambda a, b: mean_log_density(a, b, 0.6, loo), x, y),
        value_and_gradients(lambda a, b: plain(a, b, 0.6, skip).mean(), x, y),
    )
    leaves = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: mean_log_density(a, b, 0.6, loo), leaves)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_gradients_add_up_when_both_sets_are_one_tensor(d, leave_one_out):
    z = normal(31, d) * torch.linspace(1, 2, d, dtype=torch.float64)
    skip = torch.arange(31) if leave_one_out else None
    ours = value_and_gradients(lambda a, b: mean_log_density(a, b, 0.5, leave_one_out), z, z)
    theirs = value_and_gradients(lambda a, b: plain(a, b, 0.5, skip).mean(), z, z)
    assert len(ours) == 2  # a value and one gradient
    assert_all_close(ours, theirs)
    # A translation of all points changes nothing.
    torch.testing.assert_close(ours[1].sum(0), torch.zeros(d).double(), atol=1e-12, rtol=0)


def test_gradient_of_one_set_only_and_upstream_factor():
    x, y = normal(9, 2, 1), normal(14, 2, 2)
    both = value_and_gradients(lambda a, b: -3 * mean_log_density(a, b, 0.6), x, y)
    (at_x,) = value_and_gradients(lambda a: mean_log_density(a, y, 0.6), x)[1:]
    (at_y,) = value_and_gradients(lambda b: mean_log_density(x, b, 0.6), y)[1:]
    assert_all_close(both[1:], (-3 * at_x, -3 * at_y))
    assert not log_density(x.requires_grad_(), y, 0.6).requires_grad


def test_there_is_no_second_derivative():
    x = normal(9, 2).requires_grad_()
    (grad,) = torch.autograd.grad(mean_log_density(x, x, 0.6), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.square().sum().backward()


def mixture_sample(n, d, seed=0, dtype=torch.float32):
    return TargetMixture.on_axes(d, d).sample(n, generator(seed)).to(dtype)


N = 2000
SINGLE = {
    # name: (points, bandwidth)
    "normal, d=2": (lambda s: normal(N, 2, s, torch.float32), scott_bandwidth(N, 2)),
    "normal, d=10": (lambda s: normal(N, 10, s, torch.float32), scott_bandwidth(N, 10)),
    "mixture, d=2": (lambda s: mixture_sample(N, 2, s), scott_bandwidth(N, 2)),
    "mixture, d=10": (lambda s: mixture_sample(N, 10, s), scott_bandwidth(N, 10)),
    "mixture 50 bandwidths wide": (lambda s: mixture_sample(N, 2, s), 0.15),
    "mixture 90 bandwidths wide": (lambda s: mixture_sample(N, 2, s), 0.07),
    "mixture 300 bandwidths wide": (lambda s: mixture_sample(N, 2, s), 0.02),
    "mixture, d=10, 400 bandwidths": (lambda s: mixture_sample(N, 10, s), 0.02),
    "two groups 10,000 bandwidths apart": (
        lambda s: torch.cat([normal(N // 2, 2, s), normal(N // 2, 2, s + 9) + 3000]).float(),
        0.3,
    ),
    "offset of 10,000": (lambda s: mixture_sample(N, 2, s) + 1e4, 0.3),
}


@pytest.mark.parametrize(("make", "h"), SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("leave_one_out", [None, True, False])
def test_single_precision_agrees_with_double(make, h, leave_one_out):
    """Value and gradient within 1e-4 (relative) of double precision on the same numbers."""
    x = make(0)
    y = make(1) if leave_one_out is None else x  # None: two sets of points

    def run(*points):
        return value_and_gradients(
            lambda a, b: mean_log_density(a, b, h, bool(leave_one_out)), *points
        )

    single = run(x, y)
    wide = x.double()
    double = run(wide, wide if y is x else y.double())
    assert all(s.dtype == torch.float32 for s in single)
    for s, w in zip(single, double, strict=True):
        # At 400 bandwidths each point sees itself alone, and the gradient vanishes.
        assert (s.double() - w).norm() <= 1e-4 * w.norm() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_too_far_apart_for_double_precision_are_refused(dtype):
    """Up to a million bandwidths the value holds; beyond, an error and never noise or NaN."""
    x = normal(10, 2, dtype=dtype)
    far = x * 1e5
    near_self = log_density(far, far, 0.3)
    expected = torch.full((10,), -math.log(2 * math.pi * 0.3**2 * 10), dtype=dtype)
    torch.testing.assert_close(near_self, expected, atol=1e-3, rtol=0)
    for scale in (1e9, 1e38, 1e200):
        points = (x.double() * scale).clamp(-3e38, 3e38).to(dtype) if scale < 1e200 else x * scale
        if torch.isfinite(points).all():
            with pytest.raises(ValueError, match="a million bandwidths"):
                log_density(points, points, 0.1)


def test_autocast_does_not_reach_the_kernel():
    x = normal(300, 2, dtype=torch.float32)
    outside = value_and_gradients(lambda a, b: mean_log_density(a, b, 0.3, True), x, x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradients(lambda a, b: mean_log_density(a, b, 0.3, True), x, x)
        assert torch.equal(log_density(x, x, 0.3).mean(), mean_log_density(x, x, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_is_linear():
    """At n = 20,000 one matrix of n x n floats would take 1.6 GB."""
    code = """
        import torch
        from latentspace.density import mean_log_density

        def peak():  # getrusage would count what the parent process held
            line = next(s for s in open("/proc/self/status") if s.startswith("VmHWM"))
            return int(line.split()[1]) / 1024

        def run(n):
            z = torch.randn(n, 2).requires_grad_()
            mean_log_density(z, z, 0.15, True).backward()

        run(500)
        before = peak()
        run(20_000)
        print(peak() - before)
    """
    env = os.environ | {"PYTHONPATH": str(LIB), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < 100, f"{out.stdout} MB"


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"locations": torch.tensor([[0.0, math.nan]])}, "locations contain NaN"),
        ({"observations": torch.tensor([[0.0, math.inf]])}, "observations contain NaN or inf"),
        ({"locations": torch.zeros(0, 2)}, "locations must be a non-empty"),
        ({"observations": torch.zeros(4, 0)}, "observations must be a non-empty"),
        ({"locations": torch.zeros(4)}, r"\(n, d\)"),
        ({"locations": torch.zeros(4, 3)}, "agree in width"),
        ({"locations": torch.zeros(4, 2).double()}, "agree in width and dtype"),
        ({"observations": torch.zeros(4, 2, dtype=torch.int64)}, "floating point"),
        ({"bandwidth": 0.0}, "bandwidth must be positive"),
        ({"bandwidth": -1.0}, "bandwidth must be positive"),
        ({"bandwidth": math.inf}, "bandwidth must be positive"),
        ({"bandwidth": math.nan}, "bandwidth must be positive"),
        ({"leave_one_out": True}, "as many observations as locations: 4, 6"),
        ({"floor": 0.1}, "the weight of what is left out"),
        ({"floor": 1.1, "leave_one_out": torch.zeros(4, dtype=torch.int64)}, "floor, in"),
        ({"floor": math.nan, "leave_one_out": torch.zeros(4, dtype=torch.int64)}, "floor, in"),
        ({"leave_one_out": torch.tensor([0, 1, 2, 6])}, "between -1 and 5"),
        ({"leave_one_out": torch.tensor([0, 1, 2, -2])}, "between -1 and 5"),
        ({"leave_one_out": torch.tensor([0, 1, 2])}, "4 indices"),
        ({"leave_one_out": torch.tensor([0.0, 1, 2, 3])}, "int64"),
        ({"leave_one_out": torch.tensor([True, False, True, True])}, "int64"),
        (
            {"observations": torch.zeros(1, 2), "leave_one_out": torch.tensor([0, -1, -1, -1])},
            "nothing is left",
        ),
    ],
)
def test_bad_input(change, message):
    good = {
        "locations": torch.zeros(4, 2),
        "observations": torch.zeros(6, 2),
        "bandwidth": 1.0,
        "leave_one_out": False,
    }
    for function in (log_density, mean_log_density):
        function(**good)
        with pytest.raises(ValueError, match=message):
            function(**good | change)


def test_one_observation_that_leaves_itself_out():
    z = torch.zeros(1, 2)
    assert log_density(z, z, 1.0).item() == pytest.approx(-math.log(2 * math.pi))
    with pytest.raises(ValueError, match="nothing is left"):
        log_density(z, z, 1.0, leave_one_out=True)


@pytest.mark.parametrize(("n", "d"), [(10, 1), (10_000, 2), (10_000, 10), (1, 3)])
def test_scott_bandwidth_matches_scipy(n, d):
    assert scott_bandwidth(n, d, 2.5) == pytest.approx(2.5 * n ** (-1 / (d + 4)))
    if n > d:
        kde = gaussian_kde(np.random.default_rng(0).normal(size=(d, n)))
        assert scott_bandwidth(n, d) == pytest.approx(kde.scotts_factor())
    for bad in [(0, d), (n, 0), (n, d, 0.0), (n, d, math.nan)]:
        with pytest.raises(ValueError, match="need n >= 1"):
            scott_bandwidth(*bad)


# --- targets ---

CENTRES = torch.tensor([[0.0, 0, 1], [1.5, -1, 0], [8, 0, 0], [0.2, 0.1, 1]], dtype=torch.float64)


def torch_mixture(centres):
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    components = Independent(Normal(centres, torch.ones_like(centres)), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(centres))), components)


def test_mixture_log_density_matches_torch_distributions():
    z = normal(50, 3) * 4
    mixture = TargetMixture(CENTRES)
    torch.testing.assert_close(mixture.log_density(z), torch_mixture(CENTRES).log_prob(z))
    joint = [
        multivariate_normal(c.numpy()).logpdf(z.numpy()) - math.log(4) for c in CENTRES.unbind()
    ]
    np.testing.assert_allclose(mixture.log_joint(z), np.stack(joint, 1))
    assert mixture.log_density(z.float()).dtype == torch.float32


def test_mixture_sample_has_the_mixtures_moments():
    sample = TargetMixture(CENTRES).sample(200_000, generator(5))
    mean = CENTRES.mean(0)
    covariance = torch.eye(3).double() + (CENTRES - mean).T @ (CENTRES - mean) / 4
    assert sample.dtype == torch.float64
    torch.testing.assert_close(sample.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(sample.T.cov(), covariance, atol=0.12, rtol=0)
    again = TargetMixture(CENTRES).sample(200_000, generator(5))
    assert torch.equal(sample, again)


@pytest.mark.parametrize("centres", [[0.0], [0.0, 0.8], [-1.0, 0.0, 2.5], [0.0, 6.0, 6.5]])
def test_entropy_matches_quadrature_also_when_components_overlap(centres):
    def density(z):
        return np.mean([norm.pdf(z, c) for c in centres])

    expected, _ = quad(lambda z: -density(z) * math.log(density(z)), -9, 15, limit=200)
    mixture = TargetMixture(torch.tensor(centres)[:, None])
    assert mixture.entropy() == pytest.approx(expected, abs=0.01)
    assert mixture.entropy(n=200_000, seed=3) == pytest.approx(expected, abs=0.003)


def test_entropy_in_the_plane_matches_a_grid():
    centres = torch.tensor([[0.0, 0], [1.2, 0.5], [-0.3, 2]], dtype=torch.float64)
    axis = torch.arange(-8, 10, 0.05, dtype=torch.float64)
    log_p = torch_mixture(centres).log_prob(torch.cartesian_prod(axis, axis))
    expected = -(log_p.exp() * log_p).sum().item() * 0.05**2
    assert TargetMixture(centres).entropy() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("d", [1, 2, 10])
def test_entropy_in_closed_form(d):
    one = d / 2 * math.log(2 * math.pi * math.e)
    assert TargetMixture.on_axes(1, d, 0.0).entropy() == pytest.approx(one)
    assert TargetMixture.on_axes(d, d, 50.0).entropy() == pytest.approx(one + math.log(d))


def test_bad_targets():
    for centres in (torch.zeros(3), torch.zeros(0, 2), torch.tensor([[math.nan]])):
        with pytest.raises(ValueError, match="centres must be"):
            TargetMixture(centres)
    for k, d in [(3, 2), (0, 2)]:
        with pytest.raises(ValueError, match="do not fit"):
            TargetMixture.on_axes(k, d)


# --- the terms of the loss ---


def slow_js_loss(latent, target, h, leave_one_out, generator):
    """Eq. (7) term by term over full matrices, with the same random rows."""
    n = len(latent)
    half = n // 2
    rows_q = torch.randperm(n, generator=generator)[:half]
    rows_p = torch.randperm(n, generator=generator)[:half]
    observations = torch.cat([latent[rows_q], target[rows_p]])

    def skip(rows, first):
        index = [
            first + rows.tolist().index(i) if leave_one_out and i in rows else -1 for i in range(n)
        ]
        return torch.tensor(index)

    own = torch.arange(n) if leave_one_out else None
    log_q = plain(latent, latent, h, own).mean()
    log_m_q = plain(latent, observations, h, skip(rows_q, 0)).mean()
    log_m_p = plain(target, observations, h, skip(rows_p, half)).mean()
    return log_q - log_m_q - log_m_p


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(("n", "d"), [(4, 1), (31, 2), (50, 5)])
def test_js_loss_matches_its_definition(n, d, leave_one_out):
    latent, target = normal(n, d, 1) * 1.6 + 0.5, normal(n, d, 2)
    ours, slow = (
        value_and_gradients(
            lambda a, b, f=f: f(a, b, 0.6, leave_one_out, generator(7)), latent, target
        )
        for f in (js_loss, slow_js_loss)
    )
    assert_all_close(ours, slow)


def test_js_loss_bad_input():
    good = normal(6, 2)
    for latent, target in [(good, normal(5, 2)), (good, normal(6, 3)), (good[:3], good[:3])]:
        with pytest.raises(ValueError, match="two samples of one shape with 4 rows"):
            js_loss(latent, target, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        js_loss(good * math.nan, good, 0.5)
    with pytest.raises(ValueError, match="bandwidth"):
        js_loss(good, good, 0.0)


def test_class_terms_match_loops():
    latent, labels = normal(40, 3) * 3, torch.arange(40) % 4
    centres = normal(4, 3, 5) * 2
    beyond = [
        max(0.0, math.dist(z, centres[c].tolist()) - 2.5)
        for z, c in zip(latent.tolist(), labels.tolist(), strict=True)
    ]
    assert 0 < sum(b == 0 for b in beyond) < 40  # some inside the threshold, some outside
    ours = centre_loss(latent, labels, centres, 2.5).item()
    assert ours == pytest.approx(sum(beyond) / 40)

    sides = [
        max(0.0, z[0] if c == 0 else -z[0])
        for z, c in zip(latent.tolist(), (labels % 2).tolist(), strict=True)
    ]
    assert hyperplane_loss(latent, labels % 2).item() == pytest.approx(sum(sides) / 40)


def test_reconstruction_loss_matches_a_loop():
    x, y = normal(20, 6, 1), normal(20, 6, 2)
    lengths = [math.dist(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert reconstruction_loss(x, y).item() == pytest.approx(sum(lengths) / 20)


def test_gradients_are_finite_where_a_length_is_zero():
    x = normal(5, 2).requires_grad_()
    reconstruction_loss(x, x.detach()).backward()
    assert torch.equal(x.grad, torch.zeros(5, 2).double())
    x.grad = None
    centre_loss(x, torch.arange(5), x.detach(), 0.0).backward()
    assert torch.isfinite(x.grad).all()


def test_class_terms_refuse_bad_labels():
    z, centres = torch.zeros(3, 2), torch.zeros(2, 2)
    cases = [
        (torch.tensor([0, 1, 2]), "between 0 and 1"),
        (torch.tensor([0, 1, -1]), "between 0 and 1"),
        (torch.tensor([0, 1]), "labels must be"),
        (torch.tensor([0.0, 1, 1]), "int64"),
        (torch.tensor([False, True, True]), "int64"),
    ]
    for labels, message in cases:
        with pytest.raises(ValueError, match=message):
            centre_loss(z, labels, centres, 1.0)
        with pytest.raises(ValueError, match=message):
            hyperplane_loss(z, labels)
    with pytest.raises(ValueError, match=r"\(n, D\)"):
        reconstruction_loss(z, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"\(n, D\)"):
        reconstruction_loss(torch.zeros(3, 2, 2), torch.zeros(3, 2, 2))


# --- errata ---


class TestK1:
    """Eq. (2) is 2 D_JS + h(p); the paper says that only constants were dropped."""

    pairs = [((0.0, 1.0), (0.0, 1.0)), ((1.0, 0.5), (0.0, 1.0)), ((-2.0, 2.0), (0.0, 1.0))]

    @staticmethod
    def expect(of, by):
        return quad(lambda z: by.pdf(z) * of(z), -25, 25, limit=400, points=[-2, 0, 1])[0]

    def terms(self, q, p):
        """(L_pdf of eq. 2, D_JS of eq. 1, h(p)) by quadrature."""
        q, p = norm(*q), norm(*p)

        def log_m(z):
            return np.logaddexp(q.logpdf(z), p.logpdf(z)) - math.log(2)

        loss = self.expect(q.logpdf, q) - self.expect(log_m, q) - self.expect(log_m, p)
        to_m = [self.expect(lambda z, f=f: f.logpdf(z) - log_m(z), f) for f in (q, p)]
        return loss, sum(to_m) / 2, -self.expect(p.logpdf, p)

    def test_identity(self):
        for q, p in self.pairs:
            loss, divergence, entropy = self.terms(q, p)
            assert loss == pytest.approx(2 * divergence + entropy, abs=1e-6)
            assert js_divergence(loss, entropy) == pytest.approx(divergence, abs=1e-6)
            assert -1e-9 <= divergence <= math.log(2)

    def test_printed_constant_is_none(self):
        """With p fixed, L - D_JS would be one number; L - 2 D_JS is."""
        terms = [self.terms(q, p) for q, p in self.pairs]
        assert np.ptp([loss - divergence for loss, divergence, _ in terms]) > 0.1
        assert np.ptp([loss - 2 * divergence for loss, divergence, _ in terms]) < 1e-6

    @pytest.mark.parametrize("q", [(0.0, 1.0), (1.0, 0.5), (-2.0, 2.0)])
    def test_the_estimate_comes_near(self, q):
        n = 4000
        latent, target = q[0] + q[1] * normal(n, 1, 1), normal(n, 1, 2)
        h = scott_bandwidth(n, 1, min(q[1], 1))
        loss, _, _ = self.terms(q, (0.0, 1.0))
        ours = js_loss(latent, target, h, generator=generator()).item()
        assert ours == pytest.approx(loss, abs=0.06)

    def test_optimum_is_the_targets_entropy_and_not_zero(self):
        loss = js_loss(normal(4000, 2, 1), normal(4000, 2, 2), scott_bandwidth(4000, 2))
        assert TargetMixture(torch.zeros(1, 2)).entropy() == pytest.approx(2.838, abs=1e-3)
        assert loss.item() == pytest.approx(2.838, abs=0.1)


class TestK2:
    """Eq. (5): the bandwidth stands outside the kernel and not in it."""

    @staticmethod
    def printed(x, y, h):
        """1/(l h) sum (2 pi)^(-d/2) exp(-u'u/2) with u = z - z_i: log of it, per location."""
        u = x[:, None] - y[None]
        log_kernel = -x.shape[1] / 2 * math.log(2 * math.pi) - u.square().sum(-1) / 2
        return log_kernel.logsumexp(1) - math.log(len(y) * h)

    @staticmethod
    def half_corrected(x, y, h):
        """The argument scaled, the prefactor left at 1/(l h)."""
        return TestK2.printed(x / h, y / h, h)

    def test_integral(self):
        y, h = normal(20, 2), 0.3
        grid, area = plane(y, 1.0)  # the printed kernel is one unit wide
        fine, fine_area = plane(y, h)
        assert (self.printed(grid, y, h).exp().sum() * area).item() == pytest.approx(1 / h)
        half = (self.half_corrected(fine, y, h).exp().sum() * fine_area).item()
        assert half == pytest.approx(h)
        assert (log_density(fine, y, h).exp().sum() * fine_area).item() == pytest.approx(1)

    def test_bandwidth_has_no_effect_on_training_as_printed(self):
        latent, target = normal(200, 2, 1) * 1.5, normal(200, 2, 2)
        observations = torch.cat([latent[:100].detach(), target[100:]])

        def loss(log_f):
            def function(z):
                own = log_f(z, z).mean()
                return own - log_f(z, observations).mean() - log_f(target, observations).mean()

            return function

        def gradients(kde):
            return [
                value_and_gradients(loss(lambda a, b, h=h: kde(a, b, h)), latent)[1]
                for h in (0.2, 1.0, 3.0)
            ]

        ours, printed = gradients(mean_log_density), gradients(self.printed)
        for other in (0, 2):
            torch.testing.assert_close(printed[1], printed[other], atol=1e-15, rtol=0)
            assert (ours[1] - ours[other]).norm() > 0.1 * ours[1].norm()


def test_k3_mean_of_the_log_and_not_log_of_the_mean():
    """Eq. (8) returns the mean density; eq. (7) needs the mean log density, -h(p) at q = p."""
    z, h = normal(4000, 2), scott_bandwidth(4000, 2)
    mean_log = mean_log_density(z, z, h).item()
    printed = log_density(z, z, h).exp().mean().log().item()
    wanted = -math.log(2 * math.pi * math.e)  # -2.838
    assert mean_log == pytest.approx(wanted, abs=0.05)
    assert printed == pytest.approx(-math.log(4 * math.pi), abs=0.05)  # -2.531
    assert abs(printed - wanted) > 0.25


def cluster_loss(n, d, sigma, leave_one_out, seed):
    """js_loss of clusters ``scale`` times as wide as the target's, as a function of the scale."""
    target = TargetMixture.on_axes(d, d)
    source = generator(seed)
    centres = target.centres[torch.randint(d, (n,), generator=source)]
    noise, draws = torch.randn(n, d, generator=source), target.sample(n, source)
    h = scott_bandwidth(n, d, sigma)

    def loss(scale):
        latent = centres + scale * noise
        return js_loss(latent, draws, h, leave_one_out, generator(seed)).item()

    return loss


class TestK15:
    """Without its own kernel a point that leaves everything behind is rewarded without end."""

    H = 0.5

    def one_point_at(self, distance, leave_one_out, n=40, floor=0.0):
        """n times the loss; latents lie near x = 0, targets near x = 1, one latent far out."""
        g = generator(3)
        latent = torch.randn(n, 2, generator=g, dtype=torch.float64) * 1e-3
        target = torch.randn(n, 2, generator=g, dtype=torch.float64) * 1e-3
        target[:, 0] += 1.0
        latent[7, 0] = distance
        return n * js_loss(latent, target, self.H, leave_one_out, generator(5), floor).item()

    def test_leave_one_out_falls_linearly(self):
        """(R - 1)^2 / 2h^2 - R^2 / 2h^2 = -R / h^2 + a constant."""
        slope = (self.one_point_at(60.0, True) - self.one_point_at(40.0, True)) / 20
        assert slope == pytest.approx(-1 / self.H**2, rel=0.02)

    def test_printed_loss_does_not_fall(self):
        assert self.one_point_at(60.0, False) >= self.one_point_at(40.0, False) - 1e-9

    def test_a_floor_stops_the_fall(self):
        """From where the kept weight outweighs all other kernels the point gains nothing more."""
        near, far, farther = (self.one_point_at(r, True, floor=1e-4) for r in (2.0, 40.0, 60.0))
        assert far >= near - math.log(40 / 1e-4)
        assert farther >= far - 1e-9


class TestK4:
    """In eq. (7) each point of the batch sees its own kernel; leave-one-out removes it."""

    @staticmethod
    def median_share(z, h, n_locations=1000):
        """Of the self-kernel in the estimate at a point."""
        n, d = z.shape
        log_self = -d * (math.log(h) + math.log(2 * math.pi) / 2) - math.log(n)
        return (log_self - log_density(z[:n_locations], z, h)).exp().median().item()

    @pytest.mark.parametrize(
        ("components", "d", "share"), [(1, 2, 0.004), (1, 10, 0.916), (10, 10, 0.994)]
    )
    def test_share_of_the_self_kernel(self, components, d, share):
        target = TargetMixture.on_axes(components, d, 6.0 if components > 1 else 0.0)
        z = target.sample(10_000, generator())
        assert self.median_share(z, scott_bandwidth(10_000, d)) == pytest.approx(share, rel=0.1)

    def test_printed_estimate_is_flat(self):
        """Ten Gaussians: a mean of -11.8 against the true -16.5, and hardly any spread."""
        target = TargetMixture.on_axes(10, 10)
        z = target.sample(10_000, generator())
        h = scott_bandwidth(10_000, 10)
        some = torch.arange(1000)
        printed = log_density(z[:1000], z, h)
        ours = log_density(z[:1000], z, h, some)
        assert printed.mean().item() == pytest.approx(-11.79, abs=0.02)
        assert -target.entropy() == pytest.approx(-16.49, abs=0.01)
        assert printed.std() < 0.1 and ours.std() > 2.5

    def test_gradient_of_the_entropy_term_vanishes(self):
        z = mixture_sample(1000, 10, dtype=torch.float64)
        h = scott_bandwidth(1000, 10)
        printed, ours = (
            value_and_gradients(lambda a, b, s=s: mean_log_density(a, b, h, s), z, z)[1].norm()
            for s in (False, True)
        )
        assert ours == pytest.approx(0.265, rel=0.05)
        assert printed < 0.02 * ours

    @pytest.mark.parametrize("seed", range(3))
    def test_scale_of_the_clusters_that_minimises_the_loss(self, seed):
        """Clusters of half the width beat the target itself, unless points are left out."""

        def best(leave_one_out):
            loss = cluster_loss(4000, 10, 1.0, leave_one_out, seed)
            return min((0.3, 0.5, 0.7, 1.0, 1.4), key=loss)

        assert best(leave_one_out=False) == 0.5
        assert best(leave_one_out=True) == 1.0


class TestK5:
    """Scott's sigma is the width of a component, not of the whole mixture."""

    def test_values(self):
        z = mixture_sample(10_000, 10)
        assert z.std(0).mean().item() == pytest.approx(2.06, abs=0.03)
        assert scott_bandwidth(10_000, 2) == pytest.approx(0.2154, abs=1e-4)
        assert scott_bandwidth(10_000, 10) == pytest.approx(0.5179, abs=1e-4)

    def test_global_sigma_estimates_worse_in_the_plane(self):
        z, truth = mixture_sample(4000, 2), -TargetMixture.on_axes(2, 2).entropy()
        component, whole = (
            abs(mean_log_density(z, z, scott_bandwidth(4000, 2, sigma), True).item() - truth)
            for sigma in (1.0, z.std(0).mean().item())
        )
        assert component < 0.05 < whole

    @pytest.mark.parametrize("seed", range(2))
    def test_global_sigma_prefers_shrunken_clusters_in_ten_dimensions(self, seed):
        component = cluster_loss(3000, 10, 1.0, True, seed)
        whole = cluster_loss(3000, 10, 2.06, True, seed)
        assert component(1.0) < component(0.3) and whole(0.3) < whole(1.0)


def test_k6_threshold_and_bayes_accuracy():
    assert chi(10).mean() == pytest.approx(3.084, abs=1e-3)
    assert chi(10).ppf(0.95) == pytest.approx(4.279, abs=1e-3)
    assert chi(2).ppf(0.99) == pytest.approx(3.03, abs=0.01)
    centres = TargetMixture.on_axes(10, 10).centres
    assert (centres[0] - centres[1]).norm().item() / 2 == pytest.approx(4.243, abs=1e-3)

    # Nearest centre is right when the own coordinate is the largest of ten.
    def accuracy(k):
        return quad(lambda t: norm.pdf(t) * norm.cdf(6 + t) ** (k - 1), -9, 9, epsabs=1e-12)[0]

    assert accuracy(2) == pytest.approx(0.99999, abs=2e-6)
    assert accuracy(10) == pytest.approx(0.99990, abs=5e-6)
    target = TargetMixture.on_axes(10, 10)
    source = generator()
    labels = torch.randint(10, (200_000,), generator=source)
    z = target.centres[labels] + torch.randn(200_000, 10, generator=source)
    measured = (target.log_joint(z).argmax(1) == labels).double().mean().item()
    assert measured == pytest.approx(accuracy(10), abs=1e-4)


def test_k7_one_coordinate_counted_once():
    """Eq. (10) prints the vector z_i and a sum over j that counts it twice."""

    def printed(z, labels):
        sign = 1 - 2 * labels[:, None].to(z)
        return torch.relu(sum(sign * z for _ in range(2))).mean(0)

    z, labels = normal(40, 3), torch.arange(40) % 2
    moved = z + torch.tensor([0.0, 5, -2])
    assert printed(z, labels).shape == (3,)  # no scalar, no loss
    assert not torch.allclose(printed(z, labels), printed(moved, labels))
    torch.testing.assert_close(printed(z, labels)[0], 2 * hyperplane_loss(z, labels))

    assert hyperplane_loss(z, labels).shape == ()
    assert hyperplane_loss(z, labels) == hyperplane_loss(moved, labels)
    _, grad = value_and_gradients(lambda a: hyperplane_loss(a, labels), z)
    assert set(grad[:, 0].abs().mul(40).tolist()) == {0.0, 1.0} and not grad[:, 1:].any()
    separated = torch.tensor([[-1.0, 9], [2, -9]])  # the first class lies at z_0 < 0
    assert hyperplane_loss(separated, torch.tensor([0, 1])) == 0
    assert hyperplane_loss(separated, torch.tensor([1, 0])) == 1.5


def test_k9_weights_sum_to_one():
    """Eq. (12) has weights alpha, beta, 1 - alpha - beta; panel 2(d) prints {0, .9, 1}."""
    panels = {"b": (0.8, 0.2, 0), "c": (0.5, 0.2, 0.3), "e": (0.9, 0, 0.1), "f": (0.8, 0.2, 0)}

    def by_eq_12(alpha, beta):
        return pytest.approx((alpha, beta, 1 - alpha - beta))

    for weights in [*panels.values(), (0, 0.9, 0.1), (0.7, 0.1, 0.2)]:
        assert weights == by_eq_12(*weights[:2])
    printed = (0, 0.9, 1)
    assert printed != by_eq_12(*printed[:2])


DEEP = [(1024, 512), (512, 256), (256, 128)]
UP = [(10, 128), (128, 256), (256, 512), (512, 1024)]
TABLE_1 = {
    # Blocks and last layers as Table 1 prints them, the last output width corrected (K11).
    "synthetic": [(2, 8), (8, 32), (32, 8), (8, 2), (2, 8), (8, 32), (32, 8), (8, 2)],
    "ResNet-18": [(512, 1024), *DEEP, (128, 10), *UP, (1024, 512)],
    "ViT (CIFAR-10)": [(768, 1024), *DEEP, (128, 10), *UP, (1024, 768)],
    "ViT (FMNIST)": [(128, 1024), *DEEP, (128, 10), *UP, (1024, 128)],
}
# Counted by hand: a x b + b for a Linear layer, and for a block 2 b (batch normalisation) and
# 1 (PReLU) more.
PARAMETERS = {
    "synthetic": 2 * (41 + 353 + 281 + 18),
    "ResNet-18": 2_439_442,
    "ViT (CIFAR-10)": 2_963_986,
    "ViT (FMNIST)": 1_652_626,
}


@pytest.mark.parametrize("column", TABLE_1)
def test_k10_k11_autoencoder_of_table_1(column):
    layers = TABLE_1[column]
    half = len(layers) // 2
    width, d = layers[0][0], layers[half][0]
    network = Autoencoder(width, d, [b for _, b in layers[: half - 1]])
    ours = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in ours] == layers
    blocks = sum(
        2 * b + 1 for i, (_, b) in enumerate(layers) if i not in (half - 1, len(layers) - 1)
    )
    by_formula = sum(a * b + b for a, b in layers) + blocks
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == by_formula == PARAMETERS[column]
    x = normal(20, width, dtype=torch.float32)
    latent, reconstructed = network(x)
    assert latent.shape == (20, d) and reconstructed.shape == x.shape

    # K11: Table 1 prints an output of 10 for every input, so that eq. (11) is undefined.
    if width != 2:
        with pytest.raises(ValueError, match=r"\(n, D\)"):
            reconstruction_loss(x, torch.nn.Linear(1024, 10)(normal(20, 1024, dtype=torch.float32)))

    # K10: by eq. (13) the decoder is one Linear layer, so affine; Table 1's is not.
    def bend(decoder):
        a, b = normal(2, d, 3, torch.float32) * 3
        middle = decoder(torch.stack([a, b, (a + b) / 2])).detach()
        return (middle[0] + middle[1] - 2 * middle[2]).norm().item()

    assert bend(torch.nn.Linear(d, width)) < 1e-5 < 1e-3 < bend(network.eval().decoder)


def test_k13_centres_at_six_times_the_unit_vectors():
    """The text puts the centres "on the unit vectors"; such components would overlap."""
    assert torch.equal(TargetMixture.on_axes(2, 3).centres, torch.eye(2, 3) * 6)
    source = generator()
    labels = torch.randint(10, (20_000,), generator=source)
    noise = torch.randn(20_000, 10, generator=source)

    def accuracy(radius):
        target = TargetMixture.on_axes(10, 10, radius)
        predicted = target.log_joint(target.centres[labels] + noise).argmax(1)
        return (predicted == labels).double().mean().item()

    assert accuracy(1.0) < 0.5 < 0.999 < accuracy(6.0)
