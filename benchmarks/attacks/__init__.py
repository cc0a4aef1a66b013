"""Attacks on the server's time and memory, each beside honest clients: `python benchmarks/hostile.py --attack`.

files.py      small images that are expensive to decode
clients.py    ways to send: at a rate, over a few connections, endlessly, or without reading
catalogue.py  the list of attacks
versions.py   versions of the store that must not be served
honest.py     the clients beside an attack
measure.py    the measurements and the bounds
"""
