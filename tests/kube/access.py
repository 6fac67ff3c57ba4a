"""Access rules: Roles and bindings in the store, enforced as the API server does."""


def user_name(account, namespace):
    """Return the user name of a service account; "" is the administrator."""
    return f"system:serviceaccount:{namespace}:{account}" if account else "admin"


def bind(store, account, rules, namespace):
    """Give a service account the rules of a Role, in a Role and a RoleBinding of its name."""
    store.create("Role", {"metadata": {"name": account}, "rules": list(rules)}, namespace)
    binding = {
        "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    store.create("RoleBinding", binding, namespace)


def is_allowed(store, user, verb, *, group, resource, namespace, name=""):
    """Return whether a user may do this; `resource` carries a subresource: `pods/log`.

    `namespace` is "" for all namespaces, and for kinds without one.
    """
    if user == "admin":
        return True
    return any(
        _has(rule.get("apiGroups"), group)
        and _has(rule.get("resources"), resource)
        and _has(rule.get("verbs"), verb)
        and (not rule.get("resourceNames") or name in rule["resourceNames"])
        for rule in _rules_of(store, user, namespace)
    )


def _has(granted, wanted):
    granted = granted or []
    return "*" in granted or wanted in granted


def _rules_of(store, user, namespace):
    """Yield the rules of all roles that are bound to a user, there or in the whole cluster."""
    bindings = store.list("ClusterRoleBinding")
    if namespace:
        bindings += store.list("RoleBinding", namespace)
    for binding in bindings:
        if any(_means(subject, user) for subject in binding.get("subjects") or []):
            role = binding["roleRef"]
            where = namespace if role["kind"] == "Role" else ""
            for each in store.list(role["kind"], where, fields=f"metadata.name={role['name']}"):
                yield from each.get("rules") or []


def _means(subject, user):
    if subject["kind"] == "ServiceAccount":
        return user == user_name(subject["name"], subject.get("namespace"))
    return subject["name"] == user
