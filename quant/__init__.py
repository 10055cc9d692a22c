"""edgevit.quant: Graph → QuantizedGraph, after training, on the traced program.

May import torch; knows no runtime (a target's policy arrives as data) and no model family.
"""
