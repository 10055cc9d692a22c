"""A study on a Ray cluster: `edgevit tune --ray`. Only the driver writes into the study's folder.

cluster.py     the connection, its nodes, and what of a study is done where
staff.py       one worker on each node; a dead one loses what it was at
worker.py      on a node: trials, and shares of an evaluation
device.py      on the node that owns the device: latency, for everybody
place.py       folders of a node, and the turns of its machine
carry.py       a bundle as bytes
"""
