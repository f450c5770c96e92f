"How much is tried: enough to find what breaks in minutes, or at length with CORRECT_SMOOTH_LONG=1."

import os

from hypothesis import HealthCheck, settings

LONG = bool(os.environ.get("CORRECT_SMOOTH_LONG"))


def tried(short, long):
    "Settings of one property: a few inputs, always the same on every machine, or many, ever new."
    return settings(
        max_examples=long if LONG else short,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
