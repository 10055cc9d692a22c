"""Latency on real devices: runners, statistics, conditions, and the interleaved benchmark.

Code in this folder starts processes and reads system files. It never imports torch and never imports a
runtime: two runtimes in one process distort each other, so only the `runner_*.py` files open one, each in its
own fresh process. Those files are self-contained, to be copied to a device and run there with `python
runner_ort.py job.json`.
"""
