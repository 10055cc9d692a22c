"""A foreign ONNX file → a torch module that computes the same: read safely, clean, import, prove.

`read` treats the file as hostile. `clean` runs the passes of `passes.PASSES`, one file each. `build` makes the module,
each node by one function of `operators.OPERATORS`. `prove` compares it with the file in ONNX Runtime.
"""
