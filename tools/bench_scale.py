"""From files to a top ten at the size of MovieLens 32M, stage by stage, with seconds and peak memory.

    python tools/bench_scale.py --out scale.json            # some ten minutes on two cores
    python tools/bench_scale.py --scale 0.01 --out small.json

A made-up world of that shape (200,948 users, 87,585 movies, 32,000,204 ratings, long tails on both sides)
is written to a temporary folder, or to --folder, where it is found again the next time. Each stage is one
call of the package; its peak memory is that of the whole process while it ran (Linux; elsewhere the peak
so far).
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from correct_smooth.correct_smooth import CorrectAndSmooth, Operators, Scorer, label_matrix
from correct_smooth.dataset import Dataset, holdout, index_ratings, split, targets
from correct_smooth.embeddings import average
from correct_smooth.evaluate import compare, user_metrics
from correct_smooth.features import MovieFeatures
from correct_smooth.graph import GraphConfig, corating_knn, item_graph, symmetrise
from correct_smooth.model import embeddings
from correct_smooth.sources import load_data
from correct_smooth.synthetic import write_synthetic
from correct_smooth.tables import write_rows
from correct_smooth.topn import Ranking, top_blocks
from correct_smooth.train import TrainConfig, train

USERS, MOVIES, RATINGS = 200_948, 87_585, 32_000_204
STATUS = Path("/proc/self/status")


def forget_peak() -> None:
    "Start measuring peak memory afresh, where the system can."
    if STATUS.exists():
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass


def peak_gigabytes() -> float:
    "Peak memory of this process since `forget_peak`, or since its start."
    if STATUS.exists():
        (kilobytes,) = (o.split()[1] for o in STATUS.read_text().splitlines() if o.startswith("VmHWM"))
        return int(kilobytes) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Stages:
    "Seconds, peak memory and a few facts of each stage, printed as they come."

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[dict[str, Any]]:
        facts: dict[str, Any] = {}
        forget_peak()
        begin = time.perf_counter()
        yield facts
        seconds = time.perf_counter() - begin
        self.rows[name] = {"seconds": round(seconds, 2), "peak_gb": round(peak_gigabytes(), 2), **facts}
        told = ", ".join(f"{k} {v:,}" for k, v in facts.items())
        print(f"{name:24}{seconds:9.1f} s {self.rows[name]['peak_gb']:7.2f} GB   {told}", flush=True)


def measure(folder: Path, scale: float, epochs: int, ensemble: int, seed: int = 0) -> dict[str, Any]:
    "All stages, on the world in the folder."
    stage = Stages()
    if not (folder / "ratings.parquet").exists():
        with stage("write synthetic"):
            size = (int(USERS * scale), int(MOVIES * min(1, 4 * scale)), int(RATINGS * scale))
            write_synthetic(folder, *size, seed=seed, theme_words=3_750, plot_words=36)
    with stage("load") as facts:
        data = load_data(folder)
        facts |= {"users": data.counts()["users"], "movies": len(data.movies), "ratings": len(data.ratings)}
    with stage("split and index"):
        whole = index_ratings(data)
        pairs, test = split(whole, holdout(whole, 0.2, seed))
        del data, whole
    with stage("features") as facts:
        features = MovieFeatures(max_terms=30_000).fit(pairs.movies)
        X = features.transform(pairs.movies)
        facts |= {"features": X.shape[1], "nonzeros": X.nnz}
    config = GraphConfig()
    with stage("content graph") as facts:
        content = item_graph(X, features.blocks_, pairs, replace(config, corating=0))
        facts |= {"edges": content.nnz}
    with stage("co-rating graph") as facts:
        A = content + symmetrise(corating_knn(pairs, config.corating_k, config.corating_shrinkage))
        facts |= {"edges": A.nnz}
    with stage("training"):
        members = [
            train(X, pairs, config=TrainConfig(epochs=epochs), seed=seed + o, progress=False).model
            for o in range(ensemble)
        ]
    rate = int(len(pairs) * epochs * ensemble / stage.rows["training"]["seconds"])
    stage.rows["training"] |= {"epochs": epochs, "models": ensemble, "ratings_per_second": rate}
    print(f"{'':24}{rate:,} ratings a second")
    with stage("prepare scoring"):
        model = average([embeddings(o, X) for o in members]).with_mean_user()
        shape = (len(pairs.items), len(pairs.users) + 1)
        Y = label_matrix(pairs.user, pairs.item, targets(pairs, "margin"), shape)
        rules = CorrectAndSmooth()
        scorer = Scorer(model, Y, Operators(A), rules)
        assert (
            scorer.graph.with_self_by_column.nnz == scorer.graph.with_self.nnz
        )  # made now, not on first use
    with stage("refine test pairs") as facts:
        base, refined = scorer.pairs(test.user, test.item)
        facts |= {"pairs": len(test)}
    with stage("per-user metrics"):
        before, after = (user_metrics(test.user, test.y, o, len(test.users)) for o in (base, refined))
        result = compare(before, after)
    auc = result.loc["roc_auc"]
    print(f"{'':24}ROC AUC {auc['base']:.4f}, refined {auc['refined']:.4f}")
    with stage("top 10 to Parquet") as facts:
        write_top(scorer, pairs, folder / "top10.parquet")
        facts |= {"users": len(pairs.users)}
    (folder / "top10.parquet").unlink()
    return {"stages": stage.rows, "roc_auc": {o: round(float(auc[o]), 5) for o in ("base", "refined")}}


def write_top(scorer: Scorer, pairs: Dataset, path: Path, n: int = 10) -> None:
    "The best unseen movies of every user, block by block."
    everyone, open_to_all = np.arange(len(pairs.users)), np.zeros(len(pairs.items), bool)
    with write_rows(path) as write:
        for top in top_blocks(Ranking(scorer), everyone, n, open_to_all, progress=sys.stderr.isatty()):
            ids = {"user_id": pairs.users[top.pop("place")], "item_id": pairs.items[top.pop("item")]}
            write(pd.DataFrame({**ids, **top}))


def main() -> None:
    "Read the command line, measure, write the JSON."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_scale.json"), help="where the JSON goes")
    parser.add_argument("--folder", type=Path, help="keep the made-up world here, and use it if it is there")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the users and ratings of MovieLens 32M"
    )
    parser.add_argument("--epochs", type=int, default=1, help="epochs of training")
    parser.add_argument("--ensemble", type=int, default=1, help="models to train and average")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        found = measure(args.folder or Path(d) / "world", args.scale, args.epochs, args.ensemble)
    packages = ("correct_smooth", "torch", "numpy", "scipy", "pandas", "numba", "sparse_dot_topn")
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    told = {"scale": args.scale, **machine, "versions": {o: version(o) for o in packages}, **found}
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
