"""From a model to an ONNX file, all steps inside or one step per call."""
