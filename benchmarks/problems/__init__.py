"""Problems: what steps and surgery work on, from given gradients to a model with its batches."""
