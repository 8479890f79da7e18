#!/usr/bin/env python3
"""Looks at the Helm chart: at its version, and at what `helm template` made of it.

    manifests.py version                   the chart's version is that of the program
    manifests.py pods FILE                 pods are confined and agree with their settings
    manifests.py monitoring FILE           what the Prometheus operator and Grafana get
    manifests.py accepted FILE PROGRAM     the program accepts settings and environment of the pods
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/plextrac-bridge"

problems = []


def problem(text):
    problems.append(text)


def manifests(file):
    return [manifest for manifest in yaml.safe_load_all(Path(file).read_text()) if manifest]


def of_kind(file, *kinds):
    return [manifest for manifest in manifests(file) if manifest["kind"] in kinds]


def pods(file):
    """The name and the specification of every pod."""
    for manifest in manifests(file):
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if manifest["kind"] == "Pod":
            yield name, manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            yield name, manifest["spec"]["template"]["spec"]


def containers(spec):
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind, [])


def settings_of(file):
    (config,) = [m["data"]["config.toml"] for m in of_kind(file, "ConfigMap") if "config.toml" in m["data"]]
    return config


def check_version():
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if chart["appVersion"] != cargo:
        problem(f"Chart.yaml has appVersion {chart['appVersion']}, Cargo.toml has version {cargo}")


# --- Pods: the profile "restricted" of the Pod Security Standards, baseline included, and what this chart adds.

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem",
}
SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def check_context(where, context):
    """What a pod and a container may both say."""
    if context.get("runAsUser") == 0:
        problem(f"{where}: runAsUser is 0")
    if context.get("runAsNonRoot") is False:
        problem(f"{where}: runAsNonRoot is false")
    if context.get("windowsOptions", {}).get("hostProcess"):
        problem(f"{where}: hostProcess")
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type") not in SELINUX or selinux.get("user") or selinux.get("role"):
        problem(f"{where}: seLinuxOptions {selinux}")
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        problem(f"{where}: appArmorProfile is Unconfined")
    if context.get("seccompProfile", {}).get("type") == "Unconfined":
        problem(f"{where}: seccompProfile is Unconfined")


def check_container(where, pod, container):
    context = container.get("securityContext", {})
    check_context(where, context)
    if context.get("privileged"):
        problem(f"{where}: privileged")
    if context.get("allowPrivilegeEscalation") is not False:
        problem(f"{where}: allowPrivilegeEscalation is not false")
    if not (context.get("runAsNonRoot") or pod.get("runAsNonRoot") and context.get("runAsNonRoot") is not False):
        problem(f"{where}: runAsNonRoot is not true")
    if context.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
        problem(f"{where}: no seccompProfile RuntimeDefault or Localhost")
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        problem(f"{where}: capabilities are not dropped: ALL")
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        problem(f"{where}: capabilities are added: {capabilities['add']}")
    if context.get("procMount", "Default") != "Default":
        problem(f"{where}: procMount is {context['procMount']}")
    if any(port.get("hostPort") for port in container.get("ports", [])):
        problem(f"{where}: hostPort")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        for action in ("httpGet", "tcpSocket"):
            if container.get(probe, {}).get(action, {}).get("host"):
                problem(f"{where}: {probe} names a host")
    for hook in container.get("lifecycle", {}).values():
        if any(hook.get(action, {}).get("host") for action in ("httpGet", "tcpSocket")):
            problem(f"{where}: a hook of its lifecycle names a host")
    # Beyond the profile.
    if context.get("readOnlyRootFilesystem") is not True:
        problem(f"{where}: readOnlyRootFilesystem is not true")


def check_restricted(name, spec):
    pod = spec.get("securityContext", {})
    check_context(name, pod)
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            problem(f"{name}: {key}")
    for sysctl in pod.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            problem(f"{name}: the sysctl {sysctl['name']}")
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds or kinds - VOLUMES:
            problem(f"{name}: the volume {volume['name']} is of kind {', '.join(kinds) or 'none'}")
    for container in containers(spec):
        check_container(f"{name}, {container['name']}", pod, container)
    # Beyond the profile.
    for key in ("automountServiceAccountToken", "enableServiceLinks"):
        if spec.get(key) is not False:
            problem(f"{name}: {key} is not false")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+) *(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def port(address):
    return int(address.rsplit(":", 1)[1])


def image_variables():
    """What the image sets, by name."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    return dict(re.findall(r"\b(PLEXTRAC_BRIDGE_\w+)=(\S+)", text))


def check_agreement(file, kind, name, spec, claims):
    """What Kubernetes is told of the daemon is what its settings say."""
    settings = tomllib.loads(settings_of(file))
    (container,) = spec["containers"]
    stop = settings.get("shutdown", {})
    needed = seconds(stop.get("delay", "0s")) + seconds(stop["grace"]) + 10
    if not needed <= spec["terminationGracePeriodSeconds"] < needed + 1:
        problem(f"{name}: terminationGracePeriodSeconds is {spec['terminationGracePeriodSeconds']}, not {needed}")
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    expected = {"webhooks": port(settings["ingress"]["listen"]), "admin": port(settings["admin"]["listen"])}
    if ports != expected:
        problem(f"{name}: ports are {ports}, the settings listen on {expected}")
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        asked = container[probe]["httpGet"]
        if (asked["path"], asked["port"]) != (path, "admin"):
            problem(f"{name}: {probe} asks {asked}")
    state = settings.get("state_directory")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    if (kind == "StatefulSet") != bool(state) or mounts.get("state") != (state or None):
        problem(f"{name}: state_directory is {state!r}, the volume is mounted at {mounts.get('state')}")
    if claims != (["state"] if state else []):
        problem(f"{name}: claims {claims} for the state directory {state!r}")
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    for variable in image_variables():
        if variables.get(variable) != "":
            problem(f"{name}: {variable} of the image goes before the settings")


def check_test(pod):
    """`helm test --logs` reads the log after the test has ended: its pod has to be there still."""
    name = f"Pod/{pod['metadata']['name']}"
    policy = pod["metadata"]["annotations"].get("helm.sh/hook-delete-policy")
    if policy != "before-hook-creation":
        problem(f"{name}: hook-delete-policy is {policy}; its log would be lost, or the next test refused")


def check_network(file, policy):
    """The daemon and the test reach DNS (53; 5353, where OpenShift's own listens behind its service), broker and tokens."""
    rules = policy["spec"]["egress"]
    open_to_all = {(entry["port"], entry["protocol"]) for rule in rules if "to" not in rule for entry in rule["ports"]}
    allowed = {(entry["port"], entry["protocol"]) for rule in rules for entry in rule["ports"]}
    missing = {(number, protocol) for number in (53, 5353) for protocol in ("UDP", "TCP")} - open_to_all
    if missing:
        problem(f"NetworkPolicy: no names by {sorted(missing)}")
    for name, broker in tomllib.loads(settings_of(file))["broker"].items():
        asked = urlsplit(broker.get("oauth_token_endpoint", ""))
        number = asked.port or {"https": 443, "http": 80}.get(asked.scheme)
        if number and (number, "TCP") not in allowed:
            problem(f"NetworkPolicy: {name} gets no token from {asked.geturl()}: port {number} is not allowed")
    selector = policy["spec"]["podSelector"]["matchLabels"].items()
    for pod in of_kind(file, "Pod", "Deployment", "StatefulSet"):
        labels = pod["spec"].get("template", pod)["metadata"]["labels"].items()
        if not selector <= labels:
            problem(f"NetworkPolicy: does not select {pod['kind']}/{pod['metadata']['name']}")


def check_pods(file):
    daemons = 0
    for pod in of_kind(file, "Pod"):
        check_test(pod)
    for policy in of_kind(file, "NetworkPolicy"):
        check_network(file, policy)
    for name, spec in pods(file):
        check_restricted(name, spec)
    for manifest in of_kind(file, "Deployment", "StatefulSet"):
        daemons += 1
        claims = [claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])]
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        check_agreement(file, manifest["kind"], name, manifest["spec"]["template"]["spec"], claims)
    if daemons != 1:
        problem(f"{daemons} daemons")
    check_services(file)


def check_services(file):
    """Every selector finds the daemon, and no other pod; every port of a service is one of the daemon's."""
    (daemon,) = of_kind(file, "Deployment", "StatefulSet")
    labels = daemon["spec"]["template"]["metadata"]["labels"].items()
    others = [manifest["metadata"]["labels"].items() for manifest in of_kind(file, "Pod")]
    ports = {entry["name"] for entry in daemon["spec"]["template"]["spec"]["containers"][0]["ports"]}
    selectors = [(daemon, daemon["spec"]["selector"]["matchLabels"])]
    selectors += [(m, m["spec"]["selector"]) for m in of_kind(file, "Service")]
    selectors += [(m, m["spec"]["selector"]["matchLabels"]) for m in of_kind(file, "PodDisruptionBudget")]
    for manifest, selector in selectors:
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if not selector.items() <= labels:
            problem(f"{name}: does not select the daemon")
        if any(selector.items() <= other for other in others):
            problem(f"{name}: selects another pod than the daemon")
    services = {m["metadata"]["name"]: m for m in of_kind(file, "Service")}
    for name, service in services.items():
        if {entry["targetPort"] for entry in service["spec"]["ports"]} - ports:
            problem(f"Service/{name}: a port that the daemon has not")
    for ingress in of_kind(file, "Ingress"):
        hosts = {host for tls in ingress["spec"].get("tls", []) for host in tls["hosts"]}
        for rule in ingress["spec"]["rules"]:
            if rule["host"] not in hosts:
                problem(f"Ingress: {rule['host']} without TLS")
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                offered = services.get(backend["name"], {"spec": {"ports": []}})["spec"]["ports"]
                if backend["port"]["name"] not in {entry["name"] for entry in offered} - {"admin"}:
                    problem(f"Ingress: {path['path']} leads to {backend}")


# --- What the Prometheus operator and Grafana get: of their own kinds no schema is at hand.


def check_monitoring(file):
    for monitor in of_kind(file, "ServiceMonitor"):
        spec = monitor["spec"]
        unknown = set(spec) - {"selector", "endpoints"}
        if monitor["apiVersion"] != "monitoring.coreos.com/v1" or unknown:
            problem(f"ServiceMonitor: {monitor['apiVersion']}, unknown {unknown}")
        found = [
            service
            for service in of_kind(file, "Service")
            if spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        ]
        if len(found) != 1:
            problem(f"ServiceMonitor: selects {len(found)} services")
        for service in found:
            offered = {entry["name"] for entry in service["spec"]["ports"]}
            for endpoint in spec["endpoints"]:
                if endpoint["port"] not in offered or endpoint["path"] != "/metrics":
                    problem(f"ServiceMonitor: {endpoint}, the service offers {offered}")
                if set(endpoint) - {"port", "path", "interval", "relabelings"}:
                    problem(f"ServiceMonitor: unknown keys in {endpoint}")
                if {"targetLabel": "job", "replacement": "plextrac-bridge"} not in endpoint["relabelings"]:
                    problem("ServiceMonitor: the job is not plextrac-bridge, which the alerts look for")
    for rule in of_kind(file, "PrometheusRule"):
        original = yaml.safe_load((CHART / "files/alerts.yml").read_text())["groups"]
        silence = (CHART / "files/silence.yml").read_text()
        groups = rule["spec"]["groups"]
        if len(groups) > len(original):
            # The time is the one of everything-values.yaml.
            original += yaml.safe_load(silence.replace("1d", "36h"))["groups"]
        if rule["apiVersion"] != "monitoring.coreos.com/v1" or set(rule["spec"]) != {"groups"} or groups != original:
            problem("PrometheusRule: is not files/alerts.yml, with files/silence.yml where it is asked for")
        if not original or not all(group["rules"] for group in original):
            problem("PrometheusRule: without rules")
    for dashboard in of_kind(file, "ConfigMap"):
        for name, text in dashboard["data"].items():
            if name.endswith(".json") and json.loads(text) != json.loads((CHART / "files/dashboard.json").read_text()):
                problem(f"ConfigMap: {name} is not files/dashboard.json")


# --- The program itself.

STAND_INS = {
    "rabbitmq-uri": "amqps://user:password@rabbitmq.example.com:5671/%2f",
    "kafka.properties": "client.dns.lookup=use_all_dns_ips\n",
    # The example of NATS's documentation.
    "nats-seed": "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
}


def stand_in(path, authority):
    """A file where the pod would have one of its Secret."""
    path.parent.mkdir(parents=True, exist_ok=True)
    certificates = {"ca.crt": "ca.crt", "tls.crt": "client.crt", "tls.key": "client.key"}
    if path.name in certificates:
        text = (authority / certificates[path.name]).read_text()
    else:
        text = STAND_INS.get(path.name, f"a secret of this test alone, {path.name}")
    path.write_text(text)
    path.chmod(0o440)


def check_accepted(file, program):
    authority = Path(os.environ["BROKERS_DIST"]) / "tls"
    config = settings_of(file)
    for name, spec in pods(file):
        (container,) = spec["containers"]
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            text = config
            for mount in container["volumeMounts"]:
                here = root / mount["mountPath"].lstrip("/")
                here.mkdir(parents=True, exist_ok=True)
                for path in re.findall(rf'"({re.escape(mount["mountPath"])}/[^"]+)"', config):
                    stand_in(root / path.lstrip("/"), authority)
                text = text.replace(f'"{mount["mountPath"]}', f'"{here}')
            (root / "etc/plextrac-bridge/config.toml").write_text(text)
            known = subprocess.run([program, *container["args"], "--help"], capture_output=True, text=True, timeout=30)
            if known.returncode != 0:
                problem(f"{name}: {container['args']}: {known.stderr}")
            # As the runtime does: the pod's variables go before the image's.
            variables = image_variables() | {entry["name"]: entry.get("value", "") for entry in container["env"]}
            command = [program, "--config", str(root / "etc/plextrac-bridge/config.toml"), "check", "--json"]
            ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30)
            try:
                found = json.loads(ended.stdout)
            except ValueError:
                found = {}
            if ended.returncode != 0 or found.get("good") is not True or found.get("warnings"):
                problem(f"{name}: check ends with {ended.returncode}: {ended.stdout}{ended.stderr}")


def main(arguments):
    match arguments:
        case ["version"]:
            check_version()
        case ["pods", file]:
            check_pods(file)
        case ["monitoring", file]:
            check_monitoring(file)
        case ["accepted", file, program]:
            check_accepted(file, program)
        case _:
            sys.exit(__doc__)
    for text in problems:
        print(text)
    sys.exit(1 if problems else 0)


main(sys.argv[1:])
