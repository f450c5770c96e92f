"""Two releases side by side: seconds of a fit, a run, a list and a help text, in turn.

    git worktree add ../before RELEASE
    python tools/bench_releases.py ../before . --out releases.json  # half an hour for a slow release
    python tools/bench_releases.py ../before . --data the-movies-dataset --runs 3 --only run help

Every measurement is a process of its own, with one checkout first on its path; the releases take turns, so
that whatever else the machine does meets both. Medians, and the median of the ratios of neighbouring runs.
`--only stacks` samples the stack of a fit every five milliseconds, of each release once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIT = """
import json, sys, threading, time
from collections import Counter
from correct_smooth import CorrectSmoothRecommender, load_data
from correct_smooth.dataset import index_ratings

source, sampled = sys.argv[1], sys.argv[2] == "stacks"
small = index_ratings(load_data("synthetic"))
CorrectSmoothRecommender(progress=False).fit(small)  # what is compiled is compiled now
data = index_ratings(load_data(source))
stacks, over, main = Counter(), threading.Event(), threading.main_thread().ident

def sample():
    while not over.wait(0.005):
        names, frame = [], sys._current_frames()[main]
        while frame is not None:
            names.append(f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_name}")
            frame = frame.f_back
        stacks[";".join(names[::-1])] += 1

if sampled:
    threading.Thread(target=sample, daemon=True).start()
begin, cpu = time.perf_counter(), time.process_time()
CorrectSmoothRecommender(progress=False).fit(data)
found = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
over.set()
print(json.dumps(found | ({"stacks": stacks} if sampled else {})))
"""
COMMAND = "import sys; from correct_smooth import shell; sys.argv[0] = '{0}'; shell.{0}()"


def run(release: Path, code: str, *args: str, folder: Path) -> tuple[float, str]:
    "Seconds of a process that a release runs, and what it prints."
    path = os.environ | {"PYTHONPATH": str(release), "TQDM_DISABLE": "1"}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=path, cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{release}: {done.stderr[-2000:]}")
    return time.perf_counter() - begin, done.stdout


def fit(release: Path, source: str, folder: Path) -> float:
    "Seconds of a fit, in a process that has compiled everything."
    return json.loads(run(release, FIT, source, "time", folder=folder)[1])["seconds"]


def command(release: Path, name: str, *args: str, folder: Path) -> float:
    "Seconds from typing a command to its end."
    return run(release, COMMAND.format(name), *args, folder=folder)[0]


def own_folder(release: Path, folder: Path) -> str:
    "Where a release writes."
    return str(folder / "-".join(release.parts[-2:]))


def jobs(folder: Path, data: Path | None) -> dict:
    "name -> a function of a release that gives seconds."
    found = {"fit, demo": lambda r: fit(r, "demo", folder)}
    if data is not None:
        found["fit, data"] = lambda r: fit(r, str(data.resolve()), folder)
    found["fit, a million ratings"] = lambda r: fit(r, str(folder / "million"), folder)
    found["run, demo"] = lambda r: command(r, "cs_run", "--out", own_folder(r, folder), folder=folder)
    found["list, one user"] = lambda r: command(
        r, "cs_recommend", "--model", own_folder(r, folder) + "/model", "--user", "7", folder=folder
    )
    found["help"] = lambda r: command(r, "cs_recommend", "--help", folder=folder)
    return found


def compared(before: Path, now: Path, job, runs: int) -> dict[str, float]:
    "Median seconds of both, and the median ratio."
    pairs = [(job(before), job(now)) for _ in range(runs)]
    ratio = statistics.median(a / b for a, b in pairs)
    return {
        "before": statistics.median(a for a, _ in pairs),
        "now": statistics.median(b for _, b in pairs),
        "times": ratio,
        "runs": runs,
    }


def folded(stacks: dict[str, int], depth: int = 5) -> dict[str, int]:
    "Samples by the functions of the package, and what these call at last."
    found: dict[str, int] = {}
    for stack, n in stacks.items():
        names = stack.split(";")
        own = [name.removeprefix("correct_smooth.") for name in names if name.startswith("correct_smooth.")]
        start = next((k for k, name in enumerate(own) if name.endswith(".fit")), 0)
        key = ";".join(own[start : start + depth])
        found[key] = found.get(key, 0) + n
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def main() -> None:
    "Read the command line, measure, write the JSON."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout of a release")
    parser.add_argument("now", type=Path, help="checkout of another")
    parser.add_argument("--data", type=Path, help="a folder of data to fit as well")
    parser.add_argument("--runs", type=int, default=5, help="of each, in turn")
    parser.add_argument("--only", nargs="*", default=[], help="words that the names of jobs hold, or stacks")
    parser.add_argument("--out", type=Path, default=Path("bench_releases.json"), help="where the JSON goes")
    args = parser.parse_args()
    before, now, told = args.before.resolve(), args.now.resolve(), {}
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        size = "6040, 3900, 1_000_000, seed=0, theme_words=3750, plot_words=36"
        made = f"from correct_smooth.synthetic import write_synthetic; write_synthetic('million', {size})"
        run(now, made, folder=folder)
        for name, job in jobs(folder, args.data).items():
            if not args.only or any(word in name for word in args.only):
                told[name] = compared(before, now, job, args.runs)
                print(f"{name:28}", *(f"{k} {v:.3g}  " for k, v in told[name].items()), flush=True)
        if not args.only or "stacks" in args.only:
            for name, release in (("before", before), ("now", now)):
                found = json.loads(run(release, FIT, str(folder / "million"), "stacks", folder=folder)[1])
                told[f"stacks, {name}"] = found | {"stacks": folded(found["stacks"])}
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
