"""Movie recommendations from content and tastes, corrected and smoothed over a movie graph."""

__version__ = "0.1.0"
