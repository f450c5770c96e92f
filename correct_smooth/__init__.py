"""Movie recommendations from content and tastes, corrected and smoothed over a movie graph."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .any_model import correct_and_smooth, graph_of, refined_blocks
    from .audience import AudienceConfig
    from .correct_smooth import CorrectAndSmooth
    from .checks import InputError
    from .data import MovieData, movie_data
    from .dataset import Dataset, holdout, split
    from .diffusion import Diffusion
    from .experiment import run
    from .features import MovieFeatures
    from .graph import GraphConfig
    from .model import ModelConfig
    from .ready import forget_saved
    from .recommender import CorrectSmoothRecommender, from_preset
    from .sources import load_data
    from .titles import movie_id
    from .tracking import LogEpochs
    from .train import TrainConfig
    from .validation import cross_validate, hold_back
    from .watch import WatchConfig

__version__ = "0.1.0"

__all__ = [
    "AudienceConfig",
    "CorrectAndSmooth",
    "CorrectSmoothRecommender",
    "Dataset",
    "Diffusion",
    "GraphConfig",
    "InputError",
    "LogEpochs",
    "ModelConfig",
    "MovieData",
    "MovieFeatures",
    "TrainConfig",
    "WatchConfig",
    "correct_and_smooth",
    "cross_validate",
    "forget_saved",
    "from_preset",
    "graph_of",
    "hold_back",
    "holdout",
    "load_data",
    "movie_data",
    "movie_id",
    "refined_blocks",
    "run",
    "split",
]

_HOMES = {
    "any_model": ["correct_and_smooth", "graph_of", "refined_blocks"],
    "audience": ["AudienceConfig"],
    "correct_smooth": ["CorrectAndSmooth"],
    "checks": ["InputError"],
    "data": ["MovieData", "movie_data"],
    "dataset": ["Dataset", "holdout", "split"],
    "diffusion": ["Diffusion"],
    "experiment": ["run"],
    "features": ["MovieFeatures"],
    "graph": ["GraphConfig"],
    "model": ["ModelConfig"],
    "ready": ["forget_saved"],
    "recommender": ["CorrectSmoothRecommender", "from_preset"],
    "sources": ["load_data"],
    "titles": ["movie_id"],
    "tracking": ["LogEpochs"],
    "train": ["TrainConfig"],
    "validation": ["cross_validate", "hold_back"],
    "watch": ["WatchConfig"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    "Import a name when it is first asked for: a command's --help need not wait for torch."
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    "What there is, for Tab."
    return __all__
