"""Draw nbs/card.png, the picture that goes with a link to the site: python tools/card.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PLACES = {
    "a": (8.2, 3.1),
    "b": (9.6, 4.6),
    "c": (10.9, 3.5),
    "d": (9.9, 1.7),
    "e": (11.2, 5.3),
    "f": (7.6, 4.9),
}
RATED = {"a": "tab:orange", "c": "tab:blue", "f": "tab:orange"}  # liked and not liked
EDGES = ("ab", "bc", "ad", "cd", "be", "ce", "af", "bf")

fig = plt.figure(figsize=(12, 6.3), dpi=100)
ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 6.3))
ax.axis("off")
for start, end in EDGES:
    ax.plot(*zip(PLACES[start], PLACES[end], strict=True), color="0.7", lw=3, zorder=1)
for name, place in PLACES.items():
    ax.scatter(*place, s=1500, color=RATED.get(name, "0.85"), edgecolor="white", lw=3, zorder=2)
ax.text(0.6, 4.3, "Correct and Smooth", size=42, weight="bold", va="center")
ax.text(
    0.6, 2.6, "Movie recommendations,\ncorrected by each user's ratings\nover a graph of similar movies",
    size=24, color="0.3", va="center", linespacing=1.4,
)  # fmt: skip
fig.savefig(Path(__file__).parents[1] / "nbs" / "card.png", metadata={"Software": None})
