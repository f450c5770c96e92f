"""Movie recommendations from content and tastes, corrected and smoothed over a film graph."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .correct_smooth import CorrectAndSmooth
    from .data import InputError, MovieData, holdout, load_data, movie_data, split
    from .features import MovieFeatures
    from .graph import GraphConfig
    from .model import ModelConfig
    from .recommender import CorrectSmoothRecommender, from_preset, run
    from .titles import movie_id
    from .train import TrainConfig

__version__ = "0.1.0"

__all__ = [
    "CorrectAndSmooth",
    "CorrectSmoothRecommender",
    "GraphConfig",
    "InputError",
    "ModelConfig",
    "MovieData",
    "MovieFeatures",
    "TrainConfig",
    "from_preset",
    "holdout",
    "load_data",
    "movie_data",
    "movie_id",
    "run",
    "split",
]

_HOMES = {
    "correct_smooth": ["CorrectAndSmooth"],
    "data": ["InputError", "MovieData", "holdout", "load_data", "movie_data", "split"],
    "features": ["MovieFeatures"],
    "graph": ["GraphConfig"],
    "model": ["ModelConfig"],
    "recommender": ["CorrectSmoothRecommender", "from_preset", "run"],
    "titles": ["movie_id"],
    "train": ["TrainConfig"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    "Import a name when it is first asked for: a command's --help need not wait for torch."
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
