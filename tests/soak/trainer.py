"""`hf-ssl` as it is, which also writes down a hash of every picture that it trains on.

A program of its own, so that `torchrun` and `accelerate launch` can start it; `forks.py` calls it in a process that
has imported everything already. Lines go to `$SOAK_TRACE-RANK.jsonl`: the pictures of one forward pass, in its order.
"""

import json
import os
import zlib

from hf_ssl.commands import program
from hf_ssl.data.order.stream import TrainingStream


def write_down_pictures() -> None:
    """Have every batch that leaves the stream written down before it is trained on."""
    batches = TrainingStream.__iter__

    def written_down(self):
        with open(f"{os.environ['SOAK_TRACE']}-{os.environ.get('RANK', '0')}.jsonl", "a", encoding="utf-8") as file:
            for batch in batches(self):
                pictures = [zlib.crc32(view.numpy().tobytes()) for view in batch.views]
                file.write(f"{json.dumps(pictures)}\n")
                file.flush()
                yield batch

    TrainingStream.__iter__ = written_down


if __name__ == "__main__":
    write_down_pictures()
    program()
