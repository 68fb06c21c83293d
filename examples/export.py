"""Write the formats, and verify each file against the model."""

from soul_deploy import as_data, export_event, export_onnx, load, verify

model, data = load("compact.safetensors"), as_data("digits")
export_onnx(model, "compact.onnx")
export_event(model, "compact.event.safetensors")
for name in ("compact.onnx", "compact.event.safetensors"):
    print(verify(model, name, data).text())
