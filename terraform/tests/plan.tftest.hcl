# What no AWS API emulator knows, with a provider that makes its answers up: EKS Auto Mode, access entries, pod identity,
# Redis. Everything else is really applied, see tests/terraform/test_terraform.py.
mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/mocked" }
  }

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-0000-0000-000000000000" }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:111122223333:log-group:aws-waf-logs-mocked" }
  }

  mock_resource "aws_wafv2_web_acl" {
    defaults = { arn = "arn:aws:wafv2:eu-central-1:111122223333:regional/webacl/mocked/00000000-0000-0000-0000-000000000000" }
  }

  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::111122223333:oidc-provider/token.actions.githubusercontent.com" }
  }

  mock_resource "aws_eks_cluster" {
    defaults = { vpc_config = { cluster_security_group_id = "sg-cluster" } }
  }

  mock_resource "aws_ecr_repository" {
    defaults = { repository_url = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/recognition" }
  }
}

variables {
  name              = "recognition"
  region            = "eu-central-1"
  admins            = ["arn:aws:iam::111122223333:role/platform"]
  github_repository = "example@1234567/image-recognition@7654321"
  redis_password    = "0123456789abcdef"
  budget            = { usd = 500, emails = ["platform@example.com"] }
  sagemaker_ami     = "al2-ami-sagemaker-inference-gpu-3-1" # provider 5 knows no newer one

  github_environments = ["production"]
}

run "as_shipped" {
  assert {
    condition     = aws_eks_cluster.this.compute_config[0].enabled && aws_eks_cluster.this.storage_config[0].block_storage[0].enabled && aws_eks_cluster.this.kubernetes_network_config[0].elastic_load_balancing[0].enabled
    error_message = "Auto Mode needs all three, together."
  }

  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "Without api_cidrs the API is private."
  }

  assert {
    condition     = aws_eks_cluster.this.encryption_config[0].resources == toset(["secrets"])
    error_message = "Secrets are encrypted with our key."
  }

  assert {
    condition     = length(aws_eks_cluster.this.enabled_cluster_log_types) == 5
    error_message = "All five logs of the control plane."
  }

  assert {
    condition     = aws_eks_cluster.this.version == "1.36" && aws_eks_cluster.this.upgrade_policy[0].support_type == "STANDARD"
    error_message = "In standard support until August 2027."
  }

  assert {
    condition     = keys(aws_eks_access_entry.admin) == ["arn:aws:iam::111122223333:role/platform"] && !aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions
    error_message = "Those named administer it, and not whoever happened to create it."
  }

  assert {
    condition     = aws_eks_access_entry.pipeline.kubernetes_groups == toset(["recognition-pipeline"])
    error_message = "The group of kuberay/eks.yaml."
  }

  assert {
    condition     = aws_eks_pod_identity_association.service.service_account == "recognition" && aws_eks_pod_identity_association.service.namespace == "recognition"
    error_message = "The service account of kuberay/base/serviceaccount.yaml."
  }

  assert {
    condition     = aws_elasticache_replication_group.this.transit_encryption_enabled && aws_elasticache_replication_group.this.at_rest_encryption_enabled && aws_elasticache_replication_group.this.multi_az_enabled
    error_message = "TLS, encrypted at rest, in two zones."
  }

  assert {
    condition     = aws_elasticache_replication_group.this.auth_token_update_strategy == "ROTATE"
    error_message = "A new password beside the old one; version 6 of the provider has no default."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.redis.referenced_security_group_id == aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
    error_message = "From the cluster only."
  }

  assert {
    condition     = one(aws_s3_bucket_lifecycle_configuration.weights.rule).noncurrent_version_expiration[0].newer_noncurrent_versions == 20
    error_message = "Twenty versions to go back to, however old."
  }

  assert {
    condition     = one(aws_s3_bucket_lifecycle_configuration.access_logs.rule).expiration[0].days == 90
    error_message = "Access logs name callers' addresses: they expire."
  }

  assert {
    condition     = { for n in aws_budgets_budget.this.notification : n.notification_type => n.threshold } == { ACTUAL = 80, FORECASTED = 100 }
    error_message = "Told at 80 % spent, and when the forecast exceeds the budget."
  }
}

run "without_what_is_not_asked_for" {
  command = plan

  assert {
    condition     = length(aws_sagemaker_endpoint.this) == 0 && length(aws_cloudwatch_metric_alarm.sagemaker) == 0 && length(aws_scheduler_schedule.drift) == 0 && length(aws_s3_bucket.sagemaker) == 0 && output.train == null && length(aws_prometheus_workspace.this) == 0
    error_message = "SageMaker and managed Prometheus cost money: nobody has them by default."
  }

  assert {
    condition     = length(aws_iam_role_policy.batch) == 0
    error_message = "The service writes to no bucket where nobody runs batches."
  }

  assert {
    condition     = length(aws_acm_certificate.this) == 0 && length(aws_route53_record.service) == 0 && output.certificate == null
    error_message = "Whoever has the name elsewhere brings a certificate."
  }
}

run "batches" {
  command = plan

  variables {
    batch_prefixes = ["photos/2026", "rows/2026/street"]
  }

  assert {
    condition     = data.aws_iam_policy_document.batch.statement[0].resources == toset(["arn:aws:s3:::photos/2026/*", "arn:aws:s3:::rows/2026/street/*"]) && data.aws_iam_policy_document.batch.statement[0].actions == toset(["s3:GetObject", "s3:PutObject"])
    error_message = "Objects below these prefixes only, and none is deleted."
  }

  assert {
    condition     = one(data.aws_iam_policy_document.batch.statement[2].resources) == "arn:aws:s3:::rows" && one(one(data.aws_iam_policy_document.batch.statement[2].condition).values) == "2026/street/*"
    error_message = "Lists the same prefix of the same bucket."
  }

  assert {
    condition     = length(aws_iam_role_policy.batch) == 1
    error_message = "The service's role has it."
  }
}

run "a_name_before_its_load_balancer" {
  command = plan

  variables {
    domain = { name = "recognition.example.com", zone = "example.com" }
  }

  override_resource {
    target = aws_acm_certificate.this
    values = {
      domain_validation_options = [{ domain_name = "recognition.example.com", resource_record_name = "_1.recognition.example.com.", resource_record_type = "CNAME", resource_record_value = "_2.acm-validations.aws." }]
    }
    override_during = plan
  }

  assert {
    condition     = aws_route53_record.validation[0].name == "_1.recognition.example.com." && length(aws_route53_record.service) == 0
    error_message = "The certificate first: the Ingress that makes the load balancer names it."
  }
}

run "a_name_in_another_zone" {
  command = plan

  variables {
    domain = { name = "recognition.example.org", zone = "example.com" }
  }

  expect_failures = [var.domain]
}

run "no_quota_for_gpus" {
  command = plan

  variables {
    gpu_vcpus = 32
  }

  override_data {
    target = data.aws_servicequotas_service_quota.gpu
    values = { value = 16 }
  }

  expect_failures = [check.gpu_quota]
}

run "quota_for_gpus" {
  command = plan

  variables {
    gpu_vcpus = 32
  }

  override_data {
    target = data.aws_servicequotas_service_quota.gpu
    values = { value = 32 }
  }
}

run "sagemaker_and_managed_prometheus" {
  command = plan

  variables {
    managed_prometheus = true
    sagemaker          = { image = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/recognition:1.0.0", instance_type = "ml.g5.xlarge", min_instances = 2, max_instances = 6 }
  }

  assert {
    condition     = aws_appautoscaling_target.sagemaker["this"].min_capacity == 2 && aws_appautoscaling_target.sagemaker["this"].max_capacity == 6 && aws_appautoscaling_target.sagemaker["this"].resource_id == "endpoint/recognition/variant/all"
    error_message = "Two to six instances of the one variant."
  }

  assert {
    condition     = { for v in aws_sagemaker_endpoint_configuration.this["this"].production_variants : v.variant_name => [v.instance_type, v.initial_instance_count] } == { all = ["ml.g5.xlarge", 2] }
    error_message = "One variant, which the alarms and the autoscaling name."
  }

  assert {
    condition     = aws_sagemaker_model_package_group.this["this"].model_package_group_name == output.sagemaker_package.ModelPackageGroupName
    error_message = "models/register.py registers in the group that exists."
  }

  assert {
    condition     = { for a in aws_sagemaker_endpoint.this["this"].deployment_config[0].auto_rollback_configuration[0].alarms : a.alarm_name => true } == { for a in aws_cloudwatch_metric_alarm.sagemaker : a.alarm_name => true }
    error_message = "Both alarms end a deployment."
  }

  assert {
    condition     = one(aws_appautoscaling_policy.sagemaker["this"].target_tracking_scaling_policy_configuration).target_value == 20
    error_message = "More of them before two full batches of 16 are in work."
  }

  assert {
    condition     = aws_eks_pod_identity_association.prometheus[0].service_account == "monitoring-kube-prometheus-prometheus" && aws_eks_pod_identity_association.prometheus[0].namespace == "monitoring"
    error_message = "The service account of the release in kuberay/addons/charts.txt."
  }
}

run "a_public_api" {
  command = plan

  variables {
    api_cidrs = ["203.0.113.0/24"]
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["203.0.113.0/24"])
    error_message = "From the networks named only."
  }
}

run "a_fleet_too_small_for_a_canary" {
  command = plan

  variables {
    sagemaker = { image = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/recognition:1.0.0", instance_type = "ml.g5.xlarge", min_instances = 1, max_instances = 6 }
  }

  expect_failures = [var.sagemaker]
}

run "what_is_refused" {
  command = plan

  variables {
    api_cidrs           = ["0.0.0.0/0"]
    github_repository   = "example@*/image-recognition@*"
    github_environments = ["*"]
    redis_password      = "short"
    batch_prefixes      = ["s3://photos/2026"]
  }

  expect_failures = [var.batch_prefixes, var.api_cidrs, var.github_repository, var.github_environments, var.redis_password]
}
