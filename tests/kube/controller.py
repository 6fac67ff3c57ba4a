"""Base of all controllers: reconcile after every change of the store."""

import threading
import time

from kube.clock import now
from kube.errors import ApiError


class Controller:
    """A thread that reconciles after every change of the store, for as long as its context lasts.

    Args:
        server: The `KubeServer` with its objects; controllers need no access rules.
    """

    name = "controller"

    def __init__(self, server):
        self.server = server
        self._stopping = False
        self._failure = None
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with self.server.store.changed:
            self._stopping = True
            self.server.store.changed.notify_all()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def reconcile(self):
        """Act on the objects once; return after how many seconds to reconcile again."""
        raise NotImplementedError

    def _loop(self):
        changed = self.server.store.changed
        while not self._stopping:
            seen = self.server.store.revision
            try:
                pause = self.reconcile()
            except ApiError:  # a conflict or a refusal: reconcile again
                pause = 0.1
            except Exception as error:
                self._failure = error
                return
            with changed:
                deadline = None if pause is None else time.monotonic() + pause
                while not self._stopping and self.server.store.revision == seen:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    changed.wait(left)

    def record(self, obj, type_, reason, message):
        """Write an Event about an object, once for each message."""
        meta = obj["metadata"]
        involved = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        }
        event = {"type": type_, "reason": reason, "message": message, "involvedObject": involved}
        with self.server.store.changed:
            for known in self.server.list("Event", namespace=meta["namespace"]):
                if event.items() <= known.items():
                    return
            event |= {"firstTimestamp": now(), "lastTimestamp": now(), "count": 1}
            event |= {"metadata": {"generateName": f"{meta['name']}."}}
            event |= {"source": {"component": self.name}}
            self.server.create("Event", event, meta["namespace"])


def set_condition(conditions, type_, status, reason="", message=""):
    """Set a condition in a list in place; keep its transition time if the status stays."""
    new = {"type": type_, "status": status, "lastTransitionTime": now()}
    new |= {"reason": reason, "message": message} if reason else {}
    for index, old in enumerate(conditions):
        if old["type"] == type_:
            if old["status"] == status:
                new["lastTransitionTime"] = old["lastTransitionTime"]
            conditions[index] = new
            return
    conditions.append(new)


def is_true(obj, type_):
    """Return whether an object's condition of this type is True."""
    conditions = obj.get("status", {}).get("conditions") or []
    return any(each["type"] == type_ and each["status"] == "True" for each in conditions)


def owner_of(obj):
    """Return the reference that makes `obj` the owner of what it controls."""
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": obj["metadata"]["name"],
        "uid": obj["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_controlled_by(obj, owner):
    """Return whether an object belongs to an owner."""
    references = obj["metadata"].get("ownerReferences") or []
    return any(each["uid"] == owner["metadata"]["uid"] for each in references)
