"""Language models for ``occ_jax``: checkpoints in, smaller files out, and the measurements between."""
