"""Options of the model and its training against plain NumPy, and laws that must hold for each of them."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file
from scipy import sparse
from scipy.special import expit, logit

from correct_smooth.checks import InputError
from correct_smooth.dataset import Interactions, holdout, index_ratings, split
from correct_smooth.embeddings import Embeddings, average
from correct_smooth.encoders import MLPHeadArrays, SageEncoder, with_neighbours
from correct_smooth.features import MovieFeatures
from correct_smooth.graph import GraphConfig, cosine_knn, item_graph, normalise
from correct_smooth.model import (
    ENCODERS,
    ItemEncoder,
    ItemUserModel,
    ModelConfig,
    embed_items,
    embeddings,
)
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import USER_TABLES, TrainConfig, make_optimizer, train

SMALL = ModelConfig(emb_dim=6, hidden_dim=10, head_dim=5)
OPTIONS = {
    "plain": SMALL,
    "id": replace(SMALL, id_embedding=True),
    "sage": replace(SMALL, encoder="sage"),
    "head": replace(SMALL, head="mlp"),
    "all": replace(SMALL, encoder="sage", head="mlp", id_embedding=True),
}
EACH_OPTION = pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(scope="module")
def world():
    "A small made-up world."
    return synthetic_data(60, 80, 1500)


@pytest.fixture(scope="module")
def made(world):
    "Its features, ratings and graph."
    X = MovieFeatures().fit_transform(world.movies)
    return X, index_ratings(world), normalise(cosine_knn(X, 5))


def weights(model):
    return {k: o.detach().numpy() for k, o in model.state_dict().items()}


def as_embeddings(rng, n_items, n_users, k=3, d=4, head=True):
    "Random arrays of a model."
    H, c, U, b = (
        rng.normal(scale=0.5, size=o).astype(np.float32)
        for o in ((n_items, k), n_items, (n_users, k), n_users)
    )
    P, Q, w = (rng.normal(scale=0.5, size=o).astype(np.float32) for o in ((n_items, d), (n_users, d), d))
    return Embeddings(H, c, U, b, MLPHeadArrays(P, Q, w) if head else None)


# --- what plugs in


def test_random_start_is_what_it_was():
    "Weights from a seed, in the order in which they are drawn."
    torch.manual_seed(7)
    config = ModelConfig(3, 4, encoder="sage", head="mlp", head_dim=2, id_embedding=True)
    model = ItemUserModel(9, 5, 4, config)
    expected = {
        "encoder.bias": [0.0, 0.0, 0.0],
        "encoder.first.weight": [0.098724, -0.0059425, -0.0790153],
        "encoder.last.weight": [0.0196588, 0.3080113, -0.2496266],
        "encoder.last.bias": [0.0706339, -0.1468995, 0.2304787],
        "encoder.own.weight": [0.008885, -0.0148668, -0.0088983],
        "user.weight": [-0.0687736, 0.0351539, 0.1505023],
        "user_bias.weight": [0.0967404, -0.0776072, 0.0555155],
        "head.item.weight": [0.1960429, -0.1119706, 0.1611439],
        "head.item.bias": [-0.1038303, -0.4592396],
        "head.user.weight": [-0.4799351, -0.1107581, -0.0087333],
        "head.out.weight": [-0.1282835, 0.2017913],
    }
    assert list(model.state_dict()) == list(expected)
    for name, table in model.state_dict().items():
        assert_allclose(table.flatten()[:3], expected[name], atol=1e-6, err_msg=name)
    assert torch.rand(1).item() == pytest.approx(0.2343, abs=1e-4)  # and what is drawn next


def test_the_model_alone_knows_the_plain_forms():
    "Neither encoders nor pictures are imported with it; the error says what would bring in the others."
    code = """
import sys
from correct_smooth.checks import InputError
from correct_smooth.model import ENCODERS, HEADS, ModelConfig
assert not {"correct_smooth.encoders", "matplotlib.pyplot"} & set(sys.modules)
assert (list(ENCODERS), list(HEADS)) == (["mlp"], ["dot"])
for setting in ({"encoder": "sage"}, {"head": "mlp"}):
    try:
        ModelConfig(**setting)
    except InputError as error:
        assert "import the module that registers another one first" in str(error)
    else:
        raise AssertionError(setting)
import correct_smooth.encoders
assert ModelConfig(encoder="sage", head="mlp").uses_graph
assert (list(ENCODERS), list(HEADS)) == (["mlp", "sage"], ["dot", "mlp"])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class TwoLayers(ItemEncoder):
    "Somebody's own encoder."

    def __init__(self, n_features, n_items, config):
        super().__init__(n_features, n_items, config)
        self.second = torch.nn.Linear(config.hidden_dim, config.hidden_dim)

    def hidden(self, bag, neighbours):
        return torch.relu(self.second(super().hidden(bag, neighbours)))


def test_an_encoder_of_ones_own_is_trained_saved_and_loaded(world, tmp_path, monkeypatch):
    "By its name, and no graph is asked for."
    monkeypatch.setitem(ENCODERS, "two layers", TwoLayers)
    config = replace(SMALL, encoder="two layers")
    quick = {"graph": GraphConfig(k=5), "model": config, "training": TrainConfig(epochs=2)}
    r = CorrectSmoothRecommender(**quick, ensemble=1, progress=False).fit(world)
    r.save(tmp_path / "model")
    back = CorrectSmoothRecommender.load(tmp_path / "model")
    assert isinstance(back.models_[0].encoder, TwoLayers)
    pd.testing.assert_frame_equal(back.recommend(), r.recommend(), check_exact=True)


# --- neighbours


@tried(20, 300)
@given(st.integers(1, 15), st.integers(0, 10_000), st.sampled_from([0, 0.1, 0.5, 1]))
def test_neighbours_stand_behind_the_movies(n, seed, density):
    "Movies come first and in order, then every neighbour once; weights are those of the graph."
    rng = np.random.default_rng(seed)
    S = sparse.csr_matrix(rng.random((n, n)) * (rng.random((n, n)) < density))
    item = rng.permutation(n)[: rng.integers(1, n + 1)]
    movies, weights = with_neighbours(item, S)
    assert_array_equal(movies[: len(item)], item)
    assert len(np.unique(movies)) == len(movies)
    whole = np.zeros((len(item), n))
    whole[:, movies] = weights.toarray()
    assert_array_equal(whole, S.toarray()[item])
    assert set(movies) == set(item) | set(S[item].indices)


@pytest.mark.parametrize("item_bias", [True, False])
def test_sage_equals_dense(made, item_bias):
    "The encoder over neighbours, against dense matrices, movie by movie and sliced."
    X, _, S = made
    torch.manual_seed(0)
    encoder = SageEncoder(X.shape[1], X.shape[0], replace(OPTIONS["sage"], item_bias=item_bias)).eval()
    p = weights(encoder)
    hidden = np.maximum(X.toarray() @ p["first.weight"] + p["bias"], 0)
    out = np.hstack([hidden, S.toarray() @ hidden]) @ p["last.weight"].T + p["last.bias"]
    for rows in (7, 8192):
        H, c = embed_items(encoder, X, np.arange(X.shape[0]), rows, S)
        assert_allclose(H, out[:, :6], atol=1e-5)
        assert_allclose(c, out[:, 6] if item_bias else np.zeros(len(out)), atol=1e-5)


def test_sage_gradient_equals_dense(made):
    "Gradients of all weights, against dense PyTorch."
    X, _, S = made
    torch.manual_seed(0)
    encoder = SageEncoder(X.shape[1], X.shape[0], OPTIONS["sage"]).eval()
    item = np.array([5, 0, 17])
    bag, neighbours = encoder.bags(X, item, S)
    h, c = encoder(bag, neighbours=neighbours)
    (h.square().sum() + c.sum()).backward()
    found = [o.grad.clone() for o in encoder.parameters()]
    encoder.zero_grad()
    dense, mean = torch.tensor(X.toarray(), dtype=torch.float32), torch.tensor(S.toarray())
    hidden = torch.relu(dense @ encoder.first.weight + encoder.bias)
    out = encoder.last(torch.cat([hidden, mean @ hidden], dim=1))[item]
    (out[:, :-1].square().sum() + out[:, -1].sum()).backward()
    for a, b in zip(found, encoder.parameters(), strict=True):
        assert_allclose(a, b.grad, atol=1e-5)


def test_sage_equals_torch_geometric(made):
    "With equal weights in the graph, it is the SAGEConv of PyTorch Geometric over the hidden layer."
    SAGEConv = pytest.importorskip("torch_geometric.nn").SAGEConv
    X, _, S = made
    S = normalise(sparse.csr_matrix((np.ones(S.nnz), S.indices, S.indptr), S.shape))
    torch.manual_seed(0)
    encoder = SageEncoder(X.shape[1], X.shape[0], OPTIONS["sage"]).eval()
    conv = SAGEConv(10, 7, aggr="mean")
    with torch.no_grad():
        conv.lin_r.weight.copy_(encoder.last.weight[:, :10])
        conv.lin_l.weight.copy_(encoder.last.weight[:, 10:])
        conv.lin_l.bias.copy_(encoder.last.bias)
        dense = torch.tensor(X.toarray(), dtype=torch.float32)
        hidden = torch.relu(dense @ encoder.first.weight + encoder.bias)
        target, source = S.nonzero()  # messages go from neighbour to movie
        edges = torch.from_numpy(np.stack([source, target])).long()
        expected = conv(hidden, edges).numpy()
    H, c = embed_items(encoder, X, S=S)
    assert_allclose(np.column_stack([H, c]), expected, atol=1e-5)


@EACH_OPTION
def test_order_of_movies_does_not_matter(made, config):
    "Movies and graph shuffled: the same scores, shuffled."
    X, pairs, S = made
    order = np.random.default_rng(0).permutation(X.shape[0])
    torch.manual_seed(0)
    model = ItemUserModel(X.shape[1], len(pairs.users), X.shape[0], config).eval()
    users = np.arange(len(pairs.users))
    plain = embeddings(model, X, S).block(users)
    if config.id_embedding:
        model.encoder.own.weight.data = model.encoder.own.weight.data[order]
    shuffled = embeddings(model, X[order], S[order][:, order]).block(users)
    assert_allclose(shuffled, plain[order], atol=1e-6)


def test_sage_trained_on_shuffled_movies(made):
    "Trained on shuffled movies, all ratings in a step, it gives the same model to rounding."
    X, pairs, S = made
    order = np.random.default_rng(0).permutation(X.shape[0])
    config = replace(OPTIONS["sage"], dropout=0.0)
    place = np.argsort(order).astype(pairs.item.dtype)
    moved = replace(pairs, item=place[pairs.item], items=pairs.items[order])
    short = TrainConfig(epochs=9, batch_size=10_000, learning_rate=1e-3)
    one = train(X, pairs, None, config, short, progress=False, S=S).model
    two = train(X[order], moved, None, config, short, progress=False, S=S[order][:, order]).model
    users = np.arange(len(pairs.users))
    expected = embeddings(one, X, S).block(users)[order]
    assert_allclose(embeddings(two, X[order], S[order][:, order]).block(users), expected, atol=1e-4)


def test_sage_without_a_graph_is_refused(made):
    X, pairs, _ = made
    for call in (
        lambda: train(X, pairs, None, OPTIONS["sage"], TrainConfig(epochs=1), progress=False),
        lambda: embeddings(ItemUserModel(X.shape[1], 60, X.shape[0], OPTIONS["sage"]), X),
    ):
        with pytest.raises(InputError, match="the encoder is sage and needs the item graph"):
            call()


# --- the head, and averages


@EACH_OPTION
def test_arrays_equal_the_model(made, config):
    "The arrays score pairs and blocks as the model itself does."
    X, pairs, S = made
    torch.manual_seed(0)
    model = ItemUserModel(X.shape[1], len(pairs.users), X.shape[0], config).eval()
    item, which = np.unique(pairs.item, return_inverse=True)
    bag, neighbours = model.encoder.bags(X, item, S)
    tensors = (torch.from_numpy(o.astype(np.int64)) for o in (item, which, pairs.user))
    with torch.no_grad():
        expected = torch.sigmoid(model(bag, *tensors, neighbours)).numpy()
    arrays = embeddings(model, X, S)
    assert_allclose(arrays.pairs(pairs.user, pairs.item), expected, atol=1e-5)
    whole = arrays.block(np.arange(len(pairs.users)))
    assert_allclose(whole[pairs.item, pairs.user], expected, atol=1e-5)
    assert whole.dtype == np.float32


def test_head_equals_loops():
    "Logits with a head, movie by movie and user by user, whatever memory is allowed."
    e = as_embeddings(np.random.default_rng(0), 9, 4)
    users, h = np.array([3, 0, 3]), e.head
    for megabytes in (1e-9, 1e-4, 16):
        block = h.block(users, megabytes)
        for i in range(9):
            for column, u in enumerate(users):
                assert_allclose(block[i, column], h.w @ np.maximum(h.P[i] + h.Q[u], 0), atol=1e-5)
    assert h.block(users[:0]).shape == (9, 0)
    i, u = np.divmod(np.arange(36), 4)
    assert_allclose(e.pairs(u, i).reshape(9, 4), e.block(np.arange(4)), atol=1e-6)


@pytest.mark.parametrize("head", [True, False])
def test_mean_user_is_last(head):
    e = as_embeddings(np.random.default_rng(1), 7, 5, head=head)
    more = e.with_mean_user()
    assert_array_equal(more.block(np.arange(5)), e.block(np.arange(5)))
    mean = e.H @ e.U.mean(axis=0) + e.b.mean() + e.c
    if head:
        mean = mean + np.maximum(e.head.P + e.head.Q.mean(axis=0), 0) @ e.head.w
    assert_allclose(more.block(np.array([5]))[:, 0], expit(mean), atol=1e-6)


@pytest.mark.parametrize("M", [1, 2, 5])
def test_average_is_the_mean_of_logits(M):
    "Over members of different width, some with a head."
    rng = np.random.default_rng(M)
    members = [as_embeddings(rng, 8, 6, k=2 + m, d=1 + m, head=m % 2 == 0) for m in range(M)]
    users, one = np.arange(6), average(members)
    expected = np.mean([logit(o.block(users).astype(float)) for o in members], axis=0)
    assert_allclose(logit(one.block(users).astype(float)), expected, atol=1e-4)
    assert_allclose(one.with_mean_user().U[-1], one.U.mean(axis=0), atol=1e-6)
    assert {o.dtype for o in (one.H, one.c, one.U, one.b, *one.head)} == {np.dtype(np.float32)}
    if M == 1:
        assert_array_equal(one.block(users), members[0].block(users))


# --- training


def test_every_weight_decays(made):
    "Without gradients nothing but the decay moves a weight, shared or a user's, and none where it is 0."
    X, pairs, _ = made
    model = ItemUserModel(X.shape[1], len(pairs.users), X.shape[0], OPTIONS["all"])
    for decay in (0.5, 0.0):
        optimizer = make_optimizer(model, TrainConfig(weight_decay=decay, learning_rate=0.01), 1)
        before = {k: o.clone() for k, o in model.state_dict().items()}
        for o in model.parameters():
            o.grad = torch.zeros_like(o)
        optimizer.step()
        for name, o in model.state_dict().items():
            assert torch.equal(o, before[name]) == (decay == 0 or not before[name].any()), name
    shared, users = (group["params"] for group in optimizer.param_groups)
    assert {id(o) for o in users} == {id(dict(model.named_parameters())[name]) for name in USER_TABLES}
    assert len(shared) + len(users) == len(list(model.parameters()))


@EACH_OPTION
def test_one_seed_one_model(made, config):
    "Bit for bit, with several threads at work."
    X, pairs, S = made
    many = Interactions(  # enough for threads to share out
        *(np.tile(o, 40) for o in (pairs.user, pairs.item, pairs.rating, pairs.y)), pairs.users, pairs.items
    )
    short = TrainConfig(epochs=1, batch_size=20_000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        one, two, three = (weights(train(X, many, None, config, short, 3, False, S).model) for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    for name in one:
        assert_array_equal(one[name], two[name])
        assert_array_equal(one[name], three[name])


# --- the recommender


@EACH_OPTION
@pytest.mark.parametrize("ensemble", [1, 3])
def test_saved_and_loaded(world, tmp_path, config, ensemble):
    "Weights of every member, and every score, come back as they were; strangers are the mean user."
    quick = {"graph": GraphConfig(k=5), "model": config, "training": TrainConfig(epochs=2)}
    r = CorrectSmoothRecommender(**quick, ensemble=ensemble, seed=4, progress=False).fit(world)
    r.save(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "weights.safetensors")
    assert {o.partition(".")[0] for o in stored} == {str(m) for m in range(ensemble)}
    back = CorrectSmoothRecommender.load(tmp_path / "model")
    assert len(back.models_) == back.ensemble == ensemble
    for one, two in zip(r.models_, back.models_, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    pd.testing.assert_frame_equal(back.recommend(), r.recommend(), check_exact=True)
    with pytest.warns(UserWarning, match="user 'nobody' is unknown"):
        stranger = [o.predict(["nobody"] * 5, r.items_[:5]) for o in (r, back)]
    pd.testing.assert_frame_equal(*stranger, check_exact=True)
    assert_array_equal(stranger[0]["base"], stranger[0]["refined"])


def test_members_are_single_models(world):
    "Member m is what training from seed + m gives, and base scores are the mean of their logits."
    quick = {"graph": GraphConfig(k=5), "model": OPTIONS["all"], "progress": False, "validation": 0.0}
    quick["training"] = TrainConfig(epochs=2)
    three = CorrectSmoothRecommender(**quick, ensemble=3, seed=5).fit(world)
    alone = [CorrectSmoothRecommender(**quick, ensemble=1, seed=5 + m).fit(world) for m in range(3)]
    for member, single in zip(three.models_, alone, strict=True):
        one, two = weights(member), weights(single.models_[0])
        assert all((one[o] == two[o]).all() for o in one)
    users, items = world.ratings["user_id"][:50], world.ratings["item_id"][:50]
    expected = np.mean([logit(o.predict(users, items)["base"].to_numpy(float)) for o in alone], axis=0)
    assert_allclose(logit(three.predict(users, items)["base"].to_numpy(float)), expected, atol=1e-4)


def test_watched_run_has_no_graph_of_what_it_is_watched_by(world, monkeypatch):
    "With `sage`, ratings to stop by are not in the graph that the watched run trains on."
    graphs = []

    def spy(*args, **named):
        graphs.append(named["S"])
        return train(*args, **named)

    monkeypatch.setattr("correct_smooth.recommender.train", spy)
    config = {"graph": GraphConfig(k=5), "training": TrainConfig(epochs=2), "progress": False}
    r = CorrectSmoothRecommender(**config, model=OPTIONS["sage"], ensemble=1, validation=0.1).fit(world)
    X = r.features_.transform(world.movies)
    inner, _ = split(world, holdout(world.ratings, r.validation, r.seed))
    for S, part in zip(graphs, (inner, world), strict=True):
        expected = normalise(item_graph(X, r.features_.blocks_, index_ratings(part), r.graph))
        assert (S != expected).nnz == 0
    assert (graphs[0] != graphs[1]).nnz


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", 1001])
def test_wrong_ensembles_are_refused(world, value):
    with pytest.raises(InputError, match="ensemble must be a whole number from 1 to 1000"):
        CorrectSmoothRecommender(ensemble=value).fit(world)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ModelConfig, {"encoder": "gcn"}),
        (ModelConfig, {"head": None}),
        (ModelConfig, {"head_dim": 0}),
        (TrainConfig, {"target": "stars"}),
        (TrainConfig, {"weight_decay": -1e-4}),
        (TrainConfig, {"weight_decay": float("nan")}),
    ],
)
def test_wrong_settings_are_refused(kind, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        kind(**wrong)
