# IAM roles. The service reads pinned weights, and batches their photos; the pipeline pushes images and publishes weights.
data "aws_iam_policy_document" "assumed_by" {
  for_each = {
    eks           = ["sts:AssumeRole", "sts:TagSession"]
    ec2           = ["sts:AssumeRole"]
    sagemaker     = ["sts:AssumeRole"]
    vpc-flow-logs = ["sts:AssumeRole"]
  }

  statement {
    actions = each.value

    principals {
      type        = "Service"
      identifiers = ["${each.key}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "service" {
  name               = "${var.name}-service"
  assume_role_policy = data.aws_iam_policy_document.pods["recognition"].json
}

# EKS Pod Identity, for one service account of this cluster only: EKS sets these tags, a pod cannot.
data "aws_iam_policy_document" "pods" {
  for_each = toset(["recognition", "monitoring-kube-prometheus-prometheus"])

  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-service-account"
      values   = [each.key]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/eks-cluster-name"
      values   = [var.name]
    }
  }
}

resource "aws_iam_role_policy" "service" {
  name   = "read-weights"
  role   = aws_iam_role.service.id
  policy = data.aws_iam_policy_document.read_weights.json
}

data "aws_iam_policy_document" "read_weights" {
  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject", "s3:GetObjectVersion"]
    resources = ["${aws_s3_bucket.weights.arn}/*"]
  }

  statement {
    sid       = "MissingIsNotForbidden" # without it S3 answers 403 for a missing object
    actions   = ["s3:ListBucket", "s3:ListBucketVersions"]
    resources = [aws_s3_bucket.weights.arn]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

# The service's pods have the role, too: whoever runs code in them reaches these photos and rows.
resource "aws_iam_role_policy" "batch" {
  count = length(var.batch_prefixes) > 0 ? 1 : 0

  name   = "batch"
  role   = aws_iam_role.service.id
  policy = data.aws_iam_policy_document.batch.json
}

data "aws_iam_policy_document" "batch" {
  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject", "s3:PutObject"]
    resources = [for prefix in var.batch_prefixes : "arn:${local.partition}:s3:::${prefix}/*"]
  }

  dynamic "statement" {
    for_each = var.batch_prefixes

    content {
      actions   = ["s3:ListBucket"]
      resources = ["arn:${local.partition}:s3:::${split("/", statement.value)[0]}"]

      condition {
        test     = "StringLike"
        variable = "s3:prefix"
        values   = ["${join("/", slice(split("/", statement.value), 1, length(split("/", statement.value))))}/*"]
      }
    }
  }
}

resource "aws_iam_openid_connect_provider" "github" {
  count = var.github_oidc_provider == null ? 1 : 0

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

resource "aws_iam_role" "pipeline" {
  name                 = "${var.name}-pipeline"
  assume_role_policy   = data.aws_iam_policy_document.github.json
  max_session_duration = 3600
}

data "aws_iam_policy_document" "github" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [coalesce(var.github_oidc_provider, one(aws_iam_openid_connect_provider.github[*].arn))]
    }

    condition {
      test     = "StringEquals"
      variable = "token.actions.githubusercontent.com:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringEquals" # a job without an environment has a different subject, also on a tag
      variable = "token.actions.githubusercontent.com:sub"
      values   = [for environment in var.github_environments : "repo:${var.github_repository}:environment:${environment}"]
    }

    condition {
      test     = "StringLike" # the subject does not say from which branch or tag the environment was entered
      variable = "token.actions.githubusercontent.com:ref"
      values   = ["refs/heads/main", "refs/tags/v*"]
    }
  }
}

resource "aws_iam_role_policy" "pipeline" {
  name   = "push-images-and-publish-weights"
  role   = aws_iam_role.pipeline.id
  policy = data.aws_iam_policy_document.pipeline.json
}

data "aws_iam_policy_document" "pipeline" {
  statement {
    sid       = "Login"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"] # this action has no narrower resource
  }

  statement {
    sid = "Images"
    actions = [
      "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload", "ecr:DescribeImages",
      "ecr:DescribeImageScanFindings", "ecr:GetDownloadUrlForLayer", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart",
    ]
    resources = [aws_ecr_repository.this.arn]
  }

  statement {
    sid       = "Weights" # may add versions but not remove any
    actions   = ["s3:PutObject", "s3:GetObject", "s3:GetObjectVersion"]
    resources = ["${aws_s3_bucket.weights.arn}/*"]
  }

  statement {
    sid       = "WeightsListed"
    actions   = ["s3:ListBucket", "s3:ListBucketVersions"]
    resources = [aws_s3_bucket.weights.arn]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.this.arn]
  }

  statement {
    sid       = "Cluster" # for `aws eks update-kubeconfig`; an access entry grants the permissions inside the cluster
    actions   = ["eks:DescribeCluster"]
    resources = ["arn:${local.partition}:eks:${var.region}:${local.account}:cluster/${var.name}"]
  }
}
