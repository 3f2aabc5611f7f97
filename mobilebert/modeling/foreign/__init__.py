"""Read checkpoints that TensorFlow wrote, without TensorFlow, and convert them."""
