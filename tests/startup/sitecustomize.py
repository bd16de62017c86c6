"""Runs in every Python that a test starts: a third of the time of a small program is garbage collection.

Importing torch and transformers makes objects that stay; collecting them takes a second at the start and more than one
at the end. The tests start some two hundred programs that live for seconds and need no collector. Triton says at the
end that objects leak: a test that reads every line of standard error leaves `PYTHONPATH` out.
"""

import atexit
import gc

gc.disable()
atexit.register(gc.freeze)  # the first to be registered runs last
