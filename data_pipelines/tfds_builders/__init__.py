"""TensorFlow Datasets builders; writing needs the extra `build`, reading does not."""
