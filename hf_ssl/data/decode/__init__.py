"""The bytes of an image file to an RGB picture, or a named reason why not."""
