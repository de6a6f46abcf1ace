"""What a saved head or segmenter says of new images."""
