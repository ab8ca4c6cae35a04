"""Rules about access: ports, the Internet, network policies and the AWS account."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.ops.overlay import Finding, Overlay
from serve_app.settings import ROOT

FIREWALL_BYTES = 8192  # SizeRestrictions_BODY of AWSManagedRulesCommonRuleSet


def ray_ports(overlay: Overlay) -> Iterator[Finding]:
    """Only Serve's port may be open: anybody who reaches Ray's ports can run code (CVE-2023-48022)."""
    if overlay.cluster.get("authOptions", {}).get("mode") != "token":
        why = "Anybody who reaches Ray's ports can run code, because Ray asks for no token (CVE-2023-48022)"
        yield overlay.finding("rayClusterConfig", why, "set authOptions: {mode: token}")
    for ingress in overlay.kind("Ingress"):
        paths = [p["backend"]["service"] for rule in ingress["spec"]["rules"] for p in rule["http"]["paths"]]
        if any(path["port"].get("number") != overlay.serve["http_options"]["port"] for path in paths):
            why = "The Ingress exposes a port other than Serve's; Ray's dashboard, for example, runs callers' code"
            yield overlay.finding("backend", why, "expose only Serve's port")
    if overlay.serve["http_options"]["host"] != "0.0.0.0":  # noqa: S104
        why = "Serve listens on an address that neither probes nor clients can reach"
        yield overlay.finding("host", why, "set host: 0.0.0.0")


def internet_facing(overlay: Overlay) -> Iterator[Finding]:
    """An Ingress that faces the Internet must have TLS and a firewall."""
    for ingress in overlay.kind("Ingress"):
        annotations = ingress["metadata"].get("annotations", {})
        if annotations.get("alb.ingress.kubernetes.io/scheme") != "internet-facing":
            continue
        if not annotations.get("alb.ingress.kubernetes.io/certificate-arn"):
            why = "API keys cross the Internet in clear text, because the load balancer has no certificate"
            yield overlay.finding("scheme", why, "set certificate-arn in the overlay's account.yaml")
        if not annotations.get("alb.ingress.kubernetes.io/wafv2-acl-arn"):
            why = "Nothing limits how often a client may call, because the load balancer has no web ACL"
            yield overlay.finding("scheme", why, "set wafv2-acl-arn in the overlay's account.yaml")


def dns(overlay: Overlay) -> Iterator[Finding]:
    """A network policy for egress blocks DNS unless it allows port 53."""
    policies = [p["spec"] for p in overlay.kind("NetworkPolicy") if "Egress" in p["spec"].get("policyTypes", [])]
    ports = [port.get("port") for p in policies for rule in p.get("egress", []) for port in rule.get("ports", [])]
    if policies and 53 not in ports:
        why = "The egress policies block DNS, so workers cannot resolve the head's name and never join it"
        yield overlay.finding("egress", why, "allow port 53, UDP and TCP")


def aws_account(overlay: Overlay) -> Iterator[Finding]:
    """The role and the firewall of Terraform must fit the manifests."""
    service_account = overlay.pods()[1].get("serviceAccountName", "default")
    if not re.search(rf'service_account\s*= "{service_account}"', overlay.terraform):
        why = f"Terraform gives the service account {service_account} no role, so pods cannot read weights in S3"
        yield overlay.finding("serviceAccountName", why, "use the service account of terraform/eks.tf")
    if (
        overlay.kind("Ingress")
        and overlay.args["max_body_bytes"] > FIREWALL_BYTES
        and "SizeRestrictions" not in overlay.terraform
    ):
        why = f"The firewall's core rule set blocks bodies of more than {FIREWALL_BYTES} bytes: no photo gets through"
        yield Finding(ROOT / "terraform" / "firewall.tf", 1, why, "set SizeRestrictions_BODY to count")


RULES = (ray_ports, internet_facing, dns, aws_account)
