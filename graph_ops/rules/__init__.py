"""What each operator says about the dimensions of its inputs and outputs, one file per family."""
