"""A picture to two augmented views, on the CPU and on the device."""
