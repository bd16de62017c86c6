"""What the package logs, on standard error, beside progress bars."""

import logging
import os
import sys

from tqdm.auto import tqdm

from hf_ssl.tokens import without_tokens


class _BesideProgressBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(without_tokens(self.format(record)), file=sys.stderr)


def show_log(*, in_python: bool = False) -> None:
    """Print what the package logs, such as where a run resumes, on the first process only.

    A handler or level that the user gave the logger `hf_ssl` stays as it is.

    Args:
        in_python: The caller is a Python program: if it has a log of its own, its handlers print these lines, and
            nothing is printed twice.
    """
    logger = logging.getLogger(__name__.split(".")[0])
    if in_python and logging.getLogger().handlers:
        for handler in [one for one in logger.handlers if isinstance(one, _BesideProgressBars)]:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        return
    if logger.handlers or logger.level != logging.NOTSET:
        return
    logger.addHandler(_BesideProgressBars())
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
