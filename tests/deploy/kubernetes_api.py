"""The part of the Kubernetes API that kubectl uses. Objects are validated and stored in memory; nothing runs.

There are no controllers. Instead, a Job completes once a client watches it or follows its log, and a Deployment is
rolled out once a client watches it and the Jobs of its namespace are complete.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import kubernetes_validate

VERSION = "1.37"
SPEC = {"title": "Kubernetes", "version": VERSION}
# The resources of each API group and version, as name and kind.
RESOURCES = {
    "v1": {
        "namespaces": "Namespace",
        "secrets": "Secret",
        "configmaps": "ConfigMap",
        "services": "Service",
        "serviceaccounts": "ServiceAccount",
        "pods": "Pod",
    },
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "batch/v1": {"jobs": "Job", "cronjobs": "CronJob"},
    "networking.k8s.io/v1": {"ingresses": "Ingress", "networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
}
LOGS = {
    "migrate": "  Applying auditlog.0001_initial... OK\n",
    "gateway": "Sign in as admin@localhost.\nPassword: of-a-test\n",
}

type Object = dict[str, Any]


class Key(NamedTuple):
    """The location of an object or list; a list has no name."""

    version: str
    resource: str
    namespace: str
    name: str


class Refused(Exception):
    """A request that gets an error response."""

    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.status = status
        self.reason = reason


class Kubernetes:
    """A cluster without nodes. `said` has the requested changes in order, as verb, kind and name."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.said: list[tuple[str, str, str]] = []
        self.forwarded: list[str] = []
        self.url = ""
        self.migrates = True  # False: the Job never completes.
        self._changes: list[tuple[Key, Object]] = []
        self._changed = threading.Condition()

    def all(self, namespace: str) -> list[Object]:
        """Return the objects of a namespace, except pods."""
        with self._changed:
            return [one for key, one in self.objects.items() if key.namespace == namespace and key.resource != "pods"]

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """Return the content of a secret."""
        data = self.objects[Key("v1", "secrets", namespace, name)]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    # Requests of kubectl

    def get(self, key: Key) -> Object:
        with self._changed:
            if key not in self.objects:
                raise Refused(404, "NotFound", f'{key.resource} "{key.name}" not found')
            return self.objects[key]

    def listed(self, key: Key, fields: str, labels: str) -> Object:
        with self._changed:
            items = [
                one for at, one in self.objects.items() if at._replace(name="") == key and _fits(one, fields, labels)
            ]
            kind = RESOURCES[key.version][key.resource]
            metadata = {"resourceVersion": str(len(self._changes))}
            return {"apiVersion": key.version, "kind": f"{kind}List", "metadata": metadata, "items": items}

    def create(self, key: Key, body: Object) -> Object:
        key = key._replace(name=body["metadata"]["name"])
        if key in self.objects:
            raise Refused(409, "AlreadyExists", f'{key.resource} "{key.name}" already exists')
        if key.namespace and Key("v1", "namespaces", "", key.namespace) not in self.objects:
            raise Refused(404, "NotFound", f'namespaces "{key.namespace}" not found')
        self._put("create", key, body)
        return self._begun(key)

    def patch(self, key: Key, patch: Object) -> Object:
        self._put("patch", key, merged(self.get(key), patch))
        return self._begun(key)

    def delete(self, key: Key) -> Object:
        gone = self.get(key)
        with self._changed:
            del self.objects[key]
            self.said.append(("delete", gone["kind"], key.name))
            self._changes.append((key, {"type": "DELETED", "object": gone}))
            self._changed.notify_all()
        return {"apiVersion": "v1", "kind": "Status", "status": "Success", "details": {"uid": gone["metadata"]["uid"]}}

    def watched(self, key: Key, fields: str, labels: str, since: int) -> Iterator[Object | None]:
        """Yield changes as they happen; sometimes None, so that the caller notices a closed connection."""
        self.wait_is_over(key)
        while True:
            with self._changed:
                if len(self._changes) <= since:
                    self._changed.wait(0.5)
                news, since = self._changes[since:], len(self._changes)
            for at, event in news:
                if at._replace(name="") == key and _fits(event["object"], fields, labels):
                    yield event
            yield None

    def log(self, namespace: str, pod: str, container: str) -> str:
        """Return the log of a pod's container; following the log of a Job completes the Job."""
        owner = self.get(Key("v1", "pods", namespace, pod))["metadata"]["labels"]["app.kubernetes.io/component"]
        if owner != "gateway":
            self.wait_is_over(Key("batch/v1", "jobs", namespace, ""))
        return LOGS.get(container, "")

    # Actions of controllers

    def wait_is_over(self, key: Key) -> None:
        """Complete the Job or Deployment that a client waits for."""
        for at, one in list(self.objects.items()):
            if at._replace(name="") != key or key.resource not in ("jobs", "deployments"):
                continue
            if key.resource == "jobs" and self.migrates and not one.get("status"):
                self._put("complete", at, one | {"status": {"succeeded": 1, "conditions": [_true("Complete")]}})
            elif key.resource == "deployments" and self._is_migrated(at.namespace):
                count = one["spec"].get("replicas", 1)
                names = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
                status = {"observedGeneration": one["metadata"]["generation"], **dict.fromkeys(names, count)}
                self._put("roll out", at, one | {"status": status | {"conditions": [_true("Available")]}})

    def _is_migrated(self, namespace: str) -> bool:
        self.wait_is_over(Key("batch/v1", "jobs", namespace, ""))
        jobs = [one for at, one in self.objects.items() if (at.resource, at.namespace) == ("jobs", namespace)]
        return all(one.get("status") for one in jobs)

    def _begun(self, key: Key) -> Object:
        """Return the object after creating its pods."""
        one = self.objects[key]
        if key.resource == "jobs" and "selector" not in one["spec"]:
            own = {"controller-uid": one["metadata"]["uid"]}
            one["spec"]["selector"] = {"matchLabels": own}
            one["spec"]["template"]["metadata"].setdefault("labels", {}).update(own)
        if key.resource in ("jobs", "deployments"):
            template = one["spec"]["template"]
            for number in range(one["spec"].get("replicas", 2 if key.resource == "deployments" else 1)):
                name = f"{key.name}-{number}"
                metadata = {**template["metadata"], "name": name, "namespace": key.namespace}
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
                running = {"phase": "Running", "conditions": [_true("Ready")], "podIP": f"192.0.2.{number + 1}"}
                self._put("", Key("v1", "pods", key.namespace, name), pod | {"status": running})
        return one

    def _put(self, verb: str, key: Key, one: Object) -> None:
        kubernetes_validate.validate(json.loads(json.dumps(one)), VERSION, strict=True)
        with self._changed:
            before = self.objects.get(key)
            metadata = one["metadata"]
            one = one | {"metadata": metadata | {"resourceVersion": str(len(self._changes) + 1)}}
            one["metadata"].setdefault("uid", str(uuid4()))
            one["metadata"].setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            is_other = before is None or before.get("spec") != one.get("spec")
            one["metadata"]["generation"] = metadata.get("generation", 0) + is_other
            if is_other:
                one.pop("status", None) if key.resource == "deployments" else None
            if key.resource == "services" and before is None:
                one["spec"].setdefault("clusterIP", "10.96.0.10")
            self.objects[key] = one
            if verb:
                self.said.append((verb, one["kind"], key.name))
            self._changes.append((key, {"type": "MODIFIED" if before else "ADDED", "object": one}))
            self._changed.notify_all()


def _true(kind: str) -> Object:
    return {"type": kind, "status": "True", "reason": "Test", "message": ""}


def _fits(one: Object, fields: str, labels: str) -> bool:
    if fields and fields.partition("=")[2] != one["metadata"]["name"]:
        return False
    own = one["metadata"].get("labels", {})
    return all(own.get(name) == value for name, _, value in (each.partition("=") for each in labels.split(",") if each))


def merged(old: Any, patch: Any) -> Any:
    """Return `old` after a strategic merge patch. Elements of lists are matched by their names."""
    if isinstance(old, dict) and isinstance(patch, dict):
        result = dict(old)
        for name, value in patch.items():
            if name.startswith("$"):
                continue
            if value is None:
                result.pop(name, None)
            else:
                result[name] = merged(result.get(name), value)
        return result
    if (
        isinstance(old, list)
        and isinstance(patch, list)
        and all(isinstance(one, dict) and "name" in one for one in patch)
    ):
        changed = {one["name"]: one for one in patch}
        known = [merged(one, changed.pop(one["name"])) if one["name"] in changed else one for one in old]
        return known + list(changed.values())
    return patch


def discovery(path: str) -> Object | None:  # noqa: PLR0911  (a table)
    """Answer kubectl's discovery requests: list the resources, and announce server-side field validation."""
    groups = [version.split("/") for version in RESOURCES if "/" in version]
    match path:
        case "/version":
            return {"major": "1", "minor": "37", "gitVersion": f"v{VERSION}.0"}
        case "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        case "/apis":
            found = [
                {"name": group, "versions": [each := {"groupVersion": f"{group}/{version}", "version": version}],
                 "preferredVersion": each} for group, version in groups
            ]  # fmt: skip
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
        case "/openapi/v3":
            paths = {_place(version): {"serverRelativeURL": f"/openapi/v3/{_place(version)}"} for version in RESOURCES}
            return {"paths": paths}
    for version, resources in RESOURCES.items():
        if path == f"/{_place(version)}":
            listed = [
                {"name": name, "singularName": kind.lower(), "namespaced": name != "namespaces", "kind": kind,
                 "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]}
                for name, kind in resources.items()
            ]  # fmt: skip
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}
        if path == f"/openapi/v3/{_place(version)}":
            group, _, number = version.rpartition("/")
            field = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
            kinds = {name: {"group": group, "version": number, "kind": kind} for name, kind in resources.items()}
            patches = {
                f"/{_place(version)}/{name}/{{name}}": {
                    "patch": {"x-kubernetes-group-version-kind": kind, "parameters": [field], "responses": {}}
                }
                for name, kind in kinds.items()
            }
            return {"openapi": "3.0.0", "info": SPEC, "paths": patches}
    return None


def _place(version: str) -> str:
    return f"apis/{version}" if "/" in version else f"api/{version}"


def where(path: str) -> tuple[Key, str]:
    """Return the key of the object or list at `path`, and the subresource, if any."""
    parts = path.strip("/").split("/")
    version, rest = (parts[1], parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name, part = [*rest, "", ""][:3]
    if resource not in RESOURCES.get(version, {}):
        raise Refused(404, "NotFound", f"no {path}")
    return Key(version, resource, namespace, name), part


class Handler(BaseHTTPRequestHandler):
    """One request of kubectl."""

    protocol_version = "HTTP/1.1"
    cluster: Kubernetes

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PATCH(self) -> None:
        self._answer(lambda key, _, __: self.cluster.patch(key, self._body()))

    def do_DELETE(self) -> None:
        self._answer(lambda key, _, __: self.cluster.delete(key))

    def _answer(self, act: Any) -> None:
        parts, self._sent = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        try:
            found = discovery(parts.path)
            said = found if found is not None else act(*where(parts.path), asked)
        except Refused as error:
            self._say(error.status, _status(error.status, error.reason, str(error)))
        except kubernetes_validate.utils.ValidationError as error:
            self._say(422, _status(422, "Invalid", str(error)))
        else:
            if said is not None:
                self._say(200, said)

    def _get(self, key: Key, part: str, asked: dict[str, str]) -> Object | None:
        if part == "portforward":
            return self._post(key, part, asked)
        if part == "log":
            self._send("text/plain", self.cluster.log(key.namespace, key.name, asked.get("container", "")).encode())
            return None
        fields, labels = asked.get("fieldSelector", ""), asked.get("labelSelector", "")
        if asked.get("watch") in ("true", "1"):
            self._watch(key, fields, labels, int(asked.get("resourceVersion") or 0))
            return None
        return self.cluster.get(key) if key.name else self.cluster.listed(key, fields, labels)

    def _post(self, key: Key, part: str, _: dict[str, str]) -> Object | None:
        if part == "portforward":
            self.cluster.forwarded.append(key.name)
            raise Refused(501, "NotImplemented", "nothing runs here")
        return self.cluster.create(key, self._body())

    def _watch(self, key: Key, fields: str, labels: str, since: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for event in self.cluster.watched(key, fields, labels, since):
                bookmark = {"type": "BOOKMARK", "object": _bookmark(key)}
                self.wfile.write(json.dumps(event or bookmark).encode() + b"\n")
                self.wfile.flush()
        except OSError:
            return

    def _body(self) -> Object:
        if self._sent.startswith(PROTOBUF):
            return _from_protobuf(self._sent.removeprefix(PROTOBUF))
        body: Object = json.loads(self._sent or b"{}")
        return body

    def _say(self, status: int, said: Object) -> None:
        self._send("application/json", json.dumps(said).encode(), status)

    def _send(self, kind: str, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


PROTOBUF = b"k8s\0"


def _from_protobuf(sent: bytes) -> Object:
    """Decode a namespace or secret as `kubectl create` sends it, by field numbers."""
    envelope = _fields(sent)
    version, kind = (_fields(envelope[1][0])[number][0].decode() for number in (1, 2))
    one = _fields(envelope[2][0])
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": _fields(one[1][0])[1][0].decode()}}
    if kind == "Secret":
        pairs = [_fields(entry) for entry in one.get(2, [])]
        held = {pair[1][0].decode(): base64.b64encode(pair[2][0]).decode() for pair in pairs}
        return body | {"data": held, "type": one.get(3, [b"Opaque"])[0].decode() or "Opaque"}
    assert kind == "Namespace", kind
    return body


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """Return the length-delimited fields of a protobuf message, by number."""
    found: dict[int, list[bytes]] = {}
    while message:
        tag, message = _number(message)
        size, message = _number(message)
        if tag & 7 == 2:
            found.setdefault(tag >> 3, []).append(message[:size])
            message = message[size:]
    return found


def _number(message: bytes) -> tuple[int, bytes]:
    value = shift = at = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        if not message[at] & 0x80:
            return value, message[at + 1 :]
        at, shift = at + 1, shift + 7


def _status(code: int, reason: str, message: str) -> Object:
    failure = {"apiVersion": "v1", "kind": "Status", "status": "Failure"}
    return failure | {"reason": reason, "message": message, "code": code}


def _bookmark(key: Key) -> Object:
    kind = RESOURCES[key.version][key.resource]
    return {"apiVersion": key.version, "kind": kind, "metadata": {"resourceVersion": "0"}}


@contextmanager
def kubernetes() -> Iterator[Kubernetes]:
    """An empty cluster."""
    cluster = Kubernetes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
