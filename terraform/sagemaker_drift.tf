# The drift monitor: every night a processing job compares what the endpoint answered with an accepted day, see
# models/drift.py. SageMaker's Model Monitor starts the same kind of job, but its own container reads only tables.
locals {
  drift = {
    # EventBridge replaces the part in <>; Terraform writes < and > as escapes, which EventBridge does not look for.
    ProcessingJobName   = "${var.name}-drift-<aws.scheduler.execution-id>"
    RoleArn             = one(values(aws_iam_role.sagemaker_jobs)[*].arn)
    AppSpecification    = { ImageUri = try(var.sagemaker.image, null), ContainerEntrypoint = ["python", "-m", "models.drift"], ContainerArguments = [var.name] }
    Environment         = { AWS_DEFAULT_REGION = var.region }
    ProcessingResources = { ClusterConfig = { InstanceCount = 1, InstanceType = "ml.m5.large", VolumeSizeInGB = 20 } }
    StoppingCondition   = { MaxRuntimeInSeconds = 3600 }

    NetworkConfig = {
      VpcConfig = {
        SecurityGroupIds = values(aws_security_group.sagemaker)[*].id
        Subnets          = [for subnet in aws_subnet.private : subnet.id]
      }
    }

    ProcessingInputs = [for name, prefix in { captured = "capture/${var.name}", baseline = "drift/baseline" } : {
      InputName = name
      S3Input = {
        S3Uri       = "${local.sagemaker_files}/${prefix}/"
        LocalPath   = "/opt/ml/processing/${name}"
        S3DataType  = "S3Prefix"
        S3InputMode = "File"
      }
    }]

    ProcessingOutputConfig = {
      KmsKeyId = aws_kms_key.this.arn
      Outputs = [{
        OutputName = "report"
        S3Output   = { S3Uri = "${local.sagemaker_files}/drift/latest/", LocalPath = "/opt/ml/processing/report", S3UploadMode = "EndOfJob" }
      }]
    }
  }

  sagemaker_files = "s3://${coalesce(one(values(aws_s3_bucket.sagemaker)[*].id), "none")}"
}

resource "aws_scheduler_schedule" "drift" {
  for_each = local.sagemaker

  name                         = "${var.name}-drift"
  schedule_expression          = "cron(0 3 * * ? *)"
  schedule_expression_timezone = "UTC"
  kms_key_arn                  = aws_kms_key.this.arn

  flexible_time_window {
    mode = "OFF"
  }

  target {
    arn      = "arn:${local.partition}:scheduler:::aws-sdk:sagemaker:createProcessingJob"
    role_arn = aws_iam_role.drift["this"].arn
    input    = replace(replace(jsonencode(local.drift), "\\u003c", "<"), "\\u003e", ">")
  }
}

resource "aws_iam_role" "drift" {
  for_each = local.sagemaker

  name               = "${var.name}-drift"
  assume_role_policy = data.aws_iam_policy_document.scheduler.json
}

data "aws_iam_policy_document" "scheduler" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["scheduler.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

resource "aws_iam_role_policy" "drift" {
  for_each = data.aws_iam_policy_document.drift

  name   = "start-the-monitor"
  role   = aws_iam_role.drift["this"].id
  policy = each.value.json
}

data "aws_iam_policy_document" "drift" {
  for_each = aws_iam_role.sagemaker_jobs

  statement {
    sid       = "Start"
    actions   = ["sagemaker:CreateProcessingJob"]
    resources = ["arn:${local.partition}:sagemaker:${var.region}:${local.account}:processing-job/${var.name}-drift-*"]
  }

  statement {
    sid       = "Role"
    actions   = ["iam:PassRole"]
    resources = [each.value.arn]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["sagemaker.amazonaws.com"]
    }
  }

  statement {
    sid       = "Key" # of the schedule
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.this.arn]
  }
}

# A job fails if an input is empty. The accepted day's report replaces this one.
resource "aws_s3_object" "baseline" {
  for_each = local.sagemaker

  bucket     = aws_s3_bucket.sagemaker["this"].id
  key        = "drift/baseline/report.json"
  content    = "{}"
  kms_key_id = aws_kms_key.this.arn

  lifecycle {
    ignore_changes = all
  }
}

data "aws_iam_policy_document" "capture" {
  for_each = aws_s3_bucket.sagemaker

  statement {
    sid       = "Answers"
    actions   = ["s3:PutObject"]
    resources = ["${each.value.arn}/capture/*"]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:GenerateDataKey"]
    resources = [aws_kms_key.this.arn]
  }
}

resource "aws_cloudwatch_metric_alarm" "drift" {
  for_each = var.sagemaker == null ? toset([]) : toset(["classes", "confidence", "objects"])

  alarm_name          = "${var.name}-drift-${each.key}"
  alarm_description   = "The endpoint's answers of the last day differ from the accepted day's; 0 is the same, 1 nothing in common"
  namespace           = "Recognition"
  metric_name         = "Drift"
  dimensions          = { EndpointName = var.name, Distribution = each.key }
  statistic           = "Maximum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0.2
  period              = 86400
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching" # a day with fewer photos than models/drift.py judges
  alarm_actions       = [aws_sns_topic.drift["this"].arn]
}

resource "aws_sns_topic" "drift" {
  # checkov:skip=CKV_AWS_26:a message has the name of an alarm and no photo; CloudWatch cannot use the default key
  for_each = local.sagemaker

  name = "${var.name}-drift"
}

# Whoever is told of the budget is told of drift. Each address has to confirm once.
resource "aws_sns_topic_subscription" "drift" {
  for_each = var.sagemaker == null ? toset([]) : toset(var.budget.emails)

  topic_arn = aws_sns_topic.drift["this"].arn
  protocol  = "email"
  endpoint  = each.key
}

output "accept_drift" {
  description = "Makes the last day that the monitor looked at the accepted one."
  value       = one([for bucket in aws_s3_bucket.sagemaker : "aws s3 cp --region ${var.region} s3://${bucket.id}/drift/latest/report.json s3://${bucket.id}/drift/baseline/report.json"])
}
