"""Write the formats, and verify each file against the model."""

from soul_deploy import as_data, export_event, export_nir, export_onnx, import_nir, load, verify

model, data = load("compact.safetensors"), as_data("digits")
export_onnx(model, "compact.onnx")
export_event(model, "compact.event.safetensors")
export_nir(model, "compact.nir")
for name in ("compact.onnx", "compact.event.safetensors", "compact.nir"):
    print(verify(model, name, data).text())
print(import_nir("compact.nir"))
