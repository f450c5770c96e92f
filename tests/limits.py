"""What a test takes away from the system for a while."""

import resource
from contextlib import contextmanager


@contextmanager
def largest_file(n_bytes):
    "The system refuses to let any file grow beyond this; Python ignores the signal, so an error remains."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
