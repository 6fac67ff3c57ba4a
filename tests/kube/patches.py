"""The patch formats of Kubernetes; each returns a new object and leaves its arguments alone."""

from copy import deepcopy

from kube.errors import ApiError

# Key of the items of each list; lists that are not here are replaced as a whole.
_MERGE_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort", "port"),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
}


def merge_patch(target, patch):
    """Apply an RFC 7386 merge patch."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def strategic_merge(target, patch):
    """Apply a strategic merge patch: lists of named things are merged by name."""
    if patch.get("$patch") == "replace":
        return {name: deepcopy(value) for name, value in patch.items() if name != "$patch"}
    merged = dict(target)
    kept = patch.get("$retainKeys")
    if kept is not None:
        merged = {name: value for name, value in merged.items() if name in kept}
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            name = name.split("/", 1)[1]
            merged[name] = [item for item in merged.get(name, []) if item not in value]
        elif name.startswith("$"):
            continue
        elif value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = strategic_merge(merged.get(name) or {}, value)
        elif isinstance(value, list) and _merge_key(name, value):
            merged[name] = _merge_items(merged.get(name) or [], value, _merge_key(name, value))
        else:
            merged[name] = deepcopy(value)
    return merged


def _merge_key(name, items):
    """Return the field that identifies the items of a list, or None."""
    for key in _MERGE_KEYS.get(name, ()):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return key
    return None


def _merge_items(items, patches, key):
    merged = {item[key]: item for item in items}
    for patch in patches:
        if patch.get("$patch") == "delete":
            merged.pop(patch[key], None)
        else:
            merged[patch[key]] = strategic_merge(merged.get(patch[key], {}), patch)
    return list(merged.values())


def json_patch(target, operations):
    """Apply an RFC 6902 patch made of add, replace, remove and test."""
    patched = deepcopy(target)
    for operation in operations:
        *path, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        try:
            parent = patched
            for part in path:
                parent = parent[_index(parent, part)]
            _change(parent, last, operation)
        except (KeyError, IndexError, ValueError, TypeError):
            message = f"the server rejected our request due to an error in our request: {operation}"
            raise ApiError(422, "Invalid", message) from None
    return patched


def _index(parent, part):
    return int(part) if isinstance(parent, list) else part


def _change(parent, last, operation):
    value = deepcopy(operation.get("value"))
    if operation["op"] == "add" and isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else int(last), value)
    elif operation["op"] == "add":
        parent[last] = value
    elif operation["op"] == "remove":
        del parent[_index(parent, last)]
    elif operation["op"] == "replace":
        parent[_index(parent, last)]  # must be there
        parent[_index(parent, last)] = value
    elif operation["op"] != "test" or parent[_index(parent, last)] != value:
        raise ValueError(operation)


def forget(target, applied, body):
    """Remove from an object what an earlier server-side apply set and this one no longer names."""
    left = dict(target)
    for name, value in applied.items():
        if name not in body:
            left.pop(name, None)
        elif isinstance(value, dict) and isinstance(left.get(name), dict):
            left[name] = forget(left[name], value, body[name])
        elif isinstance(value, list) and (key := _merge_key(name, value)):
            left[name] = _forget_items(left.get(name) or [], value, body[name], key)
    return left


def _forget_items(items, applied, body, key):
    before = {item[key]: item for item in applied}
    now = {item.get(key): item for item in body}
    return [
        forget(item, before[item[key]], now[item[key]]) if item.get(key) in before else item
        for item in items
        if item.get(key) not in before or item.get(key) in now
    ]
