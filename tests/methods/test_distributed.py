"""Every method in two processes; run as a script, this file is one of them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_ssl import distributed
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.modules.batch_norm import synchronize_batch_norm
from hf_ssl.modules.target_outputs import target_outputs

SMALL = {
    "projector_hidden_dim": 32,
    "predictor_hidden_dim": 16,
    "projection_dim": 24,
    "queue_size": 40,
    "bn_splits": 4,
    "rho": 0.3,
    "bank_size": 64,
    "num_negatives": 24,
    "num_clusters": 4,
    "subvector_dim": 24,
    "num_hard_negatives": 16,
    "num_mixed_negatives": 8,
    "num_mixed_queries": 4,
    "start_step": 1,
}
VARIANTS = {
    "end_to_end": {"end_to_end-asymmetric": {"symmetric": False, "join_views": False}},
    "byol": {"byol-linear": {"predictor": "linear", "symmetrize": True, "use_ema": False}},
    "moco": {"moco-symmetric": {"symmetric": True, "bn_splits": 2}},
    "mochi": {"mochi-oracle": {"start_step": 0, "class_oracle": "mask", "symmetric": True, "bn_splits": 2}},
    "moco_v3": {"moco_v3-cold": {"temperature": 0.2, "predictor_output_norm": True, "ema_schedule": "constant"}},
    "memory_bank": {
        "memory_bank-sampled": {"objective": "sampled", "symmetric": True},
        "memory_bank-full": {"objective": "full"},
    },
    "directpred": {
        "directpred-hybrid": {"freq": 2, "rho": None},
        "directpred-copy": {"rule": "directcopy", "use_ema": False},
    },
}
CASES = {key: (name, kw) for name in METHODS for key, kw in {name: {}, **VARIANTS.get(name, {})}.items()}
STEPS = 3
BATCH_SIZE = 8  # of one process


def make_model(case: str, **settings) -> SSLPreTrainedModel:
    name, variant = CASES[case]
    config_class = METHODS[name].config_class
    own = {field.name for field in dataclasses.fields(config_class)}
    small = {key: value for key, value in SMALL.items() if key in own}
    torch.manual_seed(0)
    return METHODS[name](
        config_class(**{"architecture": "test_resnet", "image_size": 32, **small, **variant, **settings})
    )


def make_views(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    pictures = torch.randn(2 * BATCH_SIZE, 1, 3, 32, 32, generator=generator)
    return pictures + 0.5 * torch.randn(2 * BATCH_SIZE, 2, 3, 32, 32, generator=generator)


def draw_as_one_process(model: SSLPreTrainedModel, part: slice) -> None:
    """Let a memory bank compare each image with the same entries, however many processes share the batch."""
    if hasattr(model, "_draw"):
        shape = (2 * BATCH_SIZE, model.config.num_negatives)
        drawn = torch.randint(model.config.bank_size, shape, generator=torch.Generator().manual_seed(0))
        model._draw = lambda batch_size: drawn[part]


def run(model: SSLPreTrainedModel, network: nn.Module, part: slice) -> dict:
    """Three steps on this part of each batch: losses, first gradient, outputs, how far parameters moved, state."""
    # Small steps: three of 0.05 make of weights changed by 1e-7 others that differ by 0.09, where a ReLU turns over.
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.002)
    result: dict = {"losses": [], "outputs": []}
    draw_as_one_process(model, part)
    torch.manual_seed(1 + 10 * distributed.rank())  # as in training, processes draw different numbers
    for step in range(1, STEPS + 1):
        numbers = torch.arange(2 * BATCH_SIZE)[part]
        # Some images are in the batches of both processes.
        output = network(make_views(step)[part], (numbers + step) % 12, numbers % 3)
        optimizer.zero_grad()
        output.loss.backward()
        result["losses"].append(output.loss.item())
        result["outputs"].append(torch.cat([output.representations, output.projections], dim=2))
        if step == 1:
            result["gradient"] = {
                name: parameter.grad.clone() for name, parameter in model.trainable_parameters().items()
            }
        optimizer.step()
        model.after_optimizer_step(step, STEPS)
    result["moved"] = {name: parameter.detach() - start[name] for name, parameter in model.named_parameters()}
    result["parameters"] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    result["buffers"] = dict(model.named_buffers(recurse=False))
    result["statistics"] = {
        name: buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))
    }
    return result


def shuffled_keys() -> dict:
    """What MoCo's target makes of the same images with and without shuffling."""
    results = {}
    for architecture in ("test_convnext", "test_resnet"):
        for shuffle in (True, False):
            model = make_model("moco", architecture=architecture, bn_splits=2)
            own = make_views(1)[distributed.rank() * BATCH_SIZE :][:BATCH_SIZE, 1]
            results[architecture, shuffle], _ = target_outputs(
                own, model.target_encoder, model.target_projector, bn_splits=2, shuffle=shuffle
            )
    return results


def process(rank: int, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {"keys": shuffled_keys()}
    part = slice(rank * BATCH_SIZE, (rank + 1) * BATCH_SIZE)
    for case in cases:
        model = make_model(case)
        synchronize_batch_norm(model)
        results[case] = run(model, DistributedDataParallel(model, broadcast_buffers=False), part)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def cases(request) -> list[str]:
    """Those of the tests that were asked for: judging one method trains no other."""
    own = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    return list(dict.fromkeys(item.callspec.params["case"] for item in own))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, cases) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder), *cases], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for each in processes:
            each.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def single(cases) -> dict[str, dict]:
    torch.set_num_threads(1)
    results = {}
    for case in cases:
        model = make_model(case)
        results[case] = run(model, model, slice(None))
    return results


@pytest.mark.parametrize("case", CASES)
def test_processes_agree_bit_for_bit(ranks, case):
    first, second = (rank[case] for rank in ranks)
    for kind in ("parameters", "buffers", "gradient"):
        assert list(first[kind]) == list(second[kind])
        for name, tensor in first[kind].items():
            assert torch.equal(tensor, second[kind][name]), name
    assert first["losses"] != second["losses"]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_whole_batch(ranks, single, case):
    # MoCo splits BatchNorm into the same groups, the other methods synchronise it.
    first, second, whole = ranks[0][case], ranks[1][case], single[case]
    losses = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    for step, (found, wanted) in enumerate(zip(losses, whole["losses"], strict=True), start=1):
        difference = abs(found - wanted) / abs(wanted)
        told = f"loss of step {step}: {found:.6g} and {wanted:.6g} differ by {difference:.1e} of it"
        assert difference <= 1e-3, told
    outputs = torch.cat([first["outputs"][0], second["outputs"][0]])
    close("outputs", outputs, whole["outputs"][0], atol=1e-4, rtol=1e-3)
    # A gradient is the loss by a weight of about one: what is small beside the loss is rounding.
    small = 1e-4 * max(1.0, abs(whole["losses"][0]))
    for name, gradient in whole["gradient"].items():
        close(f"gradient of {name}", first["gradient"][name], gradient, atol=small, rtol=1e-2)
    for name, moved in whole["moved"].items():
        close(f"move of {name}", first["moved"][name], moved, atol=0.8 * small, rtol=2e-2)
    for name, tensor in whole["buffers"].items():
        close(name, first["buffers"][name], tensor, atol=2e-3, rtol=2e-2)
    for name, tensor in whole["statistics"].items():
        mean = (first["statistics"][name] + second["statistics"][name]) / 2
        close(name, mean, tensor, atol=2e-3, rtol=2e-2)


def close(name: str, found: Tensor, wanted: Tensor, *, atol: float, rtol: float) -> None:
    """Assert that tensors agree; a failure says by how much they do not."""
    torch.testing.assert_close(found, wanted, atol=atol, rtol=rtol, msg=lambda numbers: f"{name}: {numbers}")


def test_shuffled_keys_come_back_to_their_images(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["keys"]["test_convnext", True], rank["keys"]["test_convnext", False])
        assert rank["keys"]["test_convnext", True].shape[0] == 2 * BATCH_SIZE
        # With BatchNorm, whoever shares the statistics leaves a trace: keys were really shuffled.
        assert (rank["keys"]["test_resnet", True] - rank["keys"]["test_resnet", False]).abs().max() > 1e-3
    for key, first in ranks[0]["keys"].items():
        assert torch.equal(first, ranks[1]["keys"][key])


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
