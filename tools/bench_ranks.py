"""Training on several ranks: ratings a second, bytes on the wire, memory of users, at the size of 32M.

    cs_partition --data FOLDER --out parted  # FOLDER for instance as tools/bench_scale.py --folder leaves it
    OMP_NUM_THREADS=1 python tools/bench_ranks.py parted
    torchrun --nproc-per-node 2 tools/bench_ranks.py parted

Each rank uses one thread (torchrun's default), so that two ranks and one can be compared. Rank 0 prints one
line of JSON. Times are of `--steps` steps of an epoch, medians over steps; the slowest rank counts.
"""

import argparse
import json
import os
import resource
import time
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from correct_smooth import distributed
from correct_smooth.dataset import index_ratings
from correct_smooth.distributed import SharedTraining, shares
from correct_smooth.features import MovieFeatures
from correct_smooth.partition import load_shard
from correct_smooth.ranks import all_gather, all_reduce_sum, joined, rank, world_size


def user_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    "Memory of everything that exists once a user: weights, gradients, Adam's two means."
    tables = [model.user.weight, model.user_bias.weight]
    held = [o for t in tables for o in (t, t.grad, *optimizer.state[t].values()) if o.dim()]
    return sum(o.numel() * o.element_size() for o in held)


def measure(folder: Path, steps: int) -> dict[str, float]:
    "One rank's figures."
    begin = time.perf_counter()
    data, _ = load_shard(folder)
    pairs = index_ratings(data)
    read = time.perf_counter() - begin
    X = MovieFeatures(max_terms=30_000).fit_transform(data.movies)
    del data
    waited, took, add_up = [], [], distributed.sum_in_place

    def timed(weights: list[torch.nn.Parameter]) -> None:
        start = time.perf_counter()
        add_up(weights)
        waited.append(time.perf_counter() - start)
        took.append(start)

    training = SharedTraining(X, pairs)
    torch.manual_seed(0)
    with patch.object(distributed, "sum_in_place", timed):
        training.begin()
        cut = shares(pairs.item, training.together, training.n_ratings, training.rng)
        training.epoch_loss(islice(cut, steps + 3))
    model, optimizer = training.model, training.optimizer
    a_step = float(np.median(np.diff(took)[2:]))
    shared = sum(o.numel() for o in optimizer.param_groups[0]["params"])
    return {
        "read_s": read,
        "users": len(pairs.users),
        "all_users": int(all_reduce_sum(len(pairs.users))),
        "ratings": len(pairs),
        "batch": training.together,
        "step_s": a_step,
        "sum_gradients_s": float(np.median(waited[2:])),
        "gradient_mb": 4 * shared / 1e6,
        "user_state_mb": user_bytes(model, optimizer) / 1e6,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    "Read the command line, measure, print."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="as cs_partition wrote it")
    parser.add_argument("--steps", type=int, default=20, help="steps to time")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    with joined():
        mine = measure(args.folder, args.steps)
        every = np.array(all_gather(np.array(list(mine.values()))))
        if rank() == 0:
            told = dict(zip(mine, every.T.tolist(), strict=True))
            step = max(told["step_s"])
            told = {k: v if len(set(v)) > 1 else v[0] for k, v in told.items()}
            print(json.dumps({"ranks": world_size(), "ratings_per_second": told["batch"] / step, **told}))


if __name__ == "__main__":
    main()
