"""BYOL (Grill et al., 2020, https://arxiv.org/abs/2006.07733), also with the linear predictors of later studies."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.description import Description, kind_of_target
from hf_ssl.modules.encoder import build_encoder
from hf_ssl.modules.heads import mlp
from hf_ssl.modules.losses import regression_loss
from hf_ssl.modules.momentum import cosine_momentum, update_target
from hf_ssl.modules.pretrained import IMAGENET_MEAN, IMAGENET_STD


@strict
class BYOLConfig(SSLConfig):
    """Settings of BYOL; the defaults are those of the paper's ResNet-50 at 1000 epochs (section 3.3).

    Args:
        projector_layers: Linear layers of the projector, at least 1.
        projector_hidden_dim: Width of the projector's hidden layers, at least 1.
        projection_dim: Width of projections and predictions, at least 1.
        projector_affine: Scale and shift in the projector's BatchNorm; the code of DirectPred's authors has none.
        projector_bias: Bias in the projector's last layer; the code of DirectPred's authors has one.
        predictor: `mlp` as in the paper, `linear` for one matrix without bias, `none` to predict by the projection.
        predictor_layers: Linear layers of an `mlp` predictor, at least 1.
        predictor_hidden_dim: Width of the hidden layers of an `mlp` predictor, at least 1.
        predictor_affine: Scale and shift in the BatchNorm of an `mlp` predictor; see `projector_affine`.
        symmetrize: Replace a `linear` predictor W by (W + W^T) / 2 after every optimizer step.
        use_ema: Predict a moving average of the network; without, the network itself behind a stop-gradient.
        stop_gradient: Stop the gradient of a target that is the network itself; without, the network collapses.
        ema_momentum: Fraction of the target that an update keeps, in [0, 1].
        ema_schedule: `cosine` raises `ema_momentum` to 1 during the run, `constant` keeps it.
        target_init: `copy` starts the target equal to the online network, `independent` from a draw of its own.
    """

    model_type = "hf_ssl_byol"

    projector_layers: int = 2
    projector_hidden_dim: int = 4096
    projection_dim: int = 256
    projector_affine: bool = True
    projector_bias: bool = False
    predictor: Literal["mlp", "linear", "none"] = "mlp"
    predictor_layers: int = 2
    predictor_hidden_dim: int = 4096
    predictor_affine: bool = True
    symmetrize: bool = False
    use_ema: bool = True
    stop_gradient: bool = True
    ema_momentum: float = 0.996
    ema_schedule: Literal["cosine", "constant"] = "cosine"
    target_init: Literal["copy", "independent"] = "copy"

    def validate_byol(self) -> None:
        """Check the settings of BYOL once, when the config is made."""
        widths = ("projector_hidden_dim", "projection_dim", "predictor_hidden_dim")
        for name in (*widths, "projector_layers", "predictor_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.ema_momentum <= 1:
            raise UserError(f"`ema_momentum` must be in [0, 1], got {self.ema_momentum}.")
        if self.symmetrize and self.predictor != "linear":
            raise UserError(
                f"`symmetrize` needs `predictor` linear, got {self.predictor}. Set it, or leave `symmetrize` off."
            )
        if not self.predictor_affine and self.predictor != "mlp":
            raise UserError(
                f"`predictor_affine` off needs `predictor` mlp, got {self.predictor}: no other has a BatchNorm. Set "
                "`predictor`, or leave `predictor_affine` on."
            )
        if self.use_ema and not self.stop_gradient:
            raise UserError(
                "`stop_gradient` must be true with `use_ema`, got false: a moving average receives no gradient. Turn "
                "`use_ema` off, or leave `stop_gradient` on."
            )


class BYOLForPreTraining(SSLPreTrainedModel):
    """An online network learns to predict the projection of another view by a moving average of itself.

    Use it when: many images show nearly the same thing, so that other images would be wrong negatives: it needs none,
    and suffers less from small batches than `end_to_end`. It keeps a second network and gains from long training.

    Relations: SimSiam is BYOL without the moving average (`use_ema` off); DirectPred is BYOL with a linear predictor
    that is set, not learned, and `predictor` linear is the baseline that it is compared with; MoCo keeps the moving
    average and replaces the predictor by negatives.

    Recipes: `paper-imagenet` is the 1000-epoch preset of the official code (google-deepmind/deepmind-research, byol)
    on 8 GPUs, `paper-imagenet-300` that of 300 epochs. Deviation: timm starts the last BatchNorm of each residual
    block at zero, which the official code leaves to its users; `--model_args '{"zero_init_last": false}'` starts it at
    one. `cifar` is the 200-epoch benchmark of lightly-ai/lightly (cifar10_benchmark.py: 0.869 k-NN with batches of
    128, learning rate 0.06, weight decay 5e-4, ImageNet's mean and deviation): its loss is a quarter of the sum used
    here, so a quarter of the rate and four times the decay make the same steps. `stl10` is the baseline of
    DirectPred's paper with a predictor of two layers without bias (table 3; facebookresearch/luckmatters,
    ssl/real-dataset). Deviations: that code also trains on the last, smaller batch of an epoch, and its predictor has
    no bias in the hidden layer either, which the BatchNorm behind it would take off again. `quickstart` trains a
    small encoder in minutes on a CPU, with values of its own.
    """

    config_class = BYOLConfig
    config: BYOLConfig
    paper = Paper(
        title="Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
        authors=(
            "Grill, Jean-Bastien and Strub, Florian and Altch{\\'e}, Florent and Tallec, Corentin and "
            "Richemond, Pierre H. and Buchatskaya, Elena and Doersch, Carl and Pires, Bernardo Avila and "
            "Guo, Zhaohan Daniel and Azar, Mohammad Gheshlaghi and Piot, Bilal and Kavukcuoglu, Koray and "
            "Munos, R{\\'e}mi and Valko, Michal"
        ),
        arxiv="2006.07733",
        year=2020,
    )
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "byol",
            "ema_momentum": 0.996,
            "batch_size": 4096,
            "num_epochs": 1000,
            "optimizer": "lars",
            "base_learning_rate": 0.2,
            "learning_rate_scaling": "linear",
            "weight_decay": 1.5e-6,
            "optimizer_momentum": 0.9,
            "lars_trust_coefficient": 0.001,
            "decay_norm_and_bias": False,
            "lr_schedule": "cosine",
            "warmup_epochs": 10,
        },
        "paper-imagenet-300": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "byol",
            "ema_momentum": 0.99,
            "batch_size": 4096,
            "num_epochs": 300,
            "optimizer": "lars",
            "base_learning_rate": 0.3,
            "learning_rate_scaling": "linear",
            "weight_decay": 1e-6,
            "optimizer_momentum": 0.9,
            "lars_trust_coefficient": 0.001,
            "decay_norm_and_bias": False,
            "lr_schedule": "cosine",
            "warmup_epochs": 10,
        },
        "cifar": {
            "architecture": "resnet18_cifar",
            "image_size": 32,
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
            "view_recipe": "simclr_cifar",
            "projector_hidden_dim": 1024,
            "predictor_hidden_dim": 1024,
            "ema_momentum": 0.99,
            "ema_schedule": "constant",
            "batch_size": 128,
            "num_epochs": 200,
            "optimizer": "sgd",
            "base_learning_rate": 0.03,
            "learning_rate_scaling": "linear",
            "weight_decay": 2e-3,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine_by_epoch",
            "warmup_epochs": 0,
        },
        "stl10": {
            "architecture": "resnet18",
            "image_size": 96,
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
            "view_recipe": "directpred_stl",
            "projector_hidden_dim": 512,
            "projection_dim": 128,
            "projector_affine": False,
            "projector_bias": True,
            "predictor_hidden_dim": 512,
            "predictor_affine": False,
            "ema_momentum": 0.996,
            "ema_schedule": "constant",
            "target_init": "independent",
            "batch_size": 128,
            "num_epochs": 100,
            "optimizer": "sgd",
            "base_learning_rate": 0.06,
            "learning_rate_scaling": "linear",
            "weight_decay": 4e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "constant",
            "warmup_epochs": 0,
        },
        "quickstart": {
            "architecture": "test_resnet",
            "image_size": 32,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.25, 0.25, 0.25),
            "view_recipe": "shapes",
            "projector_hidden_dim": 512,
            "projection_dim": 128,
            "predictor_hidden_dim": 512,
            "ema_momentum": 0.9,
            "ema_schedule": "constant",
            "batch_size": 128,
            "num_epochs": 24,
            "optimizer": "sgd",
            "base_learning_rate": 0.2,
            "learning_rate_scaling": "linear",
            "weight_decay": 4e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine",
            "warmup_epochs": 0,
        },
    }
    view_recipe = "byol"
    batch_norm = "sync"
    frozen_modules = ("target_encoder", "target_projector")

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """Its predictor and its target may be others than the paper's."""
        predictor, target = settings["predictor"], kind_of_target(settings)
        changes = {"mlp": [], "linear": ["with a linear predictor"], "none": ["without a predictor"]}[predictor]
        whose = "a moving average of itself"
        if target == "fixed":
            changes.append("with a target that never moves")
            whose = "a second network that stays as it began"
        elif target == "itself":
            changes.append("without the moving average")
            whose = "itself, held constant by a stop-gradient"
        if not settings["stop_gradient"]:
            changes.append("without the stop-gradient")
            whose = "itself, through which the gradient flows as well"
        learns = {"mlp": "learns to predict", "none": "without a predictor learns to match"}.get(
            predictor, f"with a {predictor} predictor learns to predict"
        )
        return replace(
            plain,
            name=" ".join(["BYOL", " and ".join(changes)]).strip(),
            idea=f"An online network {learns} the projection of another view by {whose}.",
        )

    def __init__(self, config: BYOLConfig):
        """Build encoder, heads and target."""
        super().__init__(config)
        self.projector = self._new_projector()
        dim = config.projection_dim
        self.predictor: nn.Module = nn.Identity()
        if config.predictor == "mlp":
            self.predictor = mlp(
                dim,
                config.predictor_hidden_dim,
                dim,
                num_layers=config.predictor_layers,
                hidden_norm="affine" if config.predictor_affine else "plain",
                output_bias=False,
            )
        elif config.predictor == "linear":
            self.predictor = nn.Linear(dim, dim, bias=False)
        if not config.use_ema:
            self.frozen_modules = ()
        elif config.target_init == "copy":
            self.target_encoder = copy.deepcopy(self.encoder)
            self.target_projector = copy.deepcopy(self.projector)
        else:
            self.target_encoder = build_encoder(config.architecture, config.model_args)
            self.target_projector = self._new_projector()
        self.post_init()

    def _new_projector(self) -> nn.Sequential:
        config = self.config
        return mlp(
            self.hidden_size,
            config.projector_hidden_dim,
            config.projection_dim,
            num_layers=config.projector_layers,
            hidden_norm="affine" if config.projector_affine else "plain",
            output_bias=config.projector_bias,
        )

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss of both directions, added up: 8 for opposite vectors, about 4 at the start, 0 at best.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Not used.
        """
        views = self.split_views(pixel_values)
        h = [self.encode(view) for view in views]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        if self.config.use_ema:
            with torch.no_grad():
                targets = [self.target_projector(self.target_encoder(view)) for view in views]
        else:
            targets = [z_i.detach() for z_i in z] if self.config.stop_gradient else z
        loss = regression_loss(p[0], targets[1]) + regression_loss(p[1], targets[0])
        return SSLOutput(
            loss=loss,
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={},
        )

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Symmetrize a linear predictor if asked to, then move the target.

        Args:
            step: Optimizer steps done so far, at least 1.
            num_steps: Optimizer steps of the whole run.
        """
        config = self.config
        if config.symmetrize:
            with torch.no_grad():
                weight = self.predictor.get_parameter("weight")
                weight.copy_((weight + weight.T) / 2)
        if config.use_ema:
            momentum = config.ema_momentum
            if config.ema_schedule == "cosine":
                # The official code counts finished steps from 0: the first update has the momentum of the config.
                momentum = cosine_momentum(momentum, (step - 1) / num_steps)
            update_target(self.target_encoder, self.encoder, momentum)
            update_target(self.target_projector, self.projector, momentum)
