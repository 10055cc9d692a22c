"""What each backend wants in 8 bits: one scheme a name, for runtimes that are built and for those still to come.

All of them: weights symmetric, one scale per output channel; attention products, softmax, norms, activation functions
and the residual streams of transformer blocks float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from edgevit.quant.scheme import QuantScheme

_ONNX = QuantScheme(activations="int8")
# QGemm wants its bias in int32. A convolution with rounded inputs and a float output runs in float, slower than
# without: hybrids fell to 0.5 to 0.8 of their float32 speed.
_ORT = QuantScheme(activations="uint8", integer_bias=True, layers=("linear",))
_OPENVINO = QuantScheme(activations="uint8")
_APPLE = QuantScheme(activations="int8", residuals="both")

POLICIES: Mapping[str, QuantScheme] = MappingProxyType({
    # Every reader takes zero points 0 and float biases. TensorRT's parser takes no others (no int32 bias, no uint8), so
    # this file builds there too; what `tensorrt` adds is where its kernels gain or lose, not what it can read.
    "onnx": _ONNX,
    # Explicit Q/DQ on a strongly typed network. The fused convolution adds an 8-bit skip input, so that gets a Q/DQ and
    # the branch none. Small layers leave int8 tensor cores idle: ModelOpt's exclusions (quantization.md, 9.2 rule 7).
    "tensorrt": replace(_ONNX, residuals="skip", float_regions=("gate",), least_channels=16),
    # The x86 kernels multiply u8 by s8; with VNNI or AMX products are summed in 32 bits.
    "ort": _ORT,
    # Without them two products are summed in 16 bits: 2 * 255 * 127 saturates, 2 * 255 * 63 fits. Other tools call it
    # `reduce_range`.
    "ort-w7": replace(_ORT, weight_bits=7),
    # ARM's dot products (asimddp, i8mm) multiply s8 by s8; an offset costs nothing there.
    "ort-s8": replace(_ORT, activations="int8", affine=True),
    "openvino": _OPENVINO,
    "openvino-w7": replace(_OPENVINO, weight_bits=7),  # as "ort-w7": the same instructions
    # W8A8 on the Neural Engine (A17 Pro, M4 and later). Its tools quantize in front of an add on both sides.
    "coreml": _APPLE,
    # Its own default quantizes adds, products and softmax everywhere; this is what is left of it for a transformer.
    "coreai": _APPLE,
    # XNNPACK takes a Linear or convolution whose input is dequantized and whose only reader (behind a ReLU) is a
    # quantizer: an integer layer with a float output is refused. Activations have zero points, biases are float.
    "executorch": QuantScheme(activations="int8", affine=True, outputs=("linear", "conv")),
})  # fmt: skip
