"""Features that are numbers: what evaluation, extraction and search insist on."""

from torch import Tensor

from hf_ssl.errors import UserError


def check_finite(features: Tensor, encoder: str) -> None:
    """Refuse features that are not finite: the numbers computed from them would look like any other.

    Args:
        features: (images, ...).
        encoder: Name of the encoder, for the message.

    Raises:
        UserError: Says for how many images.
    """
    broken = int((~features.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise UserError(
            f"The features of `{encoder}` must be finite, but those of {broken:,} of {len(features):,} images hold "
            "NaN or infinity. Its training has diverged, or `bf16` is too coarse for it. Use another checkpoint, or "
            "leave out `bf16`."
        )
