# The web ACL of the load balancer. The Ingress refers to it by its ARN (output `firewall`).
locals {
  # AWS's rule groups, evaluated in alphabetical order, and the rules of each that only count.
  managed_rules = {
    AWSManagedRulesAmazonIpReputationList = []
    AWSManagedRulesKnownBadInputsRuleSet  = []
    # Its body rules block everything above 8 KB, so every photo, and the `<?` of a photo's XMP as a script or path. The
    # service checks bodies itself (max_body_bytes, one decoder for each format).
    AWSManagedRulesCommonRuleSet = [
      "CrossSiteScripting_BODY", "EC2MetaDataSSRF_BODY", "GenericLFI_BODY", "GenericRFI_BODY", "SizeRestrictions_BODY",
    ]
  }
}

resource "aws_wafv2_web_acl" "this" {
  name  = var.name
  scope = "REGIONAL"

  default_action {
    allow {}
  }

  rule {
    name     = "requests-per-ip"
    priority = 0

    action {
      block {
        custom_response {
          response_code = 429

          response_header {
            name  = "Retry-After"
            value = "60"
          }
        }
      }
    }

    statement {
      rate_based_statement {
        limit              = var.requests_per_ip
        aggregate_key_type = "IP"
      }
    }

    visibility_config {
      cloudwatch_metrics_enabled = true
      metric_name                = "${var.name}-requests-per-ip"
      sampled_requests_enabled   = true
    }
  }

  dynamic "rule" {
    for_each = { for i, group in keys(local.managed_rules) : group => i + 1 }

    content {
      name     = rule.key
      priority = rule.value

      override_action {
        none {}
      }

      statement {
        managed_rule_group_statement {
          vendor_name = "AWS"
          name        = rule.key

          dynamic "rule_action_override" {
            for_each = local.managed_rules[rule.key]

            content {
              name = rule_action_override.value

              action_to_use {
                count {}
              }
            }
          }
        }
      }

      visibility_config {
        cloudwatch_metrics_enabled = true
        metric_name                = "${var.name}-${rule.key}"
        sampled_requests_enabled   = true
      }
    }
  }

  visibility_config {
    cloudwatch_metrics_enabled = true
    metric_name                = var.name
    sampled_requests_enabled   = true
  }
}

resource "aws_wafv2_web_acl_logging_configuration" "this" {
  resource_arn            = aws_wafv2_web_acl.this.arn
  log_destination_configs = [aws_cloudwatch_log_group.this["firewall"].arn]

  redacted_fields {
    single_header {
      name = "authorization" # the API keys
    }
  }

  redacted_fields {
    single_header {
      name = "x-api-key" # the same
    }
  }

  # Only what was blocked: the load balancer's access logs have every request, at a hundredth of the price.
  logging_filter {
    default_behavior = "DROP"

    filter {
      behavior    = "KEEP"
      requirement = "MEETS_ANY"

      condition {
        action_condition {
          action = "BLOCK"
        }
      }
    }
  }
}
