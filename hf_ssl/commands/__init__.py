"""The commands: one file each, behind `hf-ssl`, `python -m hf_ssl`, `scripts/` and the functions of `hf_ssl`.

This file knows their names alone and imports no library, so that `hf-ssl --help` answers at once.
"""

import atexit
import gc
import shlex
import sys
from collections.abc import Sequence

from hf_ssl.commands.errors import errors_for_users
from hf_ssl.errors import UserError, near_name
from hf_ssl.imports import import_modules

COMMANDS = {
    "pretrain": "pretrain an image encoder without labels, and export it for transformers and timm",
    "evaluate": "score an encoder on labelled images: k-NN, linear probes, clustering",
    "analyze": "look into encoders without labels: spectrum, ranks, alignment, uniformity, predictor",
    "extract": "write the features of a data set as a data set",
    "search": "find the nearest images by their features",
    "finetune": "train a classifier on an encoder, with all labels or few",
    "publish": "push a run to the Hugging Face Hub",
    "demo": "show what an encoder finds similar, on a page in the browser",
    "views": "draw images beside the views that a recipe makes of them",
    "study": "train several runs and compare them: methods, labels, ablation, negatives, augmentation, curriculum, "
    "dictionaries, reproduce",
    "simulate": "show why training without labels does or does not collapse: theory beside simulation",
    "methods": "list the methods: year, idea, when to use which",
    "publish_metric": "push a measure of this package to the Hub as a module of `evaluate`",
}
"""Name of each command -> what it does, in one line."""


def main(arguments: Sequence[str]) -> int:
    """Run a command line from another program, such as `main(["pretrain", "--method", "moco"])`.

    Returns:
        The exit code: 0 if all went well, 2 after an error that the user can put right, 4 if the Hub did not take a
        push, else the command's own.
    """
    from hf_ssl.invocation import called_as  # not needed by `hf-ssl --help`

    with called_as(shlex.join(["hf-ssl", *arguments])):
        return _answer(list(arguments))


def program(*words: str) -> None:
    """Run the command line of this process, and end it.

    Args:
        words: What stands before its arguments, such as the command whose script this is.
    """
    atexit.register(gc.freeze)  # the last to run: with the process ends all that Python would look at once more
    code = _answer([*words, *sys.argv[1:]])
    background = sys.modules.get("hf_ssl.hub.background")
    if code and background is not None:
        background.leave_uploads(code)  # a run that was stopped or has failed does not wait for them
    sys.exit(code)


def _answer(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with errors_for_users(debug):
            code = _dispatch(words)
            sys.stdout.flush()  # a full disk or a closed pipe is an error like any other
            return code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())  # noqa: T201
        return 0
    if words[0] == "--version":
        from hf_ssl import __version__

        print(f"hf_ssl {__version__}")  # noqa: T201
        return 0
    name = words[0].replace("-", "_")
    if name not in COMMANDS:
        raise UserError(f"Unknown command `{words[0]}`.{near_name(name, COMMANDS)} `hf-ssl --help` lists them all.")
    # The methods first: importing them tells transformers' Auto classes about them.
    return import_modules("hf_ssl.methods", f"hf_ssl.commands.{name}").COMMAND.main(words[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "Pretrain image encoders without labels, and publish them for transformers and timm.\n",
            "usage: hf-ssl COMMAND [ARGUMENT ...]\n",
            *lines,
            "\n`hf-ssl COMMAND --help` explains a command. `--debug` shows the traceback of every error.",
        ]
    )
