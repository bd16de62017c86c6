"""Features of augmented views: what alignment, uniformity and LiDAR compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_ssl.data.order.stream import evaluation_batches
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.cpu import find_recipe, make_view
from hf_ssl.data.views.draws import NUM_DRAWS, draw_rows, sizes_of
from hf_ssl.data.views.recipes import ViewRecipe
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder, Picture
from hf_ssl.evaluation.features import device_of
from hf_ssl.evaluation.finite import check_finite


@dataclass(frozen=True)
class ManyViews:
    """Several augmented views of an image, as a frozen encoder sees a picture; picklable.

    The views take the recipe's two sets of parameters in turn. What is drawn depends on seed and row alone, and a view
    does not depend on the number of those after it.

    Args:
        transform: Pixels, (3, height, width), of a picture that needs no more cropping; see `Encoder.transform`.
        recipe: How the views are augmented; see `find_recipe`.
        image_size: Height and width of a view, in pixels.
        num_views: Views of each image, at least 1.
        seed: Of all draws, at least 0.
    """

    transform: Callable[[Picture], Tensor]
    recipe: ViewRecipe
    image_size: int
    num_views: int
    seed: int

    def __call__(self, pictures: Sequence[Picture], rows: Sequence[int]) -> list[Tensor]:
        """Pixels of the views of each picture, (num_views, 3, height, width), float32.

        Args:
            pictures: The pictures.
            rows: Their rows in the data set.
        """
        parameters = [self.recipe.second if number % 2 else self.recipe.first for number in range(self.num_views)]
        drawn = []
        for number, of_view in enumerate(parameters):
            numbers = [np.random.default_rng([self.seed, row, number]).random(NUM_DRAWS) for row in rows]
            drawn.append(draw_rows(*sizes_of(pictures), of_view, np.stack(numbers)).tolist())
        made = []
        for picture, *draws in zip(pictures, *drawn, strict=True):
            views = [make_view(picture, *of, self.image_size) for of in zip(parameters, draws, strict=True)]
            made.append(torch.stack([self.transform(view) for view in views]))
        return made


def extract_view_features(
    encoder: Encoder,
    source: Source,
    recipe: str,
    num_views: int,
    *,
    image_size: int,
    batch_size: int = 256,
    num_workers: int = 0,
    max_images: int | None = None,
    seed: int = 0,
    view_settings: Mapping[str, Any] | None = None,
    description: str | None = None,
) -> Tensor:
    """Features of augmented views of the images of a source, in one process.

    Args:
        encoder: The encoder; its module must be in evaluation mode, as `load_encoder` leaves it.
        source: The images.
        recipe: How they are augmented, a name in `VIEW_RECIPES`.
        num_views: Views of each image, at least 1.
        image_size: Height and width of a view, in pixels; the encoder's preprocessing resizes it if it expects others.
        batch_size: Views in a forward pass, about.
        num_workers: Worker processes that decode and augment, at least 0.
        max_images: Use a sample of so many images from all over the source, at least 1; None for all.
        seed: Of all draws, at least 0.
        view_settings: Single parameters of the recipe to change; see `find_recipe`.
        description: Text of a progress bar; None for no bar.

    Returns:
        (images, num_views, dim), float32, on the CPU; images that cannot be read are left out.

    Raises:
        UserError: If the recipe is unknown or cannot be changed so, no image is usable or a feature is not finite.
    """
    augmentation = find_recipe(recipe, view_settings)
    views = ManyViews(encoder.transform.of_crops(), augmentation, image_size, num_views, seed)
    device = device_of(encoder.module)
    batches = evaluation_batches(
        source,
        views,
        max(1, batch_size // num_views),
        with_rows=True,
        num_workers=num_workers,
        max_images=max_images,
    )
    known = [number for number in (source.num_images, max_images) if number is not None]
    parts = []
    with tqdm(total=min(known, default=None), desc=description, unit="img", disable=description is None) as bar:
        for batch in batches:
            with torch.inference_mode():
                features = encoder.module(batch.pixel_values.flatten(0, 1).to(device))
            parts.append(features.float().cpu().unflatten(0, (-1, num_views)).clone())
            bar.update(len(parts[-1]))
    if not parts:
        raise UserError(f"Split `{source.split}` of `{source.name}` has no usable image. Check its files.")
    features = torch.cat(parts)
    check_finite(features, encoder.name)
    return features
