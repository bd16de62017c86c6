"""Loading and saving by transformers without its bars and reports, where this package checks the outcome itself."""

from collections.abc import Generator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Generator[None]:
    """While it is entered, transformers shows no progress bar and logs errors only; then all is as it was before."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
