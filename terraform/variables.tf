variable "name" {
  description = "Name of all resources, unique for each environment in an account, such as recognition-staging."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,24}$", var.name))
    error_message = "Use 3 to 25 of a-z, 0-9 and -, starting with a letter: the name becomes part of bucket and role names."
  }
}

variable "region" {
  description = "AWS region with at least three availability zones and the GPU families you want."
  type        = string
}

variable "vpc_cidr" {
  description = "Address range of the VPC, a /16. Each zone gets a /19 for pods and a /24 for load balancers."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = endswith(var.vpc_cidr, "/16") && can(cidrhost(var.vpc_cidr, 0))
    error_message = "Use a /16, such as 10.40.0.0/16."
  }
}

variable "nat_per_zone" {
  description = "One NAT gateway in each zone instead of one for all, so that losing a zone does not affect the others."
  type        = bool
  default     = false
}

variable "kubernetes_version" {
  description = "Kubernetes version of the EKS cluster. AWS supports 1.36 until 2027-08-02, then upgrades the cluster by itself."
  type        = string
  default     = "1.36"
}

variable "api_cidrs" {
  description = "Networks that may reach the cluster's API from outside the VPC. If empty, the API is private."
  type        = list(string)
  default     = []

  validation {
    condition     = !contains(var.api_cidrs, "0.0.0.0/0")
    error_message = "Do not open the API to the whole Internet: list your networks, or leave it empty."
  }
}

variable "admins" {
  description = "ARNs of the IAM roles that administer the cluster."
  type        = list(string)
}

variable "batch_prefixes" {
  description = "Where batches read photos and write rows: BUCKET/PREFIX, without s3:// and the last slash. The service's role may list, read and write below each."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for prefix in var.batch_prefixes : can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/*?$]+)+$", prefix))])
    error_message = "Use BUCKET/PREFIX, without s3://, wildcards and a last slash."
  }
}

variable "github_repository" {
  description = "Repository whose workflows may push images and publish weights, as its OIDC tokens name it: OWNER@ID/NAME@ID, or OWNER/NAME if it was created before 2026-07-15 and neither renamed nor moved since."
  type        = string

  validation {
    condition     = can(regex("^([\\w.-]+/[\\w.-]+|[\\w.-]+@[0-9]+/[\\w.-]+@[0-9]+)$", var.github_repository))
    error_message = "Use OWNER@ID/NAME@ID or OWNER/NAME, without wildcards."
  }
}

variable "github_environments" {
  description = "GitHub environments whose jobs on `main` and `v*` tags may assume the pipeline's role. `production` needs reviewers, see CONTRIBUTING.md."
  type        = list(string)

  validation {
    condition     = alltrue([for name in var.github_environments : can(regex("^[\\w-]+$", name))])
    error_message = "Use letters, digits, - and _, without wildcards."
  }
}

variable "github_oidc_provider" {
  description = "ARN of the account's OIDC provider for GitHub, if it exists; an account can have only one. If null, it is created."
  type        = string
  default     = null
}

variable "domain" {
  description = "Name of the service and the public Route 53 zone that contains it: creates the certificate, and the name once load_balancer, the address that the Ingress shows, is set. If null, bring your own."
  type        = object({ name = string, zone = string, load_balancer = optional(string) })
  default     = null

  validation {
    condition     = var.domain == null ? true : endswith(".${var.domain.name}", ".${var.domain.zone}")
    error_message = "The name must be in the zone."
  }
}

variable "gpu_vcpus" {
  description = "vCPUs of G instances that the service needs, counting the second cluster of an upgrade. `apply` warns if the account's quota is lower."
  type        = number
  default     = 0
}

variable "requests_per_ip" {
  description = "Requests from one address in five minutes; above that the firewall answers 429."
  type        = number
  default     = 6000
}

variable "budget" {
  description = "Monthly budget in US dollars, and the e-mail addresses to notify when 80 % is spent or the forecast exceeds it."
  type        = object({ usd = number, emails = list(string) })
}

variable "redis_password" {
  description = "AUTH token of Redis, 16 to 128 letters and digits. Set it as TF_VAR_redis_password. The Terraform state contains it."
  type        = string
  sensitive   = true

  validation {
    condition     = can(regex("^[0-9A-Za-z]{16,128}$", var.redis_password))
    error_message = "Use 16 to 128 letters and digits."
  }
}

variable "sagemaker" {
  description = "SageMaker endpoint beside the cluster: the image's address in the registry, the instance type and the number of instances. If null, none is created."
  type        = object({ image = string, instance_type = string, min_instances = number, max_instances = number })
  default     = null

  validation {
    condition     = var.sagemaker == null ? true : 2 <= var.sagemaker.min_instances && var.sagemaker.min_instances <= var.sagemaker.max_instances
    error_message = "Use at least two instances, because one is the canary of a deployment, and at most max_instances."
  }
}

variable "managed_prometheus" {
  description = "Creates an Amazon Managed Prometheus workspace for the cluster's metrics."
  type        = bool
  default     = false
}
