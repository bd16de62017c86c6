"""The images that the page searches: their pictures, their features and their places on a map."""

import io
import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from hf_ssl.data.order.ordered import evaluation_batches
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder
from hf_ssl.evaluation.features import extract_features
from hf_ssl.evaluation.portrait import map_of, middle_square, sample_of
from hf_ssl.private import public_name, public_path, without_paths

_PICTURE = 192  # pixels: sharp where a page shows it half as large to a screen of twice the density
_PLACED_BY = 5  # neighbours that tell the place of a new image
_ABOUT, _TABLE = "collection.json", "collection.parquet"


@dataclass(frozen=True)
class Collection:
    """A sample of a data set as one encoder sees it.

    Args:
        encoder: What the page calls the encoder.
        dataset: What the page calls the data set.
        split: Its split.
        label: Name of the main label column; None without one.
        class_names: Names of its classes; empty if it has none.
        pictures: An image file of each image, its middle square of 192 x 192 pixels.
        classes: Class of each image, (images,), negative where unknown.
        features: (images, dim), float32, as the encoder gives them.
        positions: Place of each image on a map, (images, 2).
    """

    encoder: str
    dataset: str
    split: str
    label: str | None
    class_names: list[str]
    pictures: list[bytes]
    classes: NDArray[np.int64]
    features: NDArray[np.float32]
    positions: NDArray[np.float64]

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        return _unit(self.features)

    def picture(self, number: int) -> Image.Image:
        """One image as the page shows it."""
        return Image.open(io.BytesIO(self.pictures[number]))

    def class_of(self, number: int) -> str | None:
        """Name of an image's class; None where it is unknown."""
        found = int(self.classes[number])
        if found < 0:
            return None
        return self.class_names[found] if found < len(self.class_names) else str(found)

    def nearest(self, feature: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Numbers of the images whose features have the largest cosine with one, and these cosines; nearest first.

        Args:
            feature: (dim,).
            k: How many, fewer if there are fewer images.
        """
        cosines = np.clip(self._directions @ _unit(feature), -1, 1)
        numbers = np.argsort(-cosines, kind="stable")[:k]
        return numbers, cosines[numbers]

    def place(self, feature: NDArray[np.float32]) -> NDArray[np.float64]:
        """Where a new image lies on the map, (2,).

        The mean of the places of its five nearest images, weighted by the inverse of their distance (1 - cosine), for
        t-SNE maps only the images that it was made of. An image of the collection lies where it is.

        Args:
            feature: (dim,).
        """
        numbers, cosines = self.nearest(feature, _PLACED_BY)
        weights = 1 / (1 - cosines.astype(np.float64) + 1e-6)  # above the rounding of a cosine
        return weights @ self.positions[numbers] / weights.sum()

    def files(self) -> dict[str, bytes]:
        """What `load` reads: content by file name."""
        about = {name: getattr(self, name) for name in ("encoder", "dataset", "split", "label", "class_names")}
        columns = {"picture": self.pictures, "class": self.classes}
        columns |= {"feature": list(self.features), "position": list(self.positions)}
        written = io.BytesIO()
        pq.write_table(pa.table(columns), written)
        return {_ABOUT: f"{json.dumps(about, indent=2)}\n".encode(), _TABLE: written.getvalue()}

    @staticmethod
    def load(folder: Path) -> "Collection":
        """Read a folder with what `files` gave."""
        table = pq.read_table(folder / _TABLE)
        return Collection(
            **json.loads((folder / _ABOUT).read_text(encoding="utf-8")),
            pictures=table["picture"].to_pylist(),
            classes=table["class"].to_numpy(),
            features=np.stack(table["feature"].to_numpy()),
            positions=np.stack(table["position"].to_numpy()),
        )


def collect(
    encoder: Encoder,
    source: Source,
    encoder_name: str,
    max_images: int,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Collection:
    """Compute the features of a sample of a split, with progress bars.

    Args:
        encoder: The encoder.
        source: The split.
        encoder_name: What the page calls the encoder.
        max_images: Size of the sample, at least 2; it comes from all over the split.
        batch_size: Images in a forward pass.
        num_workers: Worker processes that decode.

    Raises:
        UserError: If the split has no two usable images.
    """
    source = sample_of(source, max_images)
    found = extract_features(encoder, source, batch_size, num_workers, description="features")
    if len(found.features) < 2:
        raise UserError(
            f"A demo needs two images, but split `{source.split}` of `{source.name}` has one. Choose another data set."
        )
    batches = evaluation_batches(source, partial(middle_square, size=_PICTURE), batch_size, num_workers=num_workers)
    with tqdm(total=len(found.features), desc="pictures", unit="img") as bar:
        pictures = []
        for batch in batches:
            pictures += [_encoded(pixels) for pixels in batch.pixel_values]
            bar.update(len(batch.pixel_values))
    label = next(iter(source.labels), None)
    classes = np.full(len(pictures), -1, np.int64) if label is None else found.labels[label].numpy()
    return Collection(
        encoder_name,
        public_name(source.name, source.kind),
        source.split,
        label,
        [] if label is None else source.labels[label],
        pictures,
        classes,
        found.features.numpy(),
        map_of(found.features),
    )


def name_of_encoder(encoder: str) -> str:
    """What the page calls an encoder: of one that lies here without the folders above it."""
    path = Path(encoder).expanduser()
    return public_path(str(path.resolve())) if path.exists() else without_paths(encoder)


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def _encoded(pixels: Tensor) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(written, "WEBP", quality=90)
    return written.getvalue()
