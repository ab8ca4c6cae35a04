# What the policies of all buckets have in common: nothing is read or written without TLS.
data "aws_iam_policy_document" "tls_only" {
  for_each = merge(
    { weights = aws_s3_bucket.weights.arn, access_logs = aws_s3_bucket.access_logs.arn },
    { for bucket in aws_s3_bucket.sagemaker : "sagemaker" => bucket.arn },
  )

  statement {
    sid       = "TLSOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [each.value, "${each.value}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}
