"""Arguments: a version, a source, a destination. Scores on a cluster of Ray of two nodes, one of which is killed midway."""

import json
import sys

import ray
from ray.cluster_utils import Cluster

from app.scaling import ray_data
from app.scaling.scoring import Job
from app.scaling.sources import divide

version, source, destination = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
found = []
for done in ray_data.score(Job(version, destination), divide([source])):
    found.append(done._asdict())
    if len(found) == 2:
        cluster.remove_node(other, allow_graceful=False)
print(json.dumps(found), flush=True)
ray.shutdown()
cluster.shutdown()
