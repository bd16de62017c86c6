"""From a data set to batches of views. Read in this order.

1. `settings.py`: what the user can say.
2. `sources/open.py`: a name, path, address or object becomes a `Source`, a stream of undecoded records. Of a folder
   `resolve.py` finds splits and files as `datasets` does, `readings.py` says what was understood, `local.py` reads.
3. `order/reader.py`, `order/stream.py`: records in training order, and their batches.
4. `order/ordered.py`, `order/rows.py`: records in the order of the files, for evaluation and features.
5. `decode/`: the bytes of a record become an RGB picture, or a reason why not.
6. `views/recipes.py`, `views/draws.py`, `views/cpu.py`: a picture becomes two views; `views/device*.py` do the same on
   the device that trains.
"""
