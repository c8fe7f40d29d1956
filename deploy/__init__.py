"""How a student leaves: ONNX export, latency measurement, bundles for a device."""
