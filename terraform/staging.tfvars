name                = "recognition-staging"
region              = "eu-central-1"
admins              = ["arn:aws:iam::111122223333:role/platform"]
api_cidrs           = ["203.0.113.0/24"]
github_repository   = "example@1234567/image-recognition@7654321"
github_environments = ["staging", "production"] # production's job copies the image from staging's registry
domain              = { name = "recognition-staging.example.com", zone = "example.com" }
budget              = { usd = 500, emails = ["platform@example.com"] }
