"""Convert checkpoints of TensorFlow or PyTorch to our folder layout, without TensorFlow."""
