# What jobs read and write: data/, models/, checkpoints/, capture/, drift/. Weights that serve have their own bucket.
resource "aws_s3_bucket" "sagemaker" {
  # checkov:skip=CKV_AWS_21:checkov does not follow `for_each` to the resources below;
  # checkov:skip=CKV_AWS_145:tests/terraform/test_sagemaker.py looks at them instead
  # checkov:skip=CKV2_AWS_6:as above
  # checkov:skip=CKV2_AWS_61:as above
  for_each = local.sagemaker

  bucket = "${var.name}-sagemaker-${local.account}"
}

resource "aws_s3_bucket_versioning" "sagemaker" {
  for_each = local.sagemaker

  bucket = aws_s3_bucket.sagemaker["this"].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "sagemaker" {
  for_each = local.sagemaker

  bucket = aws_s3_bucket.sagemaker["this"].id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.this.arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "sagemaker" {
  for_each = local.sagemaker

  bucket                  = aws_s3_bucket.sagemaker["this"].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_lifecycle_configuration" "sagemaker" {
  for_each = local.sagemaker

  bucket = aws_s3_bucket.sagemaker["this"].id

  dynamic "rule" {
    for_each = { "capture/" = 7, "checkpoints/" = 30 } # days; the drift monitor reads all that is captured

    content {
      id     = trimsuffix(rule.key, "/")
      status = "Enabled"

      filter {
        prefix = rule.key
      }

      expiration {
        days = rule.value
      }
    }
  }

  rule {
    id     = "old-versions"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = 30
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
}

resource "aws_s3_bucket_policy" "sagemaker" {
  for_each = local.sagemaker

  bucket     = aws_s3_bucket.sagemaker["this"].id
  policy     = data.aws_iam_policy_document.tls_only["sagemaker"].json
  depends_on = [aws_s3_bucket_public_access_block.sagemaker]
}
