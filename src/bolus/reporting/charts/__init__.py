"""Charts as inline SVG: plain marks with classes, so that one stylesheet colours them in light, dark and print."""
