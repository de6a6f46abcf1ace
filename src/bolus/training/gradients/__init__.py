"""From losses to one gradient: where features are cut from the encoder, how objectives are reconciled."""
