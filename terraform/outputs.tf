# The commands to run next; see ../kuberay/README.md for the order.
output "kubeconfig" {
  description = "Connects kubectl to the cluster."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name}"
}

output "image" {
  description = "Address of the image in the registry, without tag."
  value       = aws_ecr_repository.this.repository_url
}

output "login" {
  description = "Logs Docker in to the registry; a release does this in the pipeline."
  value       = "aws ecr get-login-password --region ${var.region} | docker login --username AWS --password-stdin ${split("/", aws_ecr_repository.this.repository_url)[0]}"
}

output "publish" {
  description = "Publishes weights and prints the pinned address for `args.weights` or `user_config.weights`."
  value       = "python -m serve_app weights publish models/default.pt s3://${aws_s3_bucket.weights.id}/default.pt"
}

output "redis" {
  description = "Creates the Service through which the head reaches Redis, and the secret with its password."
  value       = "kubectl -n recognition create service externalname recognition-redis --external-name ${aws_elasticache_replication_group.this.primary_endpoint_address} && kubectl -n recognition create secret generic recognition-redis --from-literal=password=\"$TF_VAR_redis_password\""
}

output "certificate" {
  description = "ARN of the certificate, for the annotation alb.ingress.kubernetes.io/certificate-arn of the Ingress; null without `domain`."
  value       = one(aws_acm_certificate_validation.this[*].certificate_arn)
}

output "firewall" {
  description = "ARN of the web ACL, for the annotation alb.ingress.kubernetes.io/wafv2-acl-arn of the Ingress."
  value       = aws_wafv2_web_acl.this.arn
}

output "access_logs" {
  description = "Bucket for the load balancer's access logs, for load-balancer-attributes of the Ingress."
  value       = aws_s3_bucket.access_logs.id
}

output "pipeline_role" {
  description = "ARN of the role that the GitHub workflows assume."
  value       = aws_iam_role.pipeline.arn
}

output "sagemaker" {
  description = "Sends a photo to the SageMaker endpoint and prints the boxes."
  value       = one([for endpoint in aws_sagemaker_endpoint.this : "aws sagemaker-runtime invoke-endpoint --region ${var.region} --endpoint-name ${endpoint.name} --content-type image/jpeg --body fileb://bus.jpg /dev/stdout"])
}

output "remote_write" {
  description = "Value for `prometheus.prometheusSpec.remoteWrite` in kuberay/addons/monitoring.yaml."
  value       = [for workspace in aws_prometheus_workspace.this : { url = "${workspace.prometheus_endpoint}api/v1/remote_write", sigv4 = { region = var.region } }]
}
