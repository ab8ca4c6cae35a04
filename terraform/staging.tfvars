name              = "recognition-staging"
region            = "eu-central-1"
admins            = ["arn:aws:iam::111122223333:role/platform"]
api_cidrs         = ["203.0.113.0/24"]
github_repository = "example/image-recognition"
budget            = { usd = 500, emails = ["platform@example.com"] }
