"""What the papers do to an image to make its views, as data; `cpu.py` carries it out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from hf_ssl.errors import UserError, near_name


@dataclass(frozen=True)
class ViewParameters:
    """How one view is made, in this order: crop, flips, colour, grey, blur, solarize, invert.

    Args:
        crop_scale: Smallest and largest area of the crop, as fractions of the picture's.
        crop_ratio: Smallest and largest width / height of the crop.
        interpolation: How the crop is resized.
        flip_probability: Of a left-right flip.
        vertical_flip_probability: Of a top-bottom flip.
        policy: torchvision's `RandAugment` (2 operations, magnitude 9) or `AutoAugment` (ImageNet's policy) before
            the colour operations.
        jitter: Strengths of brightness, contrast, saturation (factors in [1 - s, 1 + s], at least 0) and hue (shift
            in [-s, s] turns); applied in random order.
        jitter_probability: Of jittering at all.
        grey_probability: Of losing the colours.
        grey_first: Drop colours before the jitter instead of after it.
        blur_probability: Of a blur.
        blur_sigma: Smallest and largest standard deviation of the blur, in pixels.
        blur_filter: `gaussian`, or `boxes` for three box blurs in its place, as Pillow's `GaussianBlur` is made.
        blur_kernel_ratio: Width of a `gaussian` blur's kernel as a fraction of the view's; None for one wide enough
            for sigma.
        solarize_probability: Of inverting the pixels above half of full brightness.
        invert_probability: Of inverting all pixels.

    Raises:
        UserError: If a value is of another type or out of range.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip_probability: float = 0.5
    vertical_flip_probability: float = 0.0
    policy: Literal["randaugment", "autoaugment"] | None = None
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.0
    grey_probability: float = 0.0
    grey_first: bool = False
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_filter: Literal["gaussian", "boxes"] = "gaussian"
    blur_kernel_ratio: float | None = None
    solarize_probability: float = 0.0
    invert_probability: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            value, rule = getattr(self, field.name), _rule_of(field.name)
            if not rule.allows(value):
                raise UserError(f"`{field.name}` of a view must be {rule.words}, got {value!r}.")
        if self.blur_filter == "boxes" and self.blur_kernel_ratio is not None:
            raise UserError(
                f"`blur_kernel_ratio` of a view needs `blur_filter` gaussian, got {self.blur_kernel_ratio} with boxes."
                " Set that too, or leave it at none (null)."
            )


@dataclass(frozen=True)
class ViewRecipe:
    """The two views of an image.

    Args:
        first: The first view.
        second: The second view.
        source: Where the numbers come from.
    """

    first: ViewParameters
    second: ViewParameters
    source: str


def changed_recipe(recipe: ViewRecipe, view_settings: Mapping[str, Any]) -> ViewRecipe:
    """A recipe with single parameters changed.

    Args:
        recipe: The recipe.
        view_settings: Names of `ViewParameters` -> values as JSON has them, for both views. `first` and `second` hold
            such an object for one view, which goes before what is said for both.

    Returns:
        The changed recipe.

    Raises:
        UserError: If a name is unknown, or a value is of another type or out of range.
    """
    for_both = {name: value for name, value in view_settings.items() if name not in _VIEWS}
    changed = {}
    for view in _VIEWS:
        for_one = view_settings.get(view, {})
        if not isinstance(for_one, Mapping):
            raise UserError(f"`view_settings` `{view}` must be a JSON object for one view, got {for_one!r}.")
        values = {**for_both, **for_one}
        _refuse_unknown(values)
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        changed[view] = replace(getattr(recipe, view), **values)
    return replace(recipe, **changed)


_VIEWS = ("first", "second")


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(ViewParameters)]
    for name in values:
        if name not in known:
            hint = near_name(name, [*known, *_VIEWS]) or f" It has: {', '.join(known)}; `first` and `second`."
            raise UserError(f"`view_settings` has no parameter `{name}`.{hint}")


@dataclass(frozen=True)
class _Rule:
    """What a parameter may be, in words and as a test."""

    words: str
    allows: Callable[[Any], bool]


def _rule_of(name: str) -> _Rule:
    return _PROBABILITY if name.endswith("_probability") else _RULES[name]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(map(_is_number, value))


def _is_positive_range(value: Any, largest: float = math.inf) -> bool:
    return _are_numbers(value, 2) and 0 < value[0] <= value[1] <= largest


def _one_of(options: tuple[Any, ...], or_none: bool = False) -> _Rule:
    words = ", ".join([*map(str, options), *(["none (null)"] if or_none else [])])
    return _Rule(f"one of {words}", lambda value: (or_none and value is None) or value in options)


_PROBABILITY = _Rule("a probability in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)
_RULES = {
    "crop_scale": _Rule("two fractions in (0, 1], the smaller first", lambda value: _is_positive_range(value, 1)),
    "crop_ratio": _Rule("two positive numbers, the smaller first", _is_positive_range),
    "interpolation": _one_of(("bilinear", "bicubic")),
    "policy": _one_of(("randaugment", "autoaugment"), or_none=True),
    "jitter": _Rule(
        "four numbers of at least 0 (brightness, contrast, saturation, hue), the last at most 0.5",
        lambda value: _are_numbers(value, 4) and min(value) >= 0 and value[3] <= 0.5,
    ),
    "grey_first": _Rule("true or false", lambda value: isinstance(value, bool)),
    "blur_sigma": _Rule("two positive numbers of pixels, the smaller first", _is_positive_range),
    "blur_filter": _one_of(("gaussian", "boxes")),
    "blur_kernel_ratio": _Rule(
        "a fraction in (0, 1], or none (null)",
        lambda value: value is None or (_is_number(value) and 0 < value <= 1),
    ),
}


def _both(parameters: ViewParameters, source: str) -> ViewRecipe:
    return ViewRecipe(parameters, parameters, source)


_MOCO_V1 = ViewParameters(
    crop_scale=(0.2, 1.0), grey_probability=0.2, grey_first=True, jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0
)
_MOCO_V2 = ViewParameters(
    crop_scale=(0.2, 1.0),
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    grey_probability=0.2,
    blur_probability=0.5,
    blur_filter="boxes",
)
_CIFAR = ViewParameters(jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8, grey_probability=0.2)
_BYOL = ViewParameters(
    interpolation="bicubic",
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey_probability=0.2,
    blur_probability=1.0,
    blur_kernel_ratio=0.1,
)
_DIRECTCLR = replace(_BYOL, blur_filter="boxes", blur_kernel_ratio=None)
_MOCO_V3 = replace(_DIRECTCLR, crop_scale=(0.2, 1.0), interpolation="bilinear")
_MOCO_V3_CIFAR = replace(_BYOL, blur_probability=0.0)
_SIMCLR = ViewParameters(
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_probability=0.8,
    grey_probability=0.2,
    blur_probability=0.5,
    blur_kernel_ratio=0.1,
)
_SHAPES = ViewParameters(
    crop_scale=(0.4, 1.0),
    vertical_flip_probability=0.5,
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    grey_probability=0.2,
    blur_probability=0.5,
    blur_sigma=(0.3, 1.2),
    invert_probability=0.5,
)

VIEW_RECIPES: dict[str, ViewRecipe] = {
    "moco_v1": _both(_MOCO_V1, "He et al., 2019; facebookresearch/moco main_moco.py without --aug-plus"),
    "moco_v2": _both(
        _MOCO_V2,
        "Chen et al., 2020; facebookresearch/moco main_moco.py with --aug-plus, and Pillow's blur of loader.py",
    ),
    "moco_cifar": _both(_CIFAR, "facebookresearch/moco, CIFAR-10 demo"),
    "byol": ViewRecipe(
        _BYOL,
        replace(_BYOL, blur_probability=0.1, solarize_probability=0.2),
        "Grill et al., 2020, appendix B; torchvision's multiplicative brightness for the code's additive one",
    ),
    "memory_bank_cifar": _both(
        replace(_MOCO_V1, grey_first=False, flip_probability=0.0),
        "Wu et al., 2018; zhirongw/lemniscate.pytorch cifar.py, where the flip is commented out",
    ),
    "moco_v3": ViewRecipe(
        _MOCO_V3,
        replace(_MOCO_V3, blur_probability=0.1, solarize_probability=0.2),
        "Chen et al., 2021; facebookresearch/moco-v3 main_moco.py, loader.py with --crop-min=.2, as for ResNet-50",
    ),
    "moco_v3_vit": ViewRecipe(
        replace(_MOCO_V3, crop_scale=(0.08, 1.0)),
        replace(_MOCO_V3, crop_scale=(0.08, 1.0), blur_probability=0.1, solarize_probability=0.2),
        "Chen et al., 2021; facebookresearch/moco-v3 main_moco.py with its default --crop-min, as for ViTs",
    ),
    "moco_v3_cifar": ViewRecipe(
        _MOCO_V3_CIFAR,
        replace(_MOCO_V3_CIFAR, solarize_probability=0.2),
        "vturrisi/solo-learn scripts/pretrain/cifar, asymmetric augmentations",
    ),
    "simsiam": _both(_MOCO_V2, "Chen and He, 2020, section 3; facebookresearch/simsiam main_simsiam.py, loader.py"),
    "simsiam_cifar": _both(
        replace(_MOCO_V2, blur_probability=0.0), "Chen and He, 2020, appendix D: as on ImageNet, without blur"
    ),
    "directclr": ViewRecipe(
        _DIRECTCLR,
        replace(_DIRECTCLR, blur_probability=0.1, solarize_probability=0.2),
        "Jing et al., 2021; facebookresearch/directclr utils.py: BYOL's views with Pillow's blur",
    ),
    "directpred_cifar": _both(_CIFAR, "Tian et al., 2021; facebookresearch/luckmatters, CIFAR-10"),
    "directpred_stl": _both(
        replace(_SIMCLR, blur_probability=1.0), "Tian et al., 2021; facebookresearch/luckmatters, STL-10"
    ),
    "simclr": _both(_SIMCLR, "Chen et al., 2020 (SimCLR), appendix A, colour strength 1"),
    "simclr_cifar": _both(
        replace(_SIMCLR, jitter=(0.4, 0.4, 0.4, 0.1), blur_probability=0.0),
        "Chen et al., 2020 (SimCLR), appendix B.9: colour strength 0.5, no blur",
    ),
    "randaugment": _both(ViewParameters(policy="randaugment"), "Cubuk et al., 2019 (RandAugment), 1909.13719"),
    "autoaugment": _both(ViewParameters(policy="autoaugment"), "Cubuk et al., 2018 (AutoAugment), 1805.09501"),
    "crop_and_flip": _both(ViewParameters(), "He et al., 2015 (ResNet), section 3.4; torchvision's RandomResizedCrop"),
    "shapes": _both(_SHAPES, "made for the embedded shapes: what stays the same is the shape itself"),
}
"""Recipe name -> the two views of an image."""
