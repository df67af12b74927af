"""The checks of an exported model, run in onnxruntime. Needs no torch unless a torch module is compared."""
