variable "name" {
  description = "Name of everything: one for each environment in an account, such as recognition-staging."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,24}$", var.name))
    error_message = "3 to 25 of a-z, 0-9 and -, beginning with a letter: it becomes part of bucket and role names."
  }
}

variable "region" {
  description = "AWS region with at least three availability zones, and the GPU families you want."
  type        = string
}

variable "vpc_cidr" {
  description = "Addresses of the VPC, a /16: each zone gets a /19 for pods and a /24 for load balancers."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = endswith(var.vpc_cidr, "/16") && can(cidrhost(var.vpc_cidr, 0))
    error_message = "A /16, such as 10.40.0.0/16."
  }
}

variable "nat_per_zone" {
  description = "A NAT gateway in each zone (a zone's loss takes no other with it) instead of one for all."
  type        = bool
  default     = false
}

variable "kubernetes_version" {
  description = "Of the EKS cluster."
  type        = string
  default     = "1.34"
}

variable "api_cidrs" {
  description = "Who reaches the cluster's API from outside the VPC. Empty: nobody, the API is private."
  type        = list(string)
  default     = []

  validation {
    condition     = !contains(var.api_cidrs, "0.0.0.0/0")
    error_message = "Not the whole Internet: name your networks, or leave it empty."
  }
}

variable "admins" {
  description = "ARNs of the IAM roles whose holders administer the cluster."
  type        = list(string)
}

variable "github_repository" {
  description = "OWNER/NAME of the repository whose `main` and `v*` tags may push images and publish weights."
  type        = string

  validation {
    condition     = can(regex("^[^/*]+/[^/*]+$", var.github_repository))
    error_message = "OWNER/NAME, no wildcard."
  }
}

variable "github_oidc_provider" {
  description = "ARN of the account's provider for GitHub's tokens, if it has one: an account has one at most. Null: made here."
  type        = string
  default     = null
}

variable "requests_per_ip" {
  description = "Requests from one address in five minutes, above which the firewall answers 429."
  type        = number
  default     = 6000
}

variable "budget" {
  description = "US dollars a month, and who is told by e-mail when 80 % are spent or the forecast exceeds them."
  type        = object({ usd = number, emails = list(string) })
}

variable "redis_password" {
  description = "AUTH token of Redis, 16 to 128 letters and digits; the state holds it, so give it as TF_VAR_redis_password."
  type        = string
  sensitive   = true

  validation {
    condition     = can(regex("^[0-9A-Za-z]{16,128}$", var.redis_password))
    error_message = "16 to 128 letters and digits."
  }
}

variable "sagemaker" {
  description = "The image behind an endpoint of SageMaker, beside the cluster: its address in the registry, the type of instance and how many. Null: none."
  type        = object({ image = string, instance_type = string, min_instances = number, max_instances = number })
  default     = null

  validation {
    condition     = var.sagemaker == null ? true : 2 <= var.sagemaker.min_instances && var.sagemaker.min_instances <= var.sagemaker.max_instances
    error_message = "Two instances at least, as one of them is the canary of a deployment, and no more than max_instances."
  }
}

variable "managed_prometheus" {
  description = "A workspace of Amazon Managed Prometheus for the cluster's metrics."
  type        = bool
  default     = false
}
