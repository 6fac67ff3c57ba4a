"""The environment that training-operator 1.9 gives a replica of a PyTorchJob."""

import random
import socket


def environment_of(job, type_, index, port):
    """Return the variables of one replica.

    Args:
        job: The PyTorchJob.
        type_: Master or Worker.
        index: Number of the replica within its type.
        port: Port of rank 0; all replicas share this machine's ports, so that jobs side by
            side can't all have 23456.
    """
    spec, name = job["spec"], job["metadata"]["name"]
    replicas = spec["pytorchReplicaSpecs"]
    total = sum(each.get("replicas", 1) for each in replicas.values())
    processes = spec.get("nprocPerNode", "auto")
    environment = {"PYTHONUNBUFFERED": "1"}
    if "Master" in replicas:
        rank = str(index + (type_ == "Worker"))
        master = f"{name}-master-0"
        per_node = int(processes) if processes.isdigit() else 1
        environment |= {
            "MASTER_PORT": str(port),
            "PET_MASTER_PORT": str(port),
            "MASTER_ADDR": master,
            "PET_MASTER_ADDR": master,
            "WORLD_SIZE": str(total * per_node),
            "RANK": rank,
            "PET_NODE_RANK": rank,
        }
    environment["PET_NPROC_PER_NODE"] = processes
    if "elasticPolicy" in spec:
        return environment | _elastic(spec, name, port)
    return environment | {"PET_NNODES": str(total)}


def _elastic(spec, name, port):
    policy = spec["elasticPolicy"]
    workers = spec["pytorchReplicaSpecs"]["Worker"].get("replicas", 1)
    least = policy.get("minReplicas") or policy.get("maxReplicas") or workers
    most = policy.get("maxReplicas") or policy.get("minReplicas") or workers
    host = policy.get("rdzvHost", f"{name}-worker-0")
    environment = {
        "PET_RDZV_ENDPOINT": f"{host}:{policy.get('rdzvPort', port)}",
        "PET_RDZV_BACKEND": policy.get("rdzvBackend", "c10d"),
        "PET_NNODES": f"{least}:{most}",
    }
    if "maxRestarts" in policy:
        environment["PET_MAX_RESTARTS"] = str(policy["maxRestarts"])
    if "rdzvId" in policy:
        environment["PET_RDZV_ID"] = policy["rdzvId"]
    if "rdzvConf" in policy:
        pairs = (f"{each['key']}={each['value']}" for each in policy["rdzvConf"])
        environment["PET_RDZV_CONF"] = ",".join(pairs)
    return environment


def port_of(job):
    """Return the port that a job declares for rank 0, or a free one."""
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        for container in replica["template"]["spec"]["containers"]:
            for port in container.get("ports", []):
                if port.get("name") == "pytorchjob-port":
                    return port["containerPort"]
    return free_port()


def free_port():
    """Return a port that nothing on this machine listens on."""
    while True:
        port = random.randrange(15000, 32000)  # below the ports of outgoing connections
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
