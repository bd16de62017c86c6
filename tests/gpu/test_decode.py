"""`--decode_on gpu`: a CUDA device decodes what the CPU decodes, and a run takes its pictures."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from devices import only_cuda
from PIL import Image

import hf_ssl
from hf_ssl.data.decode.device import DeviceDecoder
from hf_ssl.data.decode.pictures import decode, undecoded


def _jpeg(seed: int, **options) -> bytes:
    # Smooth, for nvJPEG repeats the colours that a JPEG has for each four pixels.
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    picture = cv2.resize(coarse, (61 + seed, 47), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(picture).save(file, "JPEG", **options)
    return file.getvalue()


@only_cuda
def test_pictures_are_those_of_the_cpu(device):
    files = [_jpeg(0), _jpeg(1, subsampling=0), _jpeg(2, progressive=True), _jpeg(3, quality=20)]
    made = list(DeviceDecoder(torch.device(device))(undecoded([{"bytes": one, "path": None} for one in files], 0)))
    for picture, file in zip(made, files, strict=True):
        expected = decode(file)
        assert picture.device.type == device and picture.shape == expected.shape
        # nvJPEG rounds, and enlarges colours, by its own rules.
        assert np.abs(picture.cpu().numpy().astype(int) - expected.astype(int)).mean() < 8


@only_cuda
def test_a_run_takes_them(device, tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(16):
        (folder / f"{seed}.jpg").write_bytes(_jpeg(seed))
    run = hf_ssl.pretrain(
        method="directpred",
        recipe="quickstart",
        encoder="test_resnet",
        dataset=str(folder),
        view_recipe="moco_v2",
        decode_on="gpu",
        batch_size=8,
        num_steps=2,
        num_workers=1,
        log_every=1,
        output_dir=str(tmp_path / "run"),
    )
    assert [np.isfinite(line["loss"]) for line in run.metrics if "loss" in line] == [True, True]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["decode_on"] == "gpu"
