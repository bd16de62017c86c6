"""Runs commands of `hf-ssl` and Python code, each in a process of its own, without importing the libraries again.

An order is a line of JSON on standard input: `folder` to run in, `output` to write to, and either `arguments` of
`hf-ssl` or `code`. The answer is a line with the exit code. The processes are forked from this one, which has imported
the libraries but not hf_ssl: that comes from the folder, and code that forgets to import it fails.
"""

import atexit
import importlib
import json
import os
import sys
import traceback

LIBRARIES = (
    *("accelerate", "datasets", "matplotlib.figure", "scipy.stats", "sklearn.linear_model", "timm", "torch"),
    *("torchvision", "transformers", "transformers.pipelines", "transformers.trainer"),
)


def obey(order: dict) -> int:
    os.chdir(order["folder"])
    sys.path.insert(0, order["folder"])
    if "code" in order:
        sys.argv = ["-c"]
        exec(compile(order["code"], "<block>", "exec"), {"__name__": "__main__"})
        return 0
    sys.argv = ["hf-ssl", *order["arguments"]]
    commands = importlib.import_module("hf_ssl.commands")
    if "shapes" in order["arguments"]:  # a portrait of 2,000 of them takes seconds
        importlib.import_module("hf_ssl.evaluation.portrait").MAX_IMAGES = 100
    return commands.main(order["arguments"])


def fork(order: dict) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        code = obey(order)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    for line in sys.stdin:
        sys.stdout.write(f"{fork(json.loads(line))}\n")
        sys.stdout.flush()
