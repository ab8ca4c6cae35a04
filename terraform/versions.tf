terraform {
  required_version = "~> 1.11"

  required_providers {
    aws = { source = "hashicorp/aws", version = ">= 5.100, < 7.0" }
  }

  # State in S3: `terraform init -backend-config=staging.s3.tfbackend`, see README.md.
  backend "s3" {}
}

provider "aws" {
  region = var.region

  default_tags {
    tags = local.tags
  }
}

data "aws_caller_identity" "this" {}

data "aws_partition" "this" {}

data "aws_availability_zones" "available" {
  state = "available"

  filter {
    name   = "opt-in-status" # no Local Zones
    values = ["opt-in-not-required"]
  }
}

locals {
  tags      = { Project = var.name, ManagedBy = "terraform" }
  account   = data.aws_caller_identity.this.account_id
  partition = data.aws_partition.this.partition
  zones     = slice(sort(data.aws_availability_zones.available.names), 0, 3)
}
