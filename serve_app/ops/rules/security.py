"""Rules about access: ports, the Internet, network policies and the AWS account."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.ops.overlay import Overlay
from serve_app.ops.rendered import Finding, Rendered
from serve_app.settings import ROOT

FIREWALL_BYTES = 8192  # SizeRestrictions_BODY of AWSManagedRulesCommonRuleSet


def token(overlay: Rendered) -> Iterator[Finding]:
    """Ray must ask for a token: anybody who reaches its ports can run code (CVE-2023-48022)."""
    if overlay.cluster.get("authOptions", {}).get("mode") != "token":
        why = "Anybody who reaches Ray's ports can run code, because Ray asks for no token (CVE-2023-48022)"
        yield overlay.finding(overlay.CLUSTER, why, "set authOptions: {mode: token}")


def ray_ports(overlay: Overlay) -> Iterator[Finding]:
    """Only Serve's port may be open."""
    for ingress in overlay.kind("Ingress"):
        paths = [p["backend"]["service"] for rule in ingress["spec"]["rules"] for p in rule["http"]["paths"]]
        if any(path["port"].get("number") != overlay.serve["http_options"]["port"] for path in paths):
            why = "The Ingress exposes a port other than Serve's; Ray's dashboard, for example, runs callers' code"
            yield overlay.finding("backend", why, "expose only Serve's port")
    if overlay.serve["http_options"]["host"] != "0.0.0.0":  # noqa: S104
        why = "Serve listens on an address that neither probes nor clients can reach"
        yield overlay.finding("host", why, "set host: 0.0.0.0")


def exposures(overlay: Overlay) -> list[dict[str, str]]:
    """The annotations of each Ingress that faces the Internet, without their common prefix."""
    found = [ingress["metadata"].get("annotations", {}) for ingress in overlay.kind("Ingress")]
    plain = [{key.removeprefix("alb.ingress.kubernetes.io/"): value for key, value in one.items()} for one in found]
    return [one for one in plain if one.get("scheme") == "internet-facing"]


def internet_facing(overlay: Overlay) -> Iterator[Finding]:
    """A load balancer that faces the Internet needs TLS, a firewall and a record, and must not vanish by mistake."""
    for ingress in exposures(overlay):
        attributes = ingress.get("load-balancer-attributes", "")
        if not ingress.get("certificate-arn"):
            why = "API keys cross the Internet in clear text, because the load balancer has no certificate"
            yield overlay.finding("scheme", why, "set certificate-arn in the overlay's account.yaml")
        if "TLS13" not in ingress.get("ssl-policy", ""):
            why = "The load balancer accepts TLS 1.0, because that is what ELBSecurityPolicy-2016-08, the default, does"
            yield overlay.finding("scheme", why, "set ssl-policy to one that begins with ELBSecurityPolicy-TLS13-1-2")
        if not ingress.get("wafv2-acl-arn"):
            why = "Nothing limits how often a client may call, because the load balancer has no web ACL"
            yield overlay.finding("scheme", why, "set wafv2-acl-arn in the overlay's account.yaml")
        if "access_logs.s3.enabled=true" not in attributes or "access_logs.s3.bucket=" not in attributes:
            why = "Nobody can tell later who called: requests that fail before the service are in no log"
            yield overlay.finding("scheme", why, "set access_logs.s3 in load-balancer-attributes in account.yaml")
        if "deletion_protection.enabled=true" not in attributes:
            why = "Deleting the Ingress by mistake deletes the load balancer, and its address with it"
            yield overlay.finding("scheme", why, "set deletion_protection.enabled=true in load-balancer-attributes")


def api_keys(overlay: Overlay) -> Iterator[Finding]:
    """A service that faces the Internet must ask for keys, and its workers must mount the Secret that has them."""
    keys = overlay.args.get("api_keys_file")
    if exposures(overlay) and not keys:
        why = "Anybody on the Internet may use the service at your expense, because it asks for no key"
        yield overlay.finding("scheme", why, "add components/keys, and set api_keys_file in the overlay's serve.yaml")
    if keys and keys not in secret_files(overlay):
        why = f"No replica starts: the workers mount no Secret in the folder of {keys}, or only its first content"
        yield overlay.finding("volumeMounts", why, "add components/keys, which mounts the folder without a subPath")


def secret_files(overlay: Overlay) -> set[str]:
    """The files `keys` of the Secrets that the workers mount as folders, which Kubernetes keeps up to date."""
    pod = overlay.pods()[1]
    secrets = {volume["name"] for volume in pod.get("volumes", []) if "secret" in volume}
    mounts = [m for m in pod["containers"][0].get("volumeMounts", []) if m["name"] in secrets and "subPath" not in m]
    return {f"{mount['mountPath']}/keys" for mount in mounts}


def dns(overlay: Rendered) -> Iterator[Finding]:
    """A network policy for egress blocks DNS unless it allows port 53."""
    if 53 not in overlay.egress_ports():
        why = "The egress policies block DNS, so workers cannot resolve the head's name and never join it"
        yield overlay.finding("egress", why, "allow port 53, UDP and TCP")


def service_account(overlay: Rendered) -> Iterator[Finding]:
    """Terraform must give the pods' service account a role."""
    name = overlay.pods()[1].get("serviceAccountName", "default")
    if not re.search(rf'service_account\s*= "{name}"', overlay.terraform):
        why = f"Terraform gives the service account {name} no role, so pods cannot read weights in S3"
        yield overlay.finding("serviceAccountName", why, "use the service account of terraform/eks.tf")


def firewall(overlay: Overlay) -> Iterator[Finding]:
    """The firewall of Terraform must let photos through."""
    if (
        overlay.kind("Ingress")
        and overlay.args["max_body_bytes"] > FIREWALL_BYTES
        and "SizeRestrictions" not in overlay.terraform
    ):
        why = f"The firewall's core rule set blocks bodies of more than {FIREWALL_BYTES} bytes: no photo gets through"
        yield Finding(ROOT / "terraform" / "firewall.tf", 1, why, "set SizeRestrictions_BODY to count")


RULES = (token, ray_ports, internet_facing, api_keys, dns, service_account, firewall)
