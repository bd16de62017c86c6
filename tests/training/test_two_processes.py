"""What processes must agree on, in two real ones: one start for all checks, because starting takes seconds."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import together
from test_diagnosis import batch, small_byol

from hf_ssl.training.watch.diagnosis import diagnose

PROGRAM = """
    import gc, json, os, signal, sys
    from pathlib import Path

    import torch
    from accelerate import Accelerator

    from hf_ssl.data.settings import DataSettings
    from hf_ssl.methods import METHODS
    from hf_ssl.training import loop
    from hf_ssl.training.arguments import TrainingSettings
    from hf_ssl.training.find import complete_checkpoints
    from hf_ssl.training.watch.loss import LossMonitor
    from hf_ssl.training.processes import average_batch_norm, averaged_batch_norm, start_accelerator

    folder, number = Path(sys.argv[1]), int(os.environ["RANK"])
    data = DataSettings(dataset="digits", view_recipe="simclr", num_workers=0, shuffle_window=100)
    seen = {}

    # Keeps the group of processes alive over several runs.
    accelerator = start_accelerator(TrainingSettings(output_dir=str(folder), num_steps=1))
    end_training = Accelerator.end_training
    seen["sharing"] = []  # what shares gradients at the end of a run, which must be gone before the group is

    def end(self):
        seen["sharing"].append(sum(type(one).__name__ == "DistributedDataParallel" for one in gc.get_objects()))

    Accelerator.end_training = end
    seen["num_processes"] = accelerator.num_processes

    def run(name, method="directpred", spoil=None, **values):
        torch.manual_seed(0)
        small = {"architecture": "test_resnet", "image_size": 16, "projection_dim": 16}
        model = METHODS[method](METHODS[method].config_class(**small))
        if spoil is not None:
            spoil(model)
        options = {"batch_size": 8, "num_steps": 20, "log_every": 5, "checkpoint_every": 5, "keep_checkpoints": 9}
        settings = TrainingSettings(**{"output_dir": str(folder / name), **options, **values})
        return model, loop.train(model, data.open(), data, settings)

    # BatchNorm statistics differ while training and are averaged for what is published.
    module = torch.nn.BatchNorm2d(2)
    module.running_mean.fill_(float(number))
    with averaged_batch_norm(module):
        seen["averaged"] = module.running_mean.tolist()
    seen["own"] = module.running_mean.tolist()
    average_batch_norm(module)
    seen["kept"] = module.running_mean.tolist()

    # Local BatchNorm: the second process's state is its own in the checkpoint, and equal in the end.
    model, _ = run("local", num_steps=6)
    state = torch.load(folder / "local" / "checkpoints" / "step-000005" / "process-00001.pt", weights_only=True)
    seen["own_buffers"] = sorted(state["buffers"])
    seen["weights"] = {name: float(value.double().sum()) for name, value in model.state_dict().items()}
    seen["frozen"] = sorted({name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad})

    # More processes than the lanes of a run can be shared among are refused, and change nothing.
    before = sorted((folder / "local").rglob("*"))
    try:
        run("local", num_steps=6, lanes=1, resume="auto")
    except ValueError as error:
        seen["refused"] = str(error)
    seen["untouched"] = sorted((folder / "local").rglob("*")) == before

    # A diagnosis of two halves of a batch.
    sys.path.insert(0, sys.argv[2])
    from test_diagnosis import batch, small_byol
    from hf_ssl.training.watch.diagnosis import diagnose

    found = diagnose(small_byol(), batch(slice(8 * number, 8 * number + 8)))
    seen["diagnosis"] = [found.figures, found.curves]

    # The same method with its choice overruled: synchronised statistics belong to no process.
    run("sync", num_steps=5, batch_norm="sync")
    state = torch.load(folder / "sync" / "checkpoints" / "step-000005" / "process-00001.pt", weights_only=True)
    seen["own_buffers_sync"] = sorted(state["buffers"])

    # A loss that is no number on one process stops both with the same sentence, before a checkpoint is written.
    def spoil(model):
        forward, calls = model.forward, []

        def spoilt(**inputs):
            calls.append(1)
            output = forward(**inputs)
            if number == 1 and len(calls) == 7:
                output.loss = output.loss * float("nan")
            return output

        model.forward = spoilt

    try:
        run("spoilt", method="simsiam", spoil=spoil, log_every=100)
    except ValueError as error:
        seen["error"] = str(error)
    seen["saved"] = [path.name for path in complete_checkpoints(folder / "spoilt")]

    # A signal that only one process receives ends both after the same step.
    def interrupt(model):
        if number == 1:
            model.after_optimizer_step = lambda step, n: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None

    _, result = run("stopped", method="simsiam", spoil=interrupt, log_every=100, checkpoint_every=100)
    seen["stopped"] = [result.step, result.signal]
    (folder / f"seen-{number}.json").write_text(json.dumps(seen))
    end_training(accelerator)
"""


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, together.__file__, program, tmp_path, Path(__file__).parent / "watch"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"seen-{number}.json").read_text()) for number in (0, 1))

    assert first["num_processes"] == second["num_processes"] == 2
    assert first["sharing"] and set(first["sharing"]) == {0} == set(second["sharing"])
    assert first["averaged"] == second["averaged"] == [0.5, 0.5]
    assert (first["own"], second["own"]) == ([0.0, 0.0], [1.0, 1.0])
    assert first["kept"] == second["kept"] == [0.5, 0.5]

    assert first["weights"] == second["weights"]
    assert first["own_buffers"] == second["own_buffers"]
    assert "encoder.bn1.running_mean" in first["own_buffers"]
    # The correlation is of all processes, so it is not in the second one's own state.
    assert all("running" in name for name in first["own_buffers"])

    assert "must divide `lanes`" in first["refused"] and first["refused"] == second["refused"]
    assert first["untouched"] and second["untouched"]

    # The first process has the numbers of the whole batch.
    whole = diagnose(small_byol(), batch(slice(0, 16)))
    assert first["diagnosis"][0] == pytest.approx(whole.figures, rel=1e-6, abs=1e-9)
    assert first["diagnosis"][1] == {name: pytest.approx(curve, rel=1e-4) for name, curve in whole.curves.items()}
    assert second["diagnosis"] == [{}, {}]

    assert first["own_buffers_sync"] == []

    assert "not finite at step 7 on process 1" in first["error"] and first["error"] == second["error"]
    assert "step-000005" in first["error"]
    assert first["saved"] == second["saved"] == ["step-000005"]
    # At the agreement that follows, which is the sooner the slower the steps are.
    assert first["stopped"] == second["stopped"]
    assert 3 <= first["stopped"][0] <= 13 and first["stopped"][1] == 15
