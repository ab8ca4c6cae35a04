# Optional: the cluster's Prometheus writes to a managed workspace, so metrics outlive the cluster and need no disk in it.
resource "aws_prometheus_workspace" "this" {
  count = var.managed_prometheus ? 1 : 0

  alias = var.name
}

resource "aws_iam_role" "prometheus" {
  count = var.managed_prometheus ? 1 : 0

  name               = "${var.name}-prometheus"
  assume_role_policy = data.aws_iam_policy_document.pods["monitoring-kube-prometheus-prometheus"].json
}

resource "aws_iam_role_policy" "prometheus" {
  count = var.managed_prometheus ? 1 : 0

  name   = "write-metrics"
  role   = aws_iam_role.prometheus[0].id
  policy = data.aws_iam_policy_document.prometheus.json
}

data "aws_iam_policy_document" "prometheus" {
  statement {
    actions   = ["aps:RemoteWrite"]
    resources = ["arn:${local.partition}:aps:${var.region}:${local.account}:workspace/${try(aws_prometheus_workspace.this[0].id, "none")}"]
  }
}

# The service account of the Helm release `monitoring`, see kuberay/addons/charts.txt.
resource "aws_eks_pod_identity_association" "prometheus" {
  count = var.managed_prometheus ? 1 : 0

  cluster_name    = aws_eks_cluster.this.name
  namespace       = "monitoring"
  service_account = "monitoring-kube-prometheus-prometheus"
  role_arn        = aws_iam_role.prometheus[0].arn
}
