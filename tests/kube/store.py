"""Objects, their versions and history; deletion with finalizers and owners."""

import base64
import bisect
import random
import threading
import uuid
from copy import deepcopy
from dataclasses import dataclass

from kube.admission import admit, admit_trainjob
from kube.clock import now
from kube.errors import ApiError, conflict, invalid, not_found
from kube.kinds import kind_of
from kube.schema import problems_of
from kube.selectors import matches_fields, matches_labels

_FOREGROUND = "foregroundDeletion"
_FIXED = ("uid", "creationTimestamp", "generation", "name", "namespace")
_DELETION = ("deletionTimestamp", "deletionGracePeriodSeconds")
_HISTORY = 5000


@dataclass(frozen=True)
class Change:
    """One step of the history; `before` is None for a creation."""

    revision: int
    type: str  # ADDED, MODIFIED or DELETED
    kind: str
    namespace: str
    obj: dict
    before: dict | None


class Store:
    """All objects of the server; safe to use from several threads.

    `changed` is notified at every change, for those who wait for a state.
    """

    def __init__(self):
        self.changed = threading.Condition(threading.RLock())
        self.revision = 100
        self.oldest = self.revision  # first revision in the history
        self.history = []
        self._objects = {}

    def get(self, kind, name, namespace):
        with self.changed:
            return deepcopy(self._find(kind, name, namespace))

    def list(self, kind, namespace=None, *, labels="", fields=""):
        """Return the objects of a kind, of all namespaces if none is given."""
        with self.changed:
            return [
                deepcopy(obj)
                for (of_kind, of_namespace, _), obj in self._objects.items()
                if of_kind == kind
                and namespace in (None, of_namespace)
                and matches_labels(labels, obj["metadata"].get("labels"))
                and matches_fields(fields, obj)
            ]

    def create(self, kind, obj, namespace, *, dry_run=False):
        """Add an object; its status is dropped, because controllers write it."""
        api = kind_of(kind)
        obj = {"apiVersion": api.api_version, "kind": kind} | deepcopy(obj)
        meta = obj.setdefault("metadata", {})
        with self.changed:
            self._name(api, meta, namespace)
            if api.has_status:
                obj.pop("status", None)
            problems = problems_of(obj)
            if problems:
                raise invalid(api, meta["name"], problems)
            if kind == "Pod":
                admit(self, obj, namespace)
            if kind == "TrainJob":
                admit_trainjob(self, obj, namespace)
            _encode(obj)
            key = (kind, namespace, meta["name"])
            if key in self._objects:
                message = f'{api.resource} "{meta["name"]}" already exists'
                raise ApiError(409, "AlreadyExists", message)
            for name in ("resourceVersion", *_DELETION):
                meta.pop(name, None)
            meta.update(uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
            if kind == "Pod":
                obj["status"] = {"phase": "Pending"}
            if not dry_run:
                self._put("ADDED", key, obj, None)
                self._collect_orphan(key)
            return deepcopy(obj)

    def _name(self, api, meta, namespace):
        if not meta.get("name"):
            if not meta.get("generateName"):
                raise invalid(api, "", ["metadata.name: Required value: name is required"])
            letters = "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
            meta["name"] = meta["generateName"] + letters
        if api.namespaced:
            if meta.setdefault("namespace", namespace) != namespace:
                message = (
                    "the namespace of the provided object does not match the namespace sent on "
                    "the request"
                )
                raise ApiError(400, "BadRequest", message)
            self._find("Namespace", namespace, "")

    def update(self, kind, name, namespace, change, *, status=False):
        """Change a copy of an object with `change`, store it and return it."""
        with self.changed:
            obj = self.get(kind, name, namespace)
            change(obj)
            return self.replace(kind, obj, name, namespace, status=status)

    def replace(self, kind, obj, name, namespace, *, status=False, dry_run=False):
        """Store a new state of an object; an old resourceVersion in it is a conflict."""
        api = kind_of(kind)
        with self.changed:
            old = self._find(kind, name, namespace)
            new = self._next_state(api, old, deepcopy(obj), status=status)
            if not status and (problems := problems_of(new, old)):
                raise invalid(api, name, problems)
            _encode(new)
            if new == old or dry_run:
                return deepcopy(new)
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] += 1
            key = (kind, namespace, name)
            self._put("MODIFIED", key, new, old)
            deleted = "deletionTimestamp" in new["metadata"] and kind != "Pod"
            if deleted and not new["metadata"].get("finalizers"):
                self._remove(key)
            return deepcopy(new)

    def _next_state(self, api, old, new, *, status):
        meta, old_meta = new.setdefault("metadata", {}), old["metadata"]
        if meta.get("resourceVersion", old_meta["resourceVersion"]) != old_meta["resourceVersion"]:
            raise conflict(api, old_meta["name"])
        if meta.get("uid", old_meta["uid"]) != old_meta["uid"]:
            why = f"Precondition failed: UID in precondition: {meta['uid']}"
            raise conflict(api, old_meta["name"], why)
        if status:
            return {**old, "metadata": dict(old_meta), "status": new.get("status", {})}
        if api.has_status:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        for name in (*_FIXED, *_DELETION, "resourceVersion"):
            meta.pop(name, None)
            if name in old_meta:
                meta[name] = old_meta[name]
        return {"apiVersion": api.api_version, "kind": api.name} | new

    def delete(self, kind, name, namespace, *, propagation="Background", grace=None, uid=None):
        """Delete an object, respecting finalizers, dependents and running pods.

        Args:
            kind: For example `Pod`.
            name: Its name.
            namespace: Its namespace, empty for kinds without.
            propagation: What happens to dependents: Background, Foreground or Orphan.
            grace: Seconds until a pod is killed; its own setting if None.
            uid: Only if it has this uid.
        """
        with self.changed:
            obj = deepcopy(self._find(kind, name, namespace))
            if uid not in (None, obj["metadata"]["uid"]):
                raise conflict(kind_of(kind), name, f"Precondition failed: UID: {uid}")
            key = (kind, namespace, name)
            if kind == "Pod" and self._let_the_kubelet_stop(key, obj, grace):
                return obj
            if propagation == "Orphan":
                self._orphan_dependents(obj)
            elif propagation == "Foreground" and self._dependents(obj):
                obj["metadata"].setdefault("finalizers", []).append(_FOREGROUND)
            if obj["metadata"].get("finalizers"):
                self._mark_deleted(key, obj)
                self._delete_dependents_of_foreground(obj)
            else:
                self._remove(key)
            return obj

    def _let_the_kubelet_stop(self, key, pod, grace):
        """Mark a pod on a node for deletion; return False if it can be removed at once."""
        finished = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if grace == 0 or finished or not pod["spec"].get("nodeName"):
            return False
        if grace is None:
            grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
        pod["metadata"]["deletionGracePeriodSeconds"] = grace
        pod["metadata"].setdefault("deletionTimestamp", now(grace))  # deadline of its removal
        self._mark_deleted(key, pod)
        return True

    def _mark_deleted(self, key, obj):
        obj["metadata"].setdefault("deletionTimestamp", now())
        if obj != self._objects[key]:
            self._put("MODIFIED", key, obj, self._objects[key])

    def _delete_dependents_of_foreground(self, obj):
        if _FOREGROUND in obj["metadata"]["finalizers"]:
            for kind, namespace, name in self._dependents(obj):
                if (kind, namespace, name) in self._objects:
                    self.delete(kind, name, namespace, propagation="Foreground")

    def _orphan_dependents(self, owner):
        for kind, namespace, name in self._dependents(owner):
            self.update(kind, name, namespace, lambda obj: _drop_owner(obj, owner))

    def _dependents(self, owner):
        return [
            key for key, obj in self._objects.items() if owner["metadata"]["uid"] in _owners_of(obj)
        ]

    def _remove(self, key):
        """Remove an object, then its dependents, then owners that waited for it."""
        old = self._objects[key]
        self._put("DELETED", key, deepcopy(old), old)
        for dependent in self._dependents(old):
            self._collect_orphan(dependent)
        for owner_key, owner in list(self._objects.items()):
            waits = _FOREGROUND in owner["metadata"].get("finalizers", [])
            if waits and not self._dependents(owner):
                self.update(
                    *(owner_key[0], owner_key[2], owner_key[1]),
                    lambda obj: obj["metadata"]["finalizers"].remove(_FOREGROUND),
                )

    def _collect_orphan(self, key):
        """Delete an object whose owners are all gone, as the garbage collector does."""
        obj = self._objects.get(key)
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            return
        owners = _owners_of(obj)
        alive = {other["metadata"]["uid"] for other in self._objects.values()}
        if owners and not owners & alive:
            self.delete(key[0], key[2], key[1])

    def _find(self, kind, name, namespace):
        try:
            return self._objects[kind, namespace, name]
        except KeyError:
            raise not_found(kind_of(kind), name) from None

    def _put(self, type_, key, obj, before):
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        if type_ == "DELETED":
            del self._objects[key]
        else:
            self._objects[key] = deepcopy(obj)
        change = Change(self.revision, type_, key[0], key[1], deepcopy(obj), before)
        self.history.append(change)
        if len(self.history) > _HISTORY:
            self.compact(keep=_HISTORY // 2)
        self.changed.notify_all()

    def compact(self, keep=0):
        """Drop the history but its last changes: watches from before are Gone (410)."""
        with self.changed:
            dropped = self.history[: len(self.history) - keep]
            if dropped:
                self.oldest = dropped[-1].revision
                self.history = self.history[len(dropped) :]

    def changes_since(self, revision):
        """Return the changes after a revision; 410 when the history does not go so far back."""
        with self.changed:
            if revision < self.oldest:
                message = f"too old resource version: {revision} ({self.oldest})"
                raise ApiError(410, "Expired", message)
            start = bisect.bisect_right(self.history, revision, key=lambda change: change.revision)
            return self.history[start:]


def _encode(obj):
    """Move a Secret's `stringData`, which is never returned, into its `data`."""
    if obj["kind"] == "Secret":
        plain = obj.pop("stringData", None) or {}
        coded = {key: base64.b64encode(text.encode()).decode() for key, text in plain.items()}
        obj["data"] = (obj.get("data") or {}) | coded


def _owners_of(obj):
    return {owner["uid"] for owner in obj["metadata"].get("ownerReferences") or []}


def _drop_owner(obj, owner):
    references = obj["metadata"]["ownerReferences"]
    obj["metadata"]["ownerReferences"] = [
        each for each in references if each["uid"] != owner["metadata"]["uid"]
    ]
