"""Arguments: a version, a source, a destination, a number of parts. Scores on a cluster of Ray of two nodes, one of which is
killed after so many parts."""

import json
import sys

import ray
from ray.cluster_utils import Cluster

from app.scaling import ray_data
from app.scaling.scoring import Job
from app.scaling.sources import divide

version, source, destination, killed_after = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
found = []
for done in ray_data.score(Job(version, destination), divide([source])):
    found.append(done._asdict())
    if len(found) == int(killed_after):
        cluster.remove_node(other, allow_graceful=False)
print(json.dumps(found), flush=True)
ray.shutdown()
cluster.shutdown()
