# Without quota no GPU node starts, and only an event of Karpenter says why. This warns; it does not stop `apply`, because
# AWS may need days to raise a quota.
check "gpu_quota" {
  data "aws_servicequotas_service_quota" "gpu" {
    service_code = "ec2"
    quota_code   = "L-DB2E81BA" # Running On-Demand G and VT instances
  }

  assert {
    condition     = data.aws_servicequotas_service_quota.gpu.value >= var.gpu_vcpus
    error_message = "This account may run ${data.aws_servicequotas_service_quota.gpu.value} vCPUs of G instances, but the service needs ${var.gpu_vcpus}: request more, see README.md."
  }
}
