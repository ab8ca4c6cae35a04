# The managed alternative to the cluster: the same image behind a SageMaker endpoint. Only if `sagemaker` is set.
variable "sagemaker_ami" {
  description = "AMI of the endpoint's GPU instances; its driver must fit the image's CUDA. The default has driver 580, for CUDA 13; it needs AWS provider 6. With provider 5, or an image for CUDA 12, use al2-ami-sagemaker-inference-gpu-3-1, with driver 550."
  type        = string
  default     = "al2023-ami-sagemaker-inference-gpu-4-1" # without one, SageMaker takes driver 470 for g5: CUDA 11.4
}

locals {
  sagemaker = var.sagemaker == null ? {} : { this = var.sagemaker }

  container = {
    SERVE_CONFIG_DIFFERENCE    = jsonencode(yamldecode(file("${path.module}/sagemaker.yaml"))) # at most 1,024 characters
    NVIDIA_VISIBLE_DEVICES     = "all"                                                         # a Debian image does not set it
    NVIDIA_DRIVER_CAPABILITIES = "compute,utility"
  }
}

resource "aws_sagemaker_model" "this" {
  for_each = local.sagemaker

  execution_role_arn = aws_iam_role.sagemaker["this"].arn

  primary_container {
    image              = var.sagemaker_model_package == null ? each.value.image : null
    environment        = var.sagemaker_model_package == null ? local.container : null
    model_package_name = var.sagemaker_model_package
  }

  vpc_config {
    subnets            = [for subnet in aws_subnet.private : subnet.id]
    security_group_ids = [aws_security_group.sagemaker["this"].id]
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_sagemaker_endpoint_configuration" "this" {
  for_each = local.sagemaker

  name_prefix = "${var.name}-"

  production_variants {
    variant_name                                      = "all"
    model_name                                        = aws_sagemaker_model.this["this"].name
    instance_type                                     = each.value.instance_type
    initial_instance_count                            = each.value.min_instances
    container_startup_health_check_timeout_in_seconds = 600 # the service needs 60-90 s once the image is pulled
    inference_ami_version                             = can(regex("^ml[.][gp]", each.value.instance_type)) ? var.sagemaker_ami : null
  }

  # Answers only: photos show people. The drift monitor reads them, see sagemaker_drift.tf.
  data_capture_config {
    enable_capture              = true
    initial_sampling_percentage = 10
    destination_s3_uri          = "${local.sagemaker_files}/capture"
    kms_key_id                  = aws_kms_key.this.arn

    capture_options {
      capture_mode = "Output"
    }

    capture_content_type_header {
      json_content_types = ["application/json"]
    }
  }

  lifecycle {
    create_before_destroy = true
  }
}

# Blue/green: the new fleet takes a tenth of the traffic first. If an alarm fires, all traffic returns to the old fleet.
resource "aws_sagemaker_endpoint" "this" {
  for_each = local.sagemaker

  name                 = var.name
  endpoint_config_name = aws_sagemaker_endpoint_configuration.this["this"].name

  deployment_config {
    blue_green_update_policy {
      maximum_execution_timeout_in_seconds = 3600
      termination_wait_in_seconds          = 300

      traffic_routing_configuration {
        type                     = "CANARY"
        wait_interval_in_seconds = 600

        canary_size {
          type  = "CAPACITY_PERCENT"
          value = 10
        }
      }
    }

    auto_rollback_configuration {
      dynamic "alarms" {
        for_each = aws_cloudwatch_metric_alarm.sagemaker

        content {
          alarm_name = alarms.value.alarm_name
        }
      }
    }
  }

  # The containers need these until they stop: to fetch image and weights, and to release their network interfaces.
  depends_on = [
    aws_iam_role_policy.sagemaker, aws_vpc_security_group_egress_rule.sagemaker, aws_route_table_association.private, aws_vpc_endpoint.s3,
  ]
}

resource "aws_cloudwatch_metric_alarm" "sagemaker" {
  for_each = var.sagemaker == null ? {} : {
    Invocation5XXErrors = { statistic = "Sum", above = 5 }
    ModelLatency        = { statistic = "p95", above = 1000000 } # microseconds
  }

  alarm_name          = "${var.name}-sagemaker-${each.key}"
  alarm_description   = "Rolls back a SageMaker deployment"
  namespace           = "AWS/SageMaker"
  metric_name         = each.key
  dimensions          = { EndpointName = var.name, VariantName = "all" }
  statistic           = startswith(each.value.statistic, "p") ? null : each.value.statistic
  extended_statistic  = startswith(each.value.statistic, "p") ? each.value.statistic : null
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.above
  period              = 60
  evaluation_periods  = 3
  datapoints_to_alarm = 2
  treat_missing_data  = "notBreaching"
}

resource "aws_appautoscaling_target" "sagemaker" {
  for_each = local.sagemaker

  service_namespace  = "sagemaker"
  resource_id        = "endpoint/${aws_sagemaker_endpoint.this["this"].name}/variant/all"
  scalable_dimension = "sagemaker:variant:DesiredInstanceCount"
  min_capacity       = each.value.min_instances
  max_capacity       = each.value.max_instances
}

# Scales on concurrent requests (two full batches are 32). Scaling on the request rate would need the cost of a photo.
resource "aws_appautoscaling_policy" "sagemaker" {
  for_each = local.sagemaker

  name               = "${var.name}-sagemaker"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.sagemaker["this"].service_namespace
  resource_id        = aws_appautoscaling_target.sagemaker["this"].resource_id
  scalable_dimension = aws_appautoscaling_target.sagemaker["this"].scalable_dimension

  target_tracking_scaling_policy_configuration {
    target_value       = 20
    scale_in_cooldown  = 600
    scale_out_cooldown = 60

    predefined_metric_specification {
      predefined_metric_type = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
    }
  }
}

# Outbound only: to S3 and the registry.
resource "aws_security_group" "sagemaker" {
  for_each = local.sagemaker

  name        = "${var.name}-sagemaker"
  description = "SageMaker's containers"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_egress_rule" "sagemaker" {
  for_each = local.sagemaker

  security_group_id = aws_security_group.sagemaker["this"].id
  description       = "HTTPS to AWS's services"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_iam_role" "sagemaker" {
  for_each = local.sagemaker

  name               = "${var.name}-sagemaker"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["sagemaker"].json
}

resource "aws_iam_role_policy" "sagemaker" {
  for_each = var.sagemaker == null ? {} : {
    read-weights = data.aws_iam_policy_document.read_weights.json
    capture      = data.aws_iam_policy_document.capture["this"].json
    run          = data.aws_iam_policy_document.sagemaker.json
  }

  name   = each.key
  role   = aws_iam_role.sagemaker["this"].id
  policy = each.value
}

data "aws_iam_policy_document" "sagemaker" {
  statement {
    sid       = "Image"
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = [aws_ecr_repository.this.arn]
  }

  statement {
    sid       = "Logs"
    actions   = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
    resources = ["arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/aws/sagemaker/*"]
  }

  statement {
    sid = "NoNarrowerOne" # registry login, metrics, and the network interfaces in our subnets
    actions = [
      "ecr:GetAuthorizationToken", "cloudwatch:PutMetricData", "ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission",
      "ec2:DeleteNetworkInterface", "ec2:DeleteNetworkInterfacePermission", "ec2:DescribeDhcpOptions",
      "ec2:DescribeNetworkInterfaces", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeVpcs",
    ]
    resources = ["*"]
  }
}
