# Optional: the service's name and its certificate, in a Route 53 zone of this account. Only if `domain` is set.
data "aws_route53_zone" "this" {
  count = var.domain == null ? 0 : 1

  name = var.domain.zone
}

resource "aws_acm_certificate" "this" {
  count = var.domain == null ? 0 : 1

  domain_name       = var.domain.name
  validation_method = "DNS"

  lifecycle {
    create_before_destroy = true # the load balancer uses the old one until its Ingress names the new one
  }
}

# ACM renews the certificate by itself as long as this record exists.
resource "aws_route53_record" "validation" {
  count = var.domain == null ? 0 : 1

  zone_id         = data.aws_route53_zone.this[0].zone_id
  name            = one(aws_acm_certificate.this[0].domain_validation_options).resource_record_name
  type            = one(aws_acm_certificate.this[0].domain_validation_options).resource_record_type
  records         = [one(aws_acm_certificate.this[0].domain_validation_options).resource_record_value]
  ttl             = 300
  allow_overwrite = true # the record of a name is the same for each of its certificates
}

resource "aws_acm_certificate_validation" "this" {
  count = var.domain == null ? 0 : 1

  certificate_arn         = aws_acm_certificate.this[0].arn
  validation_record_fqdns = [aws_route53_record.validation[0].fqdn]
}

data "aws_lb_hosted_zone_id" "this" {}

# EKS creates the load balancer when the Ingress is applied, so its address is only known after the first `apply`.
resource "aws_route53_record" "service" {
  count = try(var.domain.load_balancer, null) == null ? 0 : 1

  zone_id = data.aws_route53_zone.this[0].zone_id
  name    = var.domain.name
  type    = "A"

  alias {
    name                   = var.domain.load_balancer
    zone_id                = data.aws_lb_hosted_zone_id.this.id
    evaluate_target_health = false # there is no second address to fail over to
  }
}
