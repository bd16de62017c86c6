"""Rows of `draws.py` written by hand, and drawn one number at a time: the reference of the vectorised draw."""

import math

NAMES = {"flip": 4, "vertical_flip": 5, "grey": 14, "blur_sigma": 15, "solarize": 16, "invert": 17, "policy_seed": 18}


def row_of(box, jitter=(), **values):
    """A row of a crop (top, left, height, width), operations of the jitter with their factors, and what else differs
    from doing nothing."""
    row = [*map(float, box), 0.0, 0.0, *[-1.0] * 4, *[0.0] * 9]
    for place, (operation, factor) in enumerate(jitter):
        row[6 + operation], row[10 + operation] = float(place), factor
    for name, value in values.items():
        row[NAMES[name]] = float(value)
    return row


def scalar_row(height, width, parameters, numbers):
    """What `draw_rows` must draw for one picture."""
    draws = iter(numbers)

    def between(lowest, highest):
        return lowest + (highest - lowest) * next(draws)

    def happens(probability):
        return next(draws) < probability

    def box():
        lowest, highest = parameters.crop_ratio
        for _ in range(10):
            area = height * width * between(*parameters.crop_scale)
            ratio = math.exp(between(math.log(lowest), math.log(highest)))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top, left = int(next(draws) * (height - crop_height + 1)), int(next(draws) * (width - crop_width + 1))
                return top, left, crop_height, crop_width
        crop_width, crop_height = width, height
        if width < lowest * height:
            crop_height = max(1, round(width / lowest))
        elif width > highest * height:
            crop_width = max(1, round(height * highest))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def jitter():
        factors = [between(max(0.0, 1 - strength), 1 + strength) for strength in parameters.jitter[:3]]
        factors.append(between(-parameters.jitter[3], parameters.jitter[3]))
        keys = [next(draws) for _ in range(4)]
        order = sorted(range(4), key=keys.__getitem__)
        return [(operation, factors[operation]) for operation in order if parameters.jitter[operation]]

    crop = box()
    flips = {name: happens(getattr(parameters, f"{name}_probability")) for name in ("flip", "vertical_flip")}
    policy_seed = 0 if parameters.policy is None else int(next(draws) * 2**53)
    jittered, grey = happens(parameters.jitter_probability), happens(parameters.grey_probability)
    operations = jitter() if jittered else []
    blur_sigma = between(*parameters.blur_sigma) if happens(parameters.blur_probability) else 0
    ends = {name: happens(getattr(parameters, f"{name}_probability")) for name in ("solarize", "invert")}
    return row_of(crop, operations, **flips, policy_seed=policy_seed, grey=grey, blur_sigma=blur_sigma, **ends)
