"""What a model is: the dataflow view, the ONNX front end, cuts, blocks and spans."""
