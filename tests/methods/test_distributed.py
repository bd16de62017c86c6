"""Every method in 1, 2, 4 and 8 processes against one without a group; run as a script, this file starts them.

All compute in float64, so that no mistake hides behind rounding.
"""

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from steps import in_float64
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
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
# Few BatchNorms: eight processes on two cores take milliseconds for each. Two steps of 32 keys fill most of the queue,
# of 64 keys they write over the first.
TOGETHER = {
    "architecture": "tiny_for_steps",
    "image_size": 8,
    "projector_layers": 2,
    "queue_size": 72,
    "bn_splits": 8,
    "subvector_dim": 4,
}
VARIANTS = {
    "end_to_end": {"end_to_end-asymmetric": {"symmetric": False, "join_views": False}},
    "byol": {"byol-linear": {"predictor": "linear", "symmetrize": True, "use_ema": False}},
    "moco": {"moco-symmetric": {"symmetric": True}},
    "mochi": {"mochi-oracle": {"start_step": 0, "class_oracle": "mask", "symmetric": True}},
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
IMAGES = {"architecture": "test_resnet", "image_size": 32}
EQUAL = CASES | {"byol-images": ("byol", IMAGES), "moco-images": ("moco", IMAGES)}
UNEQUAL = {
    "directpred-local": ("directpred", {}, "BatchNorm takes the statistics of each process's own images"),
    "memory_bank-own": ("memory_bank", {}, "each process has its own BatchNorm, and draws entries of its own"),
    "moco-groups": ("moco", {"bn_splits": 1}, "one BatchNorm group cannot be shared by several processes"),
    "mochi-groups": ("mochi", {"bn_splits": 1}, "one BatchNorm group cannot be shared by several processes"),
}
"""Cases that their methods do not promise to be equal, and why; processes must agree with each other all the same."""
WORLDS = (1, 2, 4, 8)
STEPS = 2
BATCH_SIZE = 32  # of all processes
# Of the loss. Rounding of float64 alone gives some 1e-14; a ReLU that turns over gives more.
TOLERANCE = 1e-10


def make_model(case: str, **settings) -> SSLPreTrainedModel:
    """The method of a case; settings that it does not have are left out, and those of the case itself win."""
    name, variant = (EQUAL | UNEQUAL)[case][:2]
    config_class = METHODS[name].config_class
    own = {field.name for field in dataclasses.fields(config_class)}
    values = {"architecture": "test_resnet", "image_size": 32, **SMALL, **settings, **variant}
    torch.manual_seed(0)
    return METHODS[name](config_class(**{key: value for key, value in values.items() if key in own}))


def batch_norm_of(case: str) -> str:
    """What the case asks of BatchNorm: its method's own choice, or where only `sync` is equal, that."""
    chosen_for_equality = case in EQUAL and EQUAL[case][0] in ("directpred", "memory_bank")
    return "sync" if chosen_for_equality else METHODS[(EQUAL | UNEQUAL)[case][0]].batch_norm


def own_part() -> slice:
    size = BATCH_SIZE // distributed.world_size()
    return slice(distributed.rank() * size, (distributed.rank() + 1) * size)


def make_views(step: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    pictures = torch.randn(BATCH_SIZE, 1, 3, size, size, generator=generator)
    return (pictures + 0.5 * torch.randn(BATCH_SIZE, 2, 3, size, size, generator=generator)).double()[own_part()]


def draw_as_one_process(model: SSLPreTrainedModel) -> None:
    """Let a memory bank compare each image with the same entries, however many processes share the batch."""
    if hasattr(model, "_draw"):
        shape = (BATCH_SIZE, model.config.num_negatives)
        drawn = torch.randint(model.config.bank_size, shape, generator=torch.Generator().manual_seed(0))
        model._draw = lambda batch_size: drawn[own_part()]


def run(case: str) -> dict:
    """Two steps on this process's part of each batch: losses, first gradient, outputs, moves of weights, state."""
    model = make_model(case, **TOGETHER).double()
    network: nn.Module = model
    if case in EQUAL:
        draw_as_one_process(model)
    if dist.is_initialized():
        if batch_norm_of(case) == "sync":
            synchronize_batch_norm(model)
        with warnings.catch_warnings():
            # PyTorch 2.15 renames the argument; the library's oldest PyTorch only knows the old name.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            network = DistributedDataParallel(model, broadcast_buffers=False)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.01)
    result: dict = {"losses": [], "outputs": []}
    size = 2 if model.config.architecture == "tiny_for_steps" else model.config.image_size
    torch.manual_seed(1 + 10 * distributed.rank())  # as in training, processes draw different numbers
    for step in range(1, STEPS + 1):
        numbers = torch.arange(BATCH_SIZE)[own_part()]
        # Some images are in the batches of several processes.
        output = network(make_views(step, size), (numbers + step) % 28, numbers % 3)
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
            model = make_model("moco", architecture=architecture, bn_splits=8).double()
            _, results[architecture, shuffle] = target_outputs(
                make_views(1, 32)[:, 1], model.target_encoder, model.target_projector, bn_splits=8, shuffle=shuffle
            )
    return results


def process(rank: int, world_size: int, folder: Path, cases: list[str]) -> None:
    """Be one of the processes, walk through all cases and write what they gave."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world_size}", rank=rank, world_size=world_size)
    with in_float64():
        results = {case: run(case) for case in cases if case in EQUAL or world_size == 2}
        if world_size == 2:
            results["keys"] = shuffled_keys()
    torch.save(results, folder / f"{world_size}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def cases(request) -> list[str]:
    """Those of the tests that were asked for: judging one method trains no other."""
    own = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    named = [item.callspec.params["case"] for item in own if "case" in item.callspec.params]
    return list(dict.fromkeys(named))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, cases) -> dict[int, list[dict]]:
    """What the processes of each group computed, by their number; a process that fails ends the others."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *cases],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {
        world_size: [torch.load(folder / f"{world_size}-{rank}.pt") for rank in range(world_size)]
        for world_size in WORLDS
    }


@pytest.fixture(scope="module")
def single(cases) -> dict[str, dict]:
    """The same in this process, which has no group."""
    torch.set_num_threads(1)
    with in_float64():
        return {case: run(case) for case in cases}


def differences(results: list[dict], whole: dict) -> dict[str, float]:
    """Largest difference of each thing that processes computed from what one did, in units of the loss.

    In units of the thing itself where that is larger.
    """
    losses = [sum(each) / len(results) for each in zip(*(result["losses"] for result in results), strict=True)]
    pairs = {f"loss of step {step}": both for step, both in enumerate(zip(losses, whole["losses"], strict=True), 1)}
    pairs["outputs"] = (torch.cat([result["outputs"][0] for result in results]), whole["outputs"][0])
    for kind in ("gradient", "moved", "buffers"):
        pairs |= {f"{kind} {name}": (results[0][kind][name], tensor) for name, tensor in whole[kind].items()}
    for name, tensor in whole["statistics"].items():
        pairs[name] = (torch.stack([result["statistics"][name] for result in results]).mean(0), tensor)
    unit = abs(whole["losses"][0])
    tensors = {name: [torch.as_tensor(each) for each in both] for name, both in pairs.items()}
    return {
        name: float((found - wanted).abs().max()) / max(unit, float(wanted.abs().max()))
        for name, (found, wanted) in tensors.items()
    }


def agree(results: list[dict]) -> None:
    """Assert that processes have the same weights and buffers, bit for bit, from losses of their own."""
    first, *others = results
    for number, other in enumerate(others, start=1):
        assert first["losses"] != other["losses"]
        for kind in ("gradient", "moved", "buffers"):
            assert list(first[kind]) == list(other[kind])
            unequal = [name for name, tensor in first[kind].items() if not torch.equal(tensor, other[kind][name])]
            assert not unequal, f"{kind} of process {number} and of process 0 differ: {unequal}"


@pytest.mark.parametrize("case", EQUAL)
@pytest.mark.parametrize("number", WORLDS)
def test_processes_equal_one_with_the_whole_batch(ranks, single, number, case):
    results = [result[case] for result in ranks[number]]
    agree(results)
    found = differences(results, single[case])
    wrong = {name: f"{size:.1e}" for name, size in found.items() if not size <= TOLERANCE}
    told = f"{number} processes and one differ by more than {TOLERANCE} of the loss {single[case]['losses'][0]:.6g}"
    assert not wrong, f"{told}: {wrong}"


@pytest.mark.parametrize("case", UNEQUAL)
def test_processes_agree_where_equality_is_not_promised(ranks, single, case):
    """The reasons stand in `UNEQUAL`: were one no longer true, the method could promise more."""
    results = [result[case] for result in ranks[2]]
    agree(results)
    gradients = {name: size for name, size in differences(results, single[case]).items() if "gradient" in name}
    assert max(gradients.values()) > 1e6 * TOLERANCE, f"{case} is equal now, in spite of: {UNEQUAL[case][2]}"


def test_shuffled_keys_come_back_to_their_images(ranks):
    for rank in ranks[2]:
        torch.testing.assert_close(rank["keys"]["test_convnext", True], rank["keys"]["test_convnext", False])
        assert rank["keys"]["test_convnext", True].shape[0] == BATCH_SIZE
        # With BatchNorm, whoever shares the statistics leaves a trace: keys were really shuffled.
        assert (rank["keys"]["test_resnet", True] - rank["keys"]["test_resnet", False]).abs().max() > 1e-3
    for key, first in ranks[2][0]["keys"].items():
        assert torch.equal(first, ranks[2][1]["keys"][key])


if __name__ == "__main__":
    torch.set_num_threads(1)
    meeting, *cases_asked_for = sys.argv[1:]
    for number in WORLDS:
        # Forked: torch and transformers are imported once. A process that fails ends the others.
        start_processes(process, (number, Path(meeting), cases_asked_for), nprocs=number, start_method="fork")
