"""Name the ways to int8 and the file of each beside the record of `quantize`."""

FIRST = "onnxruntime-int8"  # the way whose scores fill Table 6; its metrics have their plain names
AWARE = "onnxruntime-qat"  # the way that trains
PLAIN = (FIRST, f"{FIRST}-fixed")  # engines whose scores have plain names: they run the file of FIRST
FILES = {
    FIRST: "model.int8.onnx",
    "onnxruntime-static": "model.static.onnx",
    AWARE: "model.qat.onnx",
    "openvino-int8": "model.nncf.xml",
    "litert-dynamic": "model.dynamic.tflite",
    "litert-int8": "model.int8.tflite",
    "quanto": "model.quanto.safetensors",
}
