"""Near copies of images, found by what they show: resized, re-encoded, mirrored, cropped, or changed in grey."""
