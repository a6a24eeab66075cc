"""Jobs under KubeRay: a RayJob manifest, filled in from deploy/kubernetes."""

from __future__ import annotations

import json
import shlex
from importlib.resources import files
from typing import Any

import yaml
from depthscope.storage.errors import RequestError

from .cluster_program import ClusterProgram, NoAnswer
from .inner_command import InnerCommand
from .job_records import JobRecord, new_folder, new_id
from .submit import Submitted, record_of
from .submit_spec import SubmitSpec


def _refusal(text: str) -> str:
    lines = text.strip().splitlines() or ["no reason was given"]
    return f"kubectl refuses: {lines[-1]}"


_KUBERNETES = ClusterProgram(
    "Kubernetes",
    "--kubernetes: {program} is not on the path: install it, or use --dry-run and create the "
    "manifest elsewhere",
    _refusal,
)


def rayjob(command: InnerCommand, spec: SubmitSpec, job: str) -> dict[str, Any]:
    """The manifest of a RayJob that runs the command."""
    text = files("depthscope.deploy").joinpath("kubernetes", "rayjob.yaml").read_text("utf-8")
    manifest: dict[str, Any] = yaml.safe_load(text)
    manifest["metadata"]["name"] = job
    if spec.namespace:
        manifest["metadata"]["namespace"] = spec.namespace
    run = manifest["spec"]
    run["entrypoint"] = f"python -m depthscope.jobs {shlex.join(command.arguments)}"
    cluster = run["rayClusterSpec"]
    cluster["rayVersion"] = _ray_version()
    group = cluster["workerGroupSpecs"][0]
    group["replicas"] = group["minReplicas"] = group["maxReplicas"] = spec.nodes
    for node in (cluster["headGroupSpec"], group):
        node["rayStartParams"]["object-store-memory"] = str(int(spec.object_store))
        pod = node["template"]["spec"]
        pod["containers"][0]["image"] = spec.image
        _mount(pod, spec.claim)
        if spec.chdir is not None:
            pod["containers"][0]["workingDir"] = str(spec.chdir)
    resources = _resources(spec)
    group["template"]["spec"]["containers"][0]["resources"] = {
        "requests": dict(resources),
        "limits": dict(resources),
    }
    return manifest


def submit_to_kubernetes(command: InnerCommand, spec: SubmitSpec) -> Submitted:
    """Create the RayJob through kubectl.

    Raises
    ------
    RequestError
        There is no kubectl, or the cluster refuses the manifest.
    """
    job = new_id(spec.job_name or command.name)
    text = yaml.safe_dump(rayjob(command, spec, job), sort_keys=False, width=100)
    if spec.dry_run:
        return Submitted(text)
    with new_folder(job) as folder:
        (folder / "rayjob.yaml").write_text(text, encoding="utf-8")
        _KUBERNETES.ask(["kubectl", "create", "-f", "-"], text)
    record = record_of(job, "kubernetes", job, spec.namespace or "", [command])
    record.save()
    return Submitted(record=record)


def state_of(record: JobRecord) -> str:
    """State of a RayJob in KubeRay's words; empty where it cannot be asked.

    Raises
    ------
    NoAnswer
        The cluster did not answer in time, and would not for other jobs.
    """
    command = ["kubectl", "get", "rayjob", record.job, "-o", "json", *_namespace(record)]
    try:
        text = _KUBERNETES.ask(command)
    except NoAnswer:
        raise
    except RequestError:
        return ""
    found = json.loads(text).get("status", {})
    return str(found.get("jobStatus") or found.get("jobDeploymentStatus") or "").lower()


def delete(record: JobRecord) -> None:
    """End a RayJob and its cluster.

    Raises
    ------
    RequestError
        The cluster refuses.
    """
    command = ["kubectl", "delete", "rayjob", record.job, "--ignore-not-found"]
    _KUBERNETES.ask([*command, *_namespace(record)])


def _namespace(record: JobRecord) -> list[str]:
    return ["--namespace", record.place] if record.place else []


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")


def _resources(spec: SubmitSpec) -> dict[str, str]:
    amounts = {"cpu": str(spec.cpus_per_node or 8)}
    amounts["memory"] = f"{int(spec.memory_per_node or (32 << 30)) >> 20}Mi"
    if spec.gpus:
        amounts["nvidia.com/gpu"] = str(spec.gpus)
    return amounts


def _mount(pod: dict[str, Any], claim: str | None) -> None:
    if claim is None:
        return
    pod.setdefault("volumes", []).append(
        {"name": "data", "persistentVolumeClaim": {"claimName": claim}}
    )
    mounts = pod["containers"][0].setdefault("volumeMounts", [])
    mounts.append({"name": "data", "mountPath": "/data"})
