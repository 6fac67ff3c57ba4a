"""A small Kubernetes for tests: an API server with real HTTP, and pods as processes.

    with KubeServer() as server, Kubelet(server), TrainingOperator(server):
        api = client.CoreV1Api(server.api_client())

The official client and kubectl connect to `server`. `kubelet` runs pods as processes of this
machine, `operator` turns PyTorchJobs into pods and `trainer` TrainJobs, `deployments` rolls
Deployments out, `services` forwards TCP to ready pods, and `faults` injects faults. Everything
listens on 127.x only and ends with its context manager.
"""
