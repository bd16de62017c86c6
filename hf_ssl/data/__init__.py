"""From a data set to batches of views. Read in this order.

1. `settings.py`: what the user can say.
2. `sources/open.py`: a name, path, address or object becomes a `Source`, a stream of undecoded records. `resolve.py`
   asks `datasets` what a folder is; `files.py` and `tars.py` read what lies on this machine.
3. `order/lanes.py`: which records come when. `order/chunks.py`, `order/stream.py`: they become batches of views.
4. `order/ordered.py`, `order/rows.py`: records in the order of the files, for evaluation and features.
5. `decode/`: the bytes of a record become an RGB picture, or a reason why not; `decode/device.py` does it on the
   device that trains.
6. `views/recipes.py`, `views/draws.py`, `views/cpu.py`: a picture becomes two views; `views/device*.py` do the same on
   the device that trains.
"""
