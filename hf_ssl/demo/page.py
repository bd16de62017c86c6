"""The page: an image in, its neighbours, its place on the map and the spectrum out.

Nothing on it comes from another server: fonts are the reader's own, and Gradio's statistics of use are off.
"""

import logging
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio import themes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_ssl.data.decode.pictures import SkippedImageError, decode
from hf_ssl.demo.collection import Collection
from hf_ssl.diagnostics.spectrum import covariance_spectrum, rank_me
from hf_ssl.evaluation.encoders import Encoder
from hf_ssl.features.search import features_of_pictures
from hf_ssl.figures.diagnostics import spectrum_curves
from hf_ssl.figures.embedding_map import embedding_map

logger = logging.getLogger(__name__)

LARGEST_UPLOAD = 20 * 2**20
"""Size of an uploaded file, in bytes."""

_NEIGHBOURS = 8
_EXAMPLES = 8
_WAITING = 32  # visitors in the queue; more are told to come back
_KEPT = 3600  # seconds that uploads stay on the disk
_MARK = "#D62728"
_CSS = """
.gradio-container { max-width: min(1200px, 100vw) !important; margin: 0 auto !important; }
footer { display: none !important; }
#neighbours { min-height: 120px; }
#upload img { width: 100%; height: 100%; object-fit: contain; }
#examples .grid-wrap, #neighbours .grid-wrap { min-height: 0 !important; max-height: none !important; }
#examples .grid-container, #neighbours .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
@media (max-width: 640px) {
  #neighbours .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""


def build_page(collection: Collection, encoder: Encoder) -> gr.Blocks:
    """The page, not yet served.

    Args:
        collection: The images that it searches.
        encoder: The encoder that computed their features.
    """
    answer = _Answers(collection, encoder)
    title = f"{collection.encoder} on {collection.dataset}"
    # Headings above the parts: labels would lie on the pictures.
    gallery: dict[str, Any] = {"columns": 4, "height": "auto", "object_fit": "contain", "buttons": []}
    gallery |= {"interactive": False, "show_label": False}
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as page:
        gr.Markdown(
            f"# {title}\nUpload an image to see which of {len(collection.pictures):,} images from split "
            f"`{collection.split}` of the data set this encoder finds most similar."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("### Your image")
                upload = gr.Image(
                    type="filepath",
                    sources=["upload", "clipboard"],
                    label="Your image",
                    show_label=False,
                    height=260,
                    buttons=[],
                    elem_id="upload",
                    alt_text="The uploaded image",
                )
                gr.Markdown("Or choose one of the data set:")
                examples = [collection.picture(number) for number in answer.examples]
                shown = gr.Gallery(
                    examples, label="Images of the data set", allow_preview=False, elem_id="examples", **gallery
                )
            with gr.Column(scale=3, min_width=300):
                gr.Markdown("### Nearest images\nThe number is the cosine of the features.")
                neighbours = gr.Gallery(label="Nearest images", elem_id="neighbours", **gallery)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                gr.Markdown(
                    "### Map of the features\nImages with similar features lie together (t-SNE). The star is your "
                    "image, at the mean place of its five nearest images, weighted by the inverse of their distance; "
                    "rings are its neighbours."
                )
                plane = gr.Plot(answer.map(), label="Map of the features", show_label=False, elem_id="map")
            with gr.Column(scale=1, min_width=300):
                gr.Markdown(
                    f"### Spectrum of the features\nHow the variance of the {collection.features.shape[1]:,} features "
                    "is spread over directions. RankMe, the number of directions that carry the features: "
                    f"{answer.rank():.1f}."
                )
                gr.Plot(answer.spectrum(), label="Spectrum of the features", show_label=False, elem_id="spectrum")
        silent: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        # Preprocessing would read the file by Pillow's defaults, and fail before `decode` can tell the reason.
        upload.input(answer.of_upload, [upload], [upload, neighbours, plane], preprocess=False, **silent)
        shown.select(answer.of_example, None, [upload, neighbours, plane], **silent)
    page.queue(max_size=_WAITING, default_concurrency_limit=1)
    return page


def serve(page: gr.Blocks, host: str | None = None, port: int | None = None) -> None:
    """Serve the page until interrupted.

    Args:
        page: What `build_page` returns.
        host: Address to listen on; None: this machine alone, or what `GRADIO_SERVER_NAME` says.
        port: Port to listen on; None: the first free one from 7860.
    """
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=LARGEST_UPLOAD,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        theme=themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
        quiet=True,
        prevent_thread_lock=True,
    )
    logger.info("The page is at %s Stop it by Ctrl+C.", url)
    page.block_thread()


class _Answers:
    """What the page shows for an image; methods return the values of its parts."""

    def __init__(self, collection: Collection, encoder: Encoder):
        self._collection = collection
        self._encoder = encoder
        self.examples = _evenly(len(collection.pictures), _EXAMPLES)

    def of_upload(self, upload: dict[str, Any] | None) -> tuple[Any, list[Any], Figure]:
        if upload is None or not upload.get("path"):  # the image was removed
            return None, [], self.map()
        try:
            picture = decode(Path(upload["path"]).read_bytes())  # Gradio lets only paths of its uploads pass
        except SkippedImageError as error:
            # A raised `gr.Error` would leave the last answer, crossed out, beside a broken image.
            gr.Warning(f"This file cannot be used as an image: {error.reason}. Choose another.")
            return None, [], self.map()
        feature = features_of_pictures(self._encoder, [picture])[0]
        return gr.skip(), *self._of_feature(feature)

    def of_example(self, event: gr.SelectData) -> tuple[Any, list[Any], Figure]:
        number = self.examples[event.index]
        return self._collection.picture(number), *self._of_feature(self._collection.features[number])

    def _of_feature(self, feature: NDArray[np.float32]) -> tuple[list[Any], Figure]:
        numbers, cosines = self._collection.nearest(feature, _NEIGHBOURS)
        found = []
        for number, cosine in zip(numbers.tolist(), cosines.tolist(), strict=True):
            words = [f"{cosine:.4f}", self._collection.class_of(number)]
            found.append((self._collection.picture(number), " ".join(word for word in words if word)))
        return found, self.map(self._collection.place(feature), numbers)

    def map(self, place: NDArray[np.float64] | None = None, rings: NDArray[np.int64] | None = None) -> Figure:
        about = self._collection
        figure = embedding_map(about.positions, about.classes, about.class_names, about.label)
        if place is not None and rings is not None:
            axis = figure.axes[0]
            axis.scatter(*about.positions[rings].T, s=50, facecolors="none", edgecolors=_MARK, linewidths=1.2)
            axis.scatter(*place, s=220, marker="*", color=_MARK, edgecolors="white", linewidths=1.0, zorder=3)
        return figure

    def spectrum(self) -> Figure:
        eigenvalues = covariance_spectrum(torch.from_numpy(self._collection.features)).numpy()
        return spectrum_curves({"features": {self._collection.encoder: eigenvalues.tolist()}})

    def rank(self) -> float:
        return rank_me(torch.from_numpy(self._collection.features)).item()


def _evenly(length: int, number: int) -> list[int]:
    """At most so many places of a sequence, equally far apart."""
    return np.linspace(0, length - 1, min(number, length)).round().astype(int).tolist()
