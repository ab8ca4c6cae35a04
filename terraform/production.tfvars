name              = "recognition"
region            = "eu-central-1"
admins            = ["arn:aws:iam::444455556666:role/platform"]
api_cidrs         = ["203.0.113.0/24"]
nat_per_zone      = true
github_repository = "example/image-recognition"
budget            = { usd = 5000, emails = ["platform@example.com"] }
