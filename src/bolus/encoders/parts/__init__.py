"""What is put into a backbone: context blocks, temporal shift, norms and strides."""
