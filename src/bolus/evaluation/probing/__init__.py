"""A label or a number, read off an encoder or learnt from images."""
