"""The best engine for a device and an accuracy, found by measurement: `edgevit tune`.

settings.py    what is asked, and the command that rebuilds a point
goal.py        --max-drop, --latency, --pareto: what is better, what is good enough
space.py       what may be chosen: the table, and a choice as a schedule, a precision, options
suggest.py     the next choices, from the record alone
record.py      the trials in Optuna's storage; resuming
workshop.py    what a worker holds: model, images, the dense baseline
fidelity.py    how a trial is judged, cheapest first, until it is clearly bad
flips.py       when images lost and won say that it is
meter.py       latency beside dense: the device runner, or a fake
turns.py       who may compute while latency is measured
pool.py        trials in this process
workers.py     trials in processes of this machine
on_ray/        all of it on the nodes of a cluster
site.py        which of these; where latency is measured and accuracy evaluated
run.py         the loop
result.py      the winner, measured again and on images the search never saw
write.py       what is left in the folder
"""
