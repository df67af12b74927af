"""Curves and pictures in TensorBoard, MLflow and Weights & Biases, if they are installed and asked for."""
