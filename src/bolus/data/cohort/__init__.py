"""The table of images with its roles, values and split; no image is opened."""
