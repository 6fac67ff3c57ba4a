"""A small Kubernetes for tests: an API server over real HTTP, and pods that are processes.

    with KubeServer() as server, Kubelet(server), TrainingOperator(server):
        api = client.CoreV1Api(server.api_client())

`server` is what the official client and kubectl speak to. `kubelet` runs pods as processes of this
machine, `operator` turns PyTorchJobs into pods, `deployments` rolls Deployments out, `services`
forwards TCP to ready pods, and `faults` breaks what can break. Everything listens on 127.x only
and ends with its context manager.
"""
