"""Files to volumes: voxels in anatomical axes, with spacing and affine in mm."""
