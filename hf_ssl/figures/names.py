"""Names that users gave, such as those of classes and files, as a figure can show them."""

from matplotlib.font_manager import FontProperties, findfont, get_font


def readable(name: str, instead: str | None = None) -> str:
    r"""A name in characters that the figure's font has: of others, matplotlib warns and draws empty boxes.

    matplotlib's setting `font.family` may name further fonts, such as one for Chinese; their characters count too.

    Args:
        name: The name. Its `$` stay what they are; matplotlib would read a formula between two of them.
        instead: What to show where a character is missing; without it each such character becomes `?`.

    Returns:
        What to give to matplotlib.
    """
    families = FontProperties().get_family()
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    missing = {
        character
        for character in name
        if not character.isspace() and not any(font.get_char_index(ord(character)) for font in fonts)
    }
    if missing and instead is not None:
        return instead
    shown = "".join("?" if character in missing else character for character in name)
    return shown.replace("$", r"\$")
