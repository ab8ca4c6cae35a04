# Logs of the VPC's flows, the cluster's control plane and the firewall, kept for a year; of the load balancer for 90 days.
resource "aws_cloudwatch_log_group" "this" {
  # AWS WAF requires this prefix, EKS this path.
  for_each = {
    flow     = "/vpc/${var.name}/flow"
    cluster  = "/aws/eks/${var.name}/cluster"
    firewall = "aws-waf-logs-${var.name}"
  }

  name              = each.value
  retention_in_days = 365
  kms_key_id        = aws_kms_key.this.arn
}

resource "aws_flow_log" "this" {
  vpc_id                   = aws_vpc.this.id
  traffic_type             = "ALL"
  log_destination          = aws_cloudwatch_log_group.this["flow"].arn
  iam_role_arn             = aws_iam_role.flow.arn
  max_aggregation_interval = 600
}

resource "aws_iam_role" "flow" {
  name               = "${var.name}-flow"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["vpc-flow-logs"].json
}

resource "aws_iam_role_policy" "flow" {
  role   = aws_iam_role.flow.id
  policy = data.aws_iam_policy_document.flow.json
}

data "aws_iam_policy_document" "flow" {
  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
    resources = ["${aws_cloudwatch_log_group.this["flow"].arn}:*"]
  }
}

# Who called: the load balancer's log of each request, kept for 90 days. The Ingress names this bucket (account.yaml).
resource "aws_s3_bucket" "access_logs" {
  bucket        = "${var.name}-access-logs-${local.account}"
  force_destroy = true # otherwise `destroy` fails on the first log

  # checkov:skip=CKV_AWS_145: load balancers write to buckets with S3's own keys only
  # checkov:skip=CKV_AWS_21: log files are never overwritten, each has a name of its own
}

resource "aws_s3_bucket_server_side_encryption_configuration" "access_logs" {
  bucket = aws_s3_bucket.access_logs.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_public_access_block" "access_logs" {
  bucket                  = aws_s3_bucket.access_logs.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_lifecycle_configuration" "access_logs" {
  bucket = aws_s3_bucket.access_logs.id

  rule {
    id     = "expire"
    status = "Enabled"

    filter {}

    expiration {
      days = 90
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
}

resource "aws_s3_bucket_policy" "access_logs" {
  bucket     = aws_s3_bucket.access_logs.id
  policy     = data.aws_iam_policy_document.access_logs.json
  depends_on = [aws_s3_bucket_public_access_block.access_logs]
}

data "aws_iam_policy_document" "access_logs" {
  source_policy_documents = [data.aws_iam_policy_document.tls_only["access_logs"].json]

  statement {
    sid       = "LoadBalancersOfThisAccount" # the account is part of the path that the service writes to
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.access_logs.arn}/AWSLogs/${local.account}/*"]

    principals {
      type        = "Service"
      identifiers = ["logdelivery.elasticloadbalancing.amazonaws.com"]
    }
  }
}
