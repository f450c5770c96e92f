"""The paper's two steps against PyTorch Geometric's, on random graphs; skipped where it is not installed."""

import numpy as np
import pytest
import torch
from effort import LONG
from numpy.testing import assert_allclose
from scipy import sparse

from correct_smooth.correct_smooth import correct, label_matrix, residual
from correct_smooth.diffusion import smooth_labels, spread_residual
from correct_smooth.graph import NORMALISATIONS

pyg = pytest.importorskip("torch_geometric.nn")


def operator(rng, n, density, how):
    "A normalised graph without self-loops; movies that stand alone have an empty row, as in PyG."
    A = np.triu(rng.random((n, n)) < density, 1) * rng.uniform(0.1, 1, (n, n))
    alone = rng.random(n) < rng.choice([0, 0.2])
    A[alone] = A[:, alone] = 0
    A = A + A.T
    degree = np.where(A.sum(1) == 0, 1, A.sum(1))
    left, right = {"row": (1, 0), "symmetric": (0.5, 0.5), "column": (0, 1)}[how]
    return A / degree[:, None] ** left / degree[None] ** right


def case(seed):
    "Everything one comparison needs, drawn from a seed."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 60))
    S = operator(rng, n, rng.choice([0.05, 0.2, 0.6]), rng.choice(NORMALISATIONS))
    mask = rng.random(n) < rng.choice([0.2, 0.5, 1.0])
    mask[rng.integers(n)] = True  # without any label PyG divides 0 by 0
    z, y = rng.random(n), np.where(rng.random() < 0.5, rng.integers(0, 2, n), rng.random(n))
    alphas, steps = rng.uniform(0, 1, 2), rng.integers(0, 12, 2)
    return S, mask, z, y, alphas, steps, float(rng.uniform(0.2, 2))


@pytest.mark.parametrize("autoscale", [False, True])
@pytest.mark.parametrize("seed", range(100 if LONG else 15))
def test_equal_to_pyg(seed, autoscale):
    "Correcting and smoothing one user gives what CorrectAndSmooth of PyG gives, within 1e-5."
    S, mask, z, y, alphas, steps, scale = case(seed)
    model = pyg.CorrectAndSmooth(steps[0], alphas[0], steps[1], alphas[1], autoscale, scale)
    C = sparse.coo_matrix(S)
    edges, weight = torch.tensor(np.stack([C.col, C.row])).long(), torch.tensor(C.data)
    soft, true, known = (torch.tensor(o) for o in (z[:, None], y[mask][:, None], mask))
    theirs = model.correct(soft, true, known, edges, weight)
    theirs_smooth = model.smooth(theirs, true, known, edges, weight)

    Z = z[:, None].astype(np.float32)
    Y = label_matrix(np.zeros(mask.sum(), int), np.flatnonzero(mask), y[mask], Z.shape)
    graph = sparse.csr_matrix(S, dtype=np.float32)
    how = "autoscale" if autoscale else "fixed"
    R = spread_residual(residual(Z, Y), graph, alphas[0], int(steps[0]), how)
    ours = correct(Z, R, 1.0 if autoscale else scale)
    sure = np.ones(len(z), bool)
    if autoscale:  # where the spread residual is 0 or sigma / 1000 up to rounding, scaling jumps
        bare = model.prop1(
            torch.zeros(len(z), 1, dtype=torch.float64).masked_scatter(known[:, None], true - soft[known]),
            edges, edge_weight=weight, post_step=lambda x: x.clamp(-1, 1),
        ).abs().numpy()[:, 0]  # fmt: skip
        sigma = np.abs(y - z)[mask].mean()
        sure = (bare == 0) | ((bare > 1e-5) & (np.abs(bare / sigma - 1e-3) > 1e-5))
        assert sure.mean() > 0.5
    assert_allclose(ours[sure, 0], theirs.numpy()[sure, 0], rtol=0, atol=1e-5)
    smoothed = smooth_labels(theirs.numpy().astype(np.float32), Y, graph, alphas[1], int(steps[1]))
    assert_allclose(smoothed, theirs_smooth.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(50 if LONG else 10))
def test_labels_alone_equal_label_propagation(seed):
    "From scores of 0, smoothing labels is PyG's LabelPropagation."
    S, mask, _, y, alphas, steps, _ = case(seed)
    y = (y >= 0.5).astype(int)
    C = sparse.coo_matrix(S)
    model = pyg.LabelPropagation(int(steps[0]), float(alphas[0]))
    edges, weight = torch.tensor(np.stack([C.col, C.row])).long(), torch.tensor(C.data, dtype=torch.float32)
    theirs = model(torch.tensor(y, dtype=torch.float32)[:, None], edges, torch.tensor(mask), weight)
    Y = label_matrix(np.zeros(mask.sum(), int), np.flatnonzero(mask), y[mask], (len(y), 1))
    zero = np.zeros((len(y), 1), np.float32)
    ours = smooth_labels(zero, Y, sparse.csr_matrix(S, dtype=np.float32), alphas[0], int(steps[0]))
    assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-5)
