"""Arguments: a port, the name of the application, the most replicas. Serves on a cluster of Ray of two nodes until standard
input ends; prints a line when it is ready."""

import sys

import ray
from ray import serve
from ray.cluster_utils import Cluster

from app.scaling.ray_serve import Replicas, application

port, name, most = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
serve.run(application(Replicas(max_replicas=int(most), target_ongoing_requests=2)), name=name)
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
cluster.shutdown()
