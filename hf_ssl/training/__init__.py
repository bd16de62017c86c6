"""One loop for two tasks. Read in this order.

1. `arguments.py`: what the user can say. `plan.py`: what length and learning rate it comes to.
2. `task.py`: what a run trains; `pretraining.py` is one task, `hf_ssl/fine_tuning/task.py` the other.
3. `loop.py`: the order of forward, backward, step and hook. `begin.py` comes before it: a start or a checkpoint.
4. `recorder.py`: what happens between two steps. `watch/` looks at the run, one signature for all (`watch/base.py`).
5. `record.py`: what `run.json` says. `checkpoint.py`: from which a run goes on bit for bit.
6. `optimizers.py`, `processes.py`, `limits.py`, `fit.py`: what the machine and its processes need.
7. `start.py`: weights to begin with.
"""
