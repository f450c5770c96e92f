"""What watch scores cost: learning weights and scoring everybody, step by step, with seconds and peak memory.

    python tools/bench_watch.py --out watch.json    # at the size of the demo, and of MovieLens 1M
    python tools/bench_watch.py --shape 32m --folder world --out watch.json  # some minutes on two cores

Made-up worlds, as `bench_scale.py` makes them, in a temporary folder or in --folder, where a world is found
again the next time. Lists are made for --users users, with scores of liking drawn at random.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numba
import numpy as np
from bench_scale import MOVIES, RATINGS, USERS, Stages

from correct_smooth import watch
from correct_smooth.correct_smooth import user_blocks
from correct_smooth.dataset import index_ratings
from correct_smooth.features import MovieFeatures
from correct_smooth.sources import load_data
from correct_smooth.synthetic import write_synthetic
from correct_smooth.topn import top_n

SHAPES = {"demo": (671, 9_066, 100_004), "1m": (6_040, 3_700, 1_000_209), "32m": (USERS, MOVIES, RATINGS)}


@contextmanager
def step_seconds() -> Iterator[dict[str, float]]:
    "Seconds in the steps of learning, filled in as they are done."
    spent = dict.fromkeys(("gram", "inverse", "weights", "selection"), 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            found = function(*args, **named)
            spent[name] += time.perf_counter() - begin
            return found

        return call

    def passed(columns: Iterator[Any]) -> Iterator[Any]:
        advance = timed("weights", lambda: next(columns, None))
        while (found := advance()) is not None:
            yield found

    select = watch.largest_weights
    with ExitStack() as stack:
        for name, step in (("gram", "gram"), ("inverse_in_place", "inverse")):
            stack.enter_context(patch.object(watch, name, timed(step, getattr(watch, name))))
        selection = timed("selection", lambda columns, *rest: select(passed(columns), *rest))
        stack.enter_context(patch.object(watch, "largest_weights", selection))
        yield spent
    spent["selection"] -= spent["weights"]
    spent["weights"] -= spent["gram"] + spent["inverse"]


def measure(folder: Path, shape: str, config: watch.WatchConfig, users: int) -> dict[str, Any]:
    "All stages, on the world in the folder."
    stage = Stages()
    if not (folder / "ratings.parquet").exists():
        with stage("write synthetic"):
            words = {"theme_words": 3_750, "plot_words": 36}
            write_synthetic(folder, *SHAPES[shape], seed=0, **words)
    with stage("load") as facts:
        pairs = index_ratings(load_data(folder))
        facts |= {"users": len(pairs.users), "movies": len(pairs.items), "ratings": len(pairs)}
    with stage("content neighbours") as facts:
        X = MovieFeatures(max_terms=30_000).fit(pairs.movies).transform(pairs.movies)
        S = watch.content_neighbours(X, config.k)
        facts |= {"edges": S.nnz}
    with stage("learn") as facts, step_seconds() as spent:
        learned = watch.fit_watch(pairs, S, config)
        facts |= {"weights": learned.B.nnz}
    stage.rows["learn"] |= {name: round(seconds, 2) for name, seconds in spent.items()}
    print(f"{'':24}" + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items()), flush=True)
    some = np.random.default_rng(0).permutation(len(pairs.users))[:users]
    learned.block(some[:1])  # what is made on first use is made now
    with stage("lists") as facts:
        for at in user_blocks(len(some), len(pairs.items)):
            Q = learned.block(some[at])
            if at.start == 0:
                P = np.random.default_rng(1).random(Q.T.shape, np.float32).T
            score = watch.list_score(Q, P[:, : Q.shape[1]], config.liking)
            top_n(score, 10, np.zeros(len(Q), bool), learned.M[:, some[at]])
        facts |= {"users": len(some)}
    rate = round(len(some) / max(stage.rows["lists"]["seconds"], 0.01))
    stage.rows["lists"]["users_per_second"] = rate
    print(f"{'':24}{rate:,} users a second", flush=True)
    return stage.rows


def main() -> None:
    "Read the command line, measure, write the JSON."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_watch.json"), help="where the JSON goes")
    parser.add_argument("--folder", type=Path, help="keep the made-up world of one shape here")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["demo", "1m"], help="which worlds")
    parser.add_argument("--head", type=int, default=watch.WatchConfig.head, help="movies to learn from")
    parser.add_argument(
        "--weights", type=int, default=watch.WatchConfig.weights, help="to keep for each movie"
    )
    parser.add_argument("--users", type=int, default=20_000, help="users to make lists for")
    args = parser.parse_args()
    config, found = watch.WatchConfig(head=args.head, weights=args.weights), {}
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as d:
            found[shape] = measure(args.folder or Path(d) / "world", shape, config, args.users)
    packages = ("correct_smooth", "numpy", "scipy", "numba", "sparse_dot_topn")
    machine = {
        "cores": os.cpu_count(),
        "threads": numba.get_num_threads(),
        "python": platform.python_version(),
    }
    told = {**machine, "versions": {name: version(name) for name in packages}, "shapes": found}
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
