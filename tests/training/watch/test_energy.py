import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from hf_ssl.data.settings import DataSettings
from hf_ssl.methods import METHODS
from hf_ssl.training import recorder
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.loop import train
from hf_ssl.training.watch.energy import EnergyMeter

CPU = torch.device("cpu")


def _package(folder, joules, wraps_at=1000):
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (folder / "max_energy_range_uj").write_text(f"{int(wraps_at * 1e6)}\n")


def test_processors_are_added_up_and_their_counters_may_wrap(tmp_path):
    _package(tmp_path / "intel-rapl:0", 900)
    _package(tmp_path / "intel-rapl:1", 10)
    _package(tmp_path / "intel-rapl:0:0", 5)  # the cores of package 0, which are in it already
    meter = EnergyMeter(CPU, first_on_machine=True, rapl=tmp_path)
    assert meter.parts == ["CPU"]
    assert meter.kwh() == 0
    _package(tmp_path / "intel-rapl:0", 100)  # 100 up to the wrap and 100 after it
    _package(tmp_path / "intel-rapl:1", 40)
    _package(tmp_path / "intel-rapl:0:0", 500)
    assert meter.kwh() == pytest.approx(230 / 3.6e6)
    _package(tmp_path / "intel-rapl:0", 150)
    assert meter.kwh() == pytest.approx(280 / 3.6e6)


def test_a_machine_that_does_not_tell_gives_nothing(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    for meter in (EnergyMeter(CPU, True, tmp_path), EnergyMeter(CPU, True, tmp_path / "none")):
        assert (meter.kwh(), meter.parts) == (None, [])
    _package(tmp_path / "intel-rapl:0", 1)
    assert EnergyMeter(CPU, first_on_machine=False, rapl=tmp_path).kwh() is None


def test_the_gpu_is_found_by_its_identity(tmp_path, monkeypatch, caplog):
    """No GPU is needed: NVML is a stand-in with its functions, units and error."""
    millijoules = {"GPU-abc": 5_000}

    class NVMLError(Exception):
        pass

    def handle(uuid):
        if uuid not in millijoules:
            raise NVMLError("not found")
        return uuid

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda uuid: millijoules[uuid],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = SimpleNamespace(uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    meter = EnergyMeter(torch.device("cuda", 0), True, tmp_path)
    millijoules["GPU-abc"] += 7_200_000
    assert meter.parts == ["GPU"]
    assert meter.kwh() == pytest.approx(0.002)
    read = nvml.nvmlDeviceGetTotalEnergyConsumption
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda uuid: handle("lost")  # a counter that is silent for a while
    assert [meter.kwh(), meter.kwh()] == pytest.approx([0.002, 0.002])
    assert [record.getMessage() for record in caplog.records] == [
        "The energy is not counted while its counter cannot be read: not found."
    ]
    nvml.nvmlDeviceGetTotalEnergyConsumption = read
    millijoules["GPU-abc"] += 3_600_000
    assert meter.kwh() == pytest.approx(0.003)
    properties.uuid = "other"
    assert EnergyMeter(torch.device("cuda", 0), True, tmp_path).kwh() is None


def test_a_resumed_run_adds_up_and_a_finished_one_keeps_its_energy(tmp_path, monkeypatch):
    data = DataSettings(dataset="digits", view_recipe="simclr", num_workers=0)

    def energy_after(kwh, on_checkpoint=None, **values):
        meter = SimpleNamespace(kwh=lambda: kwh, parts=[] if kwh is None else ["CPU"])
        monkeypatch.setattr(recorder, "EnergyMeter", lambda *_: meter)
        method = METHODS["simsiam"]
        options = {"batch_size": 8, "num_steps": 4, "checkpoint_every": 2, "cpu": True, **values}
        settings = TrainingSettings(output_dir=str(tmp_path / "run"), **options)
        model = method(method.config_class(architecture="test_resnet", image_size=16))
        train(model, data.open(), data, settings, on_checkpoint=on_checkpoint)
        progress = json.loads((tmp_path / "run" / "run.json").read_text())["progress"]
        return progress.get("energy_kwh"), progress.get("energy_of")

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    assert energy_after(2.0, on_checkpoint=interrupt) == (2.0, ["CPU"])
    assert energy_after(3.0, resume="auto") == (5.0, ["CPU"])
    assert energy_after(None, resume="auto") == (
        5.0,
        ["CPU"],
    )  # finished, and looked at on a machine that tells nothing
