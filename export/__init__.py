"""edgevit.export: a model becomes a program (trace), passes rewrite it exactly, formats write it down.

May import torch and the format's library inside the function that writes it; knows no runtime and no model family.
"""
