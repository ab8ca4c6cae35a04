# Training and the Model Registry, beside the endpoint: only if `sagemaker` is set. See README.md.
variable "sagemaker_model_package" {
  description = "ARN of an approved package of the Model Registry. The endpoint then serves its image and settings instead of `sagemaker.image` with sagemaker.yaml."
  type        = string
  default     = null
}

# The role of training and of the drift monitor. It cannot write weights that serve: see the weights bucket's policy.
resource "aws_iam_role" "sagemaker_jobs" {
  for_each = local.sagemaker

  name               = "${var.name}-sagemaker-jobs"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["sagemaker"].json
}

resource "aws_iam_role_policy" "sagemaker_jobs" {
  for_each = var.sagemaker == null ? {} : {
    files = data.aws_iam_policy_document.sagemaker_jobs["this"].json
    run   = data.aws_iam_policy_document.sagemaker.json
  }

  name   = each.key
  role   = aws_iam_role.sagemaker_jobs["this"].id
  policy = each.value
}

data "aws_iam_policy_document" "sagemaker_jobs" {
  for_each = aws_s3_bucket.sagemaker

  statement {
    sid       = "Files"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    resources = ["${each.value.arn}/*"]
  }

  statement {
    sid       = "Listed"
    actions   = ["s3:ListBucket", "s3:GetBucketLocation"]
    resources = [each.value.arn]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

resource "aws_sagemaker_model_package_group" "this" {
  for_each = local.sagemaker

  model_package_group_name        = var.name
  model_package_group_description = "Weights that passed their golden set, see models/register.py"
}

locals {
  training = {
    RoleArn                   = one(values(aws_iam_role.sagemaker_jobs)[*].arn)
    AlgorithmSpecification    = { TrainingImage = try(var.sagemaker.image, null), TrainingInputMode = "File" }
    OutputDataConfig          = { S3OutputPath = "${local.sagemaker_files}/models", KmsKeyId = aws_kms_key.this.arn }
    ResourceConfig            = { InstanceType = "ml.c7i.4xlarge", InstanceCount = 1, VolumeSizeInGB = 50 } # the trainer uses CPUs, and AMX
    EnableManagedSpotTraining = true                                                                        # a job that loses its instance goes on from its checkpoint
    StoppingCondition         = { MaxRuntimeInSeconds = 43200, MaxWaitTimeInSeconds = 86400 }

    InputDataConfig = [for channel in ["training", "teacher"] : {
      ChannelName = channel
      DataSource  = { S3DataSource = { S3DataType = "S3Prefix", S3Uri = "${local.sagemaker_files}/data/${channel}/" } }
    }]
  }
}

output "sagemaker_package" {
  description = "What models/register.py enters in the Model Registry, but for the address of the weights."
  value       = var.sagemaker == null ? null : { ModelPackageGroupName = var.name, Image = var.sagemaker.image, Environment = local.container }
}

# A job is no resource: each start is a new one. TRAINING names the checkpoints; a job with the same name goes on from them.
output "train" {
  description = "Starts the training $TRAINING, or goes on with it, and prints the job's ARN. Append --hyper-parameters for other options than models/train.py's defaults."
  value = one([for bucket in aws_s3_bucket.sagemaker : join(" ", [
    "aws sagemaker create-training-job --region ${var.region} --output text --training-job-name \"$TRAINING-$(date +%s)\"",
    "--checkpoint-config \"S3Uri=s3://${bucket.id}/checkpoints/$TRAINING\" --cli-input-json '${jsonencode(local.training)}'",
  ])])
}
