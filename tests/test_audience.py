"""Audiences are singular vectors of who rated what in training, and are withheld as they should be."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import rank_jobs as jobs
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rounding import rounding
from scipy import sparse

from correct_smooth import audience as module
from correct_smooth import checkpoint
from correct_smooth import train as training
from correct_smooth.audience import AudienceConfig, audience, with_audience, withhold_audience
from correct_smooth.checkpoint import Checkpoint, fingerprint, sums_of_users
from correct_smooth.dataset import Interactions, cold_items, holdout, index_ratings, split
from correct_smooth.distributed import SharedCheckpoint, SharedTraining, shared_audience
from correct_smooth.features import MovieFeatures
from correct_smooth.model import ModelConfig
from correct_smooth.ranks import shard_of
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import USER_TABLES, Callback, TrainConfig, Training, run_training, train

EIGHT = AudienceConfig(8, dropout=0.3)
MODEL = ModelConfig(emb_dim=6, hidden_dim=10)
SHORT = TrainConfig(epochs=5, batch_size=300)


def pairs_of(rated, n_users=None):
    "Interactions from a boolean table, (users, items)."
    user, item = np.nonzero(rated)
    ones = np.ones(len(user), np.float32)
    users = pd.RangeIndex(rated.shape[0] if n_users is None else n_users)
    return Interactions(
        user.astype(np.int32), item.astype(np.int32), ones, ones, users, pd.RangeIndex(rated.shape[1])
    )


def dense(rated, config):
    "W of the rated items as an array, and which items these are."
    n_i, n_u = rated.sum(axis=0), rated.sum(axis=1)
    scale = np.outer(n_i + config.shrinkage, n_u + config.shrinkage)
    W = np.divide(rated.T, np.sqrt(scale), out=np.zeros(scale.shape), where=rated.T)
    return W[n_i > 0], n_i > 0


def error_of(values, axes, tol, n):
    "How far the columns of a block may be off, by the residual that was allowed and the gaps between values."
    residual = np.maximum(tol * values, rounding(n, values[0], np.float64))
    gap = np.minimum(values[:-2] - values[1:-1], values[1:-1] - values[2:])[:axes]
    sine = residual[1 : axes + 1] / gap
    return 2 * np.sqrt(values[1 : axes + 1]) * sine


def made(n_users=60, n_items=80, n_ratings=1500):
    world = synthetic_data(n_users, n_items, n_ratings)
    learn, held = split(world, holdout(world.ratings, 0.2, seed=1))
    return MovieFeatures().fit_transform(world.movies), learn, held


# --- what it is


tables = (
    st.integers(0, 2**32 - 1)
    .map(np.random.default_rng)
    .flatmap(
        lambda rng: st.builds(
            lambda users, items, share: rng.random((users, items)) < share,
            st.integers(1, 14),
            st.integers(1, 14),
            st.sampled_from([0.05, 0.3, 0.6, 1.0]),
        )
    )
)


@given(tables, st.integers(0, 6), st.sampled_from([0.0, 0.5, 5.0]))
@tried(150, 2000)
def test_any_table_as_numpy_has_it(rated, axes, shrinkage):
    config = AudienceConfig(axes, shrinkage)
    block = audience(pairs_of(rated), config)
    assert block.shape == (rated.shape[1], axes) and block.dtype == np.float32
    assert_array_equal(audience(pairs_of(rated), config), block)
    assert not block[~rated.any(axis=0)].any()
    if not axes or not rated.any():
        return
    W, there = dense(rated, config)
    U, sigma, _ = np.linalg.svd(W, full_matrices=False)
    told = sigma > 1e-6 * sigma[0]
    width = min(axes, told.sum() - 1)
    assert not block[:, width:].any()
    if not width:
        return
    assert_allclose((block[there].astype(float) ** 2).sum(axis=1).mean(), 1, rtol=rounding(10))
    gaps = np.append(sigma, 0.0)[[0, width]] - np.append(sigma, 0.0)[[1, width + 1]]
    if (gaps > 1e-3).all():  # else any basis of what lies across the cut would do
        rows = U[:, 1 : width + 1] * sigma[1 : width + 1]
        rows /= np.sqrt((rows**2).sum(axis=1).mean())
        assert_allclose(block[there] @ block[there].T, rows @ rows.T, atol=1e-5)


def test_columns_are_scaled_singular_vectors():
    "One by one, and up to the sign, which is that of the entry largest in size."
    _, pairs, _ = made()
    rated = np.zeros((len(pairs.users), len(pairs.items)), bool)
    rated[pairs.user, pairs.item] = True
    W, there = dense(rated, EIGHT)
    U, sigma, _ = np.linalg.svd(W, full_matrices=False)
    rows = U[:, 1:9] * sigma[1:9]
    scale = np.sqrt((rows**2).sum(axis=1).mean())
    block = audience(pairs, EIGHT)[there]
    rows *= np.sign((rows * block).sum(axis=0)) / scale
    error = error_of(sigma**2, 8, 0.0, len(W)) / scale
    assert error.max() < 1e-9  # the gaps are wide enough to tell columns apart
    assert_allclose(block, rows, atol=error.max() + rounding(4, np.abs(rows).max()))
    assert (block[np.abs(block).argmax(axis=0), np.arange(8)] > 0).all()


def test_large_and_small_catalogues_go_two_ways_to_one_block(monkeypatch):
    _, pairs, _ = made(200, 700, 9000)
    iterated = audience(pairs, EIGHT)
    assert (np.bincount(pairs.item) > 0).sum() > module._SMALL
    monkeypatch.setattr(module, "_SMALL", 10**6)
    W = module._scaled(pairs, np.bincount(pairs.item, minlength=len(pairs.items)), 5.0).toarray()
    values = np.linalg.svd(W, compute_uv=False) ** 2
    scale = np.sqrt(values[1:9].sum() / len(W))
    error = error_of(values, 8, 1e-10, len(W)) / scale
    assert error.max() < 1e-6
    assert_allclose(
        iterated, audience(pairs, EIGHT), atol=2 * error.max() + rounding(4, np.abs(iterated).max())
    )


def test_signs_of_singular_vectors_do_not_matter():
    rng = np.random.default_rng(0)
    vectors, values = np.linalg.qr(rng.normal(size=(30, 5)))[0], np.array([5.0, 4, 3, 2, 1])
    rows = module._rows(values, vectors)
    assert_array_equal(module._rows(values, vectors * rng.choice([-1, 1], 5)), rows)
    tied = np.array([[0.5, -0.5], [0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
    for nudge in (1e-12, -1e-12):  # rounding does not decide which of two is the larger
        nudged = tied + nudge * np.array([[0, 1], [0, 1], [0, 1], [0, 1]])
        assert module._rows(np.array([2.0, 1.0]), nudged)[0, 0] > 0


@pytest.mark.parametrize("n_items", [40, 600])
@pytest.mark.parametrize("n_users", [1, 2, 7])
def test_few_users_leave_columns_of_zeros(n_users, n_items):
    rated = np.random.default_rng(n_users).random((n_users, n_items)) < 0.4
    block = audience(pairs_of(rated), AudienceConfig(32))
    assert block.shape == (n_items, 32)
    assert_array_equal(block.any(axis=0), np.arange(32) < n_users - 1)
    assert_array_equal(audience(pairs_of(rated), AudienceConfig(32)), block)


@pytest.mark.parametrize("n_items", [5, 600])
def test_who_has_rated_everything_tells_nothing(n_items):
    assert not audience(pairs_of(np.ones((20, n_items), bool))).any()


def test_users_and_movies_without_ratings_change_nothing():
    rated = np.random.default_rng(3).random((12, 20)) < 0.4
    block = audience(pairs_of(rated), EIGHT)
    assert_array_equal(audience(pairs_of(rated, n_users=50), EIGHT), block)
    wider = np.insert(rated, 7, False, axis=1)
    assert_array_equal(audience(pairs_of(wider), EIGHT), np.insert(block, 7, 0, axis=0))
    assert not audience(pairs_of(np.zeros((0, 4), bool)), EIGHT).any()
    assert not audience(pairs_of(np.zeros((3, 4), bool)), EIGHT).any()


def test_settings_out_of_range_are_refused():
    for wrong in ({"axes": -1}, {"axes": 2.5}, {"shrinkage": -1}, {"shrinkage": np.nan}, {"dropout": 1.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AudienceConfig(**wrong)


# --- nothing leaks


def test_held_out_ratings_have_no_part_in_it():
    "Nor what the ratings were; cold movies have none."
    world = synthetic_data(60, 80, 1500)
    for hidden in (holdout(world.ratings, 0.2, 1), cold_items(world.ratings, 0.2, 1)):
        known, held = split(world, hidden)
        block = audience(known, EIGHT)
        never = index_ratings(replace(world, ratings=world.ratings[~hidden]))
        assert_array_equal(audience(never, EIGHT), block)
        assert_array_equal(audience(replace(known, rating=known.rating[::-1], y=1 - known.y), EIGHT), block)
        assert np.abs(audience(split(world, hidden & (np.cumsum(hidden) > 1))[0], EIGHT) - block).max() > 0
    assert not block[np.unique(held.item)].any()
    assert block.any()


# --- behind the features, and withheld


def test_behind_the_features():
    X, pairs, _ = made()
    block = audience(pairs, EIGHT)
    whole = with_audience(X, block)
    assert whole.dtype == np.float32 and isinstance(whole, sparse.csr_matrix)
    assert (whole[:, :-8] != X).nnz == 0
    assert_array_equal(whole[:, -8:].toarray(), block)
    assert whole.nnz == X.nnz + (block != 0).sum()
    assert with_audience(X, block[:, :0]) is X


def test_each_movie_is_withheld_as_often_as_any_other():
    "By its share, whatever the movie, the seed and the epoch; content stays, and rows are whole or zero."
    X, pairs, _ = made()
    block = audience(pairs, EIGHT)
    whole, rated = with_audience(X, block), block.any(axis=1)
    before, n = whole.copy(), 800
    hidden = np.zeros(len(block))
    for epoch in range(n):
        shown = withhold_audience(whole, EIGHT, seed=epoch % 3, epoch=epoch)
        seen = shown[:, -8:].toarray()
        hidden += ~seen.any(axis=1)
        assert_array_equal(seen[seen.any(axis=1)], block[seen.any(axis=1)])
    assert (shown[:, :-8] != X).nnz == 0 and (whole != before).nnz == 0
    spread = np.sqrt(n * 0.3 * 0.7)
    assert np.abs(hidden[rated] - 0.3 * n).max() < 5 * spread
    assert abs(hidden[rated].mean() - 0.3 * n) < 5 * spread / np.sqrt(rated.sum())
    for off in (replace(EIGHT, dropout=0.0), AudienceConfig(0)):
        assert withhold_audience(whole, off, 0, 0) is whole
    assert (withhold_audience(whole, replace(EIGHT, dropout=1.0), 0, 0)[:, :-8] != X).nnz == 0
    assert not withhold_audience(whole, replace(EIGHT, dropout=1.0), 0, 0)[:, -8:].count_nonzero()


# --- in training


def weights(trained):
    return {name: o.numpy() for name, o in trained.model.state_dict().items()}


def assert_same(one, other):
    assert_array_equal(one.history, other.history)
    for (name, o), p in zip(weights(one).items(), weights(other).values(), strict=True):
        assert_array_equal(o, p, err_msg=name)


def test_epochs_differ_in_what_they_see_and_validation_sees_all(monkeypatch):
    X, pairs, held = made()
    whole, seen, checked = with_audience(X, audience(pairs, EIGHT)), [], []
    epoch, loss = training.train_epoch, training.loss_sum
    monkeypatch.setattr(training, "train_epoch", lambda m, X, *rest: seen.append(X) or epoch(m, X, *rest))
    monkeypatch.setattr(training, "loss_sum", lambda m, X, *rest: checked.append(X) or loss(m, X, *rest))
    train(whole, pairs, held, MODEL, SHORT, 7, False, audience=EIGHT)
    assert len(seen) == len(checked) == 5
    for k, shown in enumerate(seen):
        assert (shown != withhold_audience(whole, EIGHT, 7, k)).nnz == 0
        assert (shown != seen[k - 1]).nnz
    assert all(o is whole for o in checked)


def test_without_it_training_is_what_it_was():
    X, pairs, held = made()
    whole = with_audience(X, audience(pairs, EIGHT))
    for features, how in ((X, AudienceConfig(0)), (whole, replace(EIGHT, dropout=0.0))):
        one, other = (train(features, pairs, held, MODEL, SHORT, 7, False, audience=o) for o in (None, how))
        assert_same(one, other)


class Enough(Exception):
    "Ends a training from inside."


class Killed(Callback):
    def on_epoch_end(self, training):
        if training.epoch == 2:
            raise Enough


def test_a_training_that_was_broken_off_withholds_the_same(tmp_path, monkeypatch):
    "And ends with the same weights, bit for bit."
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0)
    X, pairs, held = made()
    whole = with_audience(X, audience(pairs, EIGHT))
    how = {"model_config": MODEL, "config": SHORT, "seed": 7, "progress": False, "audience": EIGHT}
    undisturbed = train(whole, pairs, held, **how)
    with pytest.raises(Enough):
        train(whole, pairs, held, **how, callbacks=[Checkpoint(tmp_path), Killed()])
    assert len(list(tmp_path.iterdir())) == 1
    whole = with_audience(X, audience(pairs, EIGHT))  # as a new process would make it
    assert_same(train(whole, pairs, held, **how, callbacks=[Checkpoint(tmp_path)]), undisturbed)
    assert len(list(tmp_path.iterdir())) == 1


def name_of(training):
    everybody = np.arange(len(training.pairs.users))
    return fingerprint(training, len(everybody), sums_of_users(training, everybody))


def test_a_checkpoint_is_that_of_the_same_settings():
    "Whatever the last bits of a block are, which depend on the order of adding up."
    X, pairs, _ = made()
    block = audience(pairs, EIGHT)
    name = name_of(Training(with_audience(X, block), pairs, audience=EIGHT))
    nudged = np.nextafter(block, np.float32(2))
    assert name_of(Training(with_audience(X, nudged), pairs, audience=EIGHT)) == name
    others = [(X, None), (with_audience(X, block), None)]
    others += [
        (with_audience(X, block), o) for o in (replace(EIGHT, dropout=0.1), replace(EIGHT, shrinkage=1))
    ]
    assert len({name, *(name_of(Training(o, pairs, audience=how)) for o, how in others)}) == 5


# --- on several ranks


@pytest.fixture(scope="module")
def server():
    context = jobs.server()
    yield context
    jobs.forkserver._forkserver._stop()


WORLDS = ((60, 80, 1500), (200, 700, 9000))


def blocks_on_ranks():
    "The block of each world, of everybody's ratings."
    return {str(k): shared_audience(shard_of(made(*world)[1]), EIGHT) for k, world in enumerate(WORLDS)}


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_find_what_one_process_finds(server, tmp_path, n):
    found = jobs.well(jobs.on_ranks(server, tmp_path / "blocks", n, blocks_on_ranks))
    for k, world in enumerate(WORLDS):
        pairs = made(*world)[1]
        alone = audience(pairs, EIGHT)
        W = module._scaled(pairs, np.bincount(pairs.item, minlength=len(pairs.items)), 5.0).toarray()
        values = np.linalg.svd(W, compute_uv=False) ** 2
        error = error_of(values, 8, 1e-10, len(W)) / np.sqrt(values[1:9].sum() / len(W))
        for o in found:
            assert o[str(k)].tobytes() == found[0][str(k)].tobytes()
            bound = 2 * error.max() + rounding(4, np.abs(alone).max())
            assert_allclose(o[str(k)], alone, atol=bound)


def trained_on_ranks(folder, die=None):
    "Train a little on all ranks, or go on from where others were broken off."
    X, learn, held = made()
    pairs, held = shard_of(learn), shard_of(held)
    whole = with_audience(X, shared_audience(pairs, EIGHT))
    together = SharedTraining(whole, pairs, held, MODEL, SHORT, 7, audience=EIGHT)
    keeper, epochs = SharedCheckpoint(folder), []

    class Note(Callback):
        def on_train_begin(self, training):
            epochs.append(training.epoch)

        def on_epoch_end(self, training):
            training.stopped = training.epoch == die
            epochs.append(training.epoch)

    order = [Note(), keeper] if die else [keeper, Note()]  # a stop is seen before it is kept
    done = run_training(together, order, progress=False)
    shown = withhold_audience(whole, EIGHT, 7, 3)[:, -8:].toarray() != 0
    shared = {k: v for k, v in weights(done).items() if k not in USER_TABLES}
    return {"epochs": epochs, "name": np.frombuffer(keeper.name.encode(), np.uint8), "shown": shown, **shared}


def test_ranks_withhold_the_same_and_others_go_on(server, tmp_path):
    "A training of two ranks, broken off, is the same training for three."
    first = jobs.well(jobs.on_ranks(server, tmp_path / "two", 2, trained_on_ranks, tmp_path / "kept", 2))
    then = jobs.well(jobs.on_ranks(server, tmp_path / "three", 3, trained_on_ranks, tmp_path / "kept"))
    for o in (*first, *then):
        assert o["name"].tobytes() == first[0]["name"].tobytes()
        assert_array_equal(o["shown"], first[0]["shown"])
    assert [o["epochs"][0] for o in first] == [0, 0] and [o["epochs"][0] for o in then] == [2, 2, 2]
    for o in then:
        assert all(np.isfinite(o[k]).all() and o[k].tobytes() == then[0][k].tobytes() for k in o)
