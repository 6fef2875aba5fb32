"""The Llama family in flax NNX: one pure forward pass over stacked, scanned blocks."""
