name                = "recognition"
region              = "eu-central-1"
admins              = ["arn:aws:iam::444455556666:role/platform"]
api_cidrs           = ["203.0.113.0/24"]
nat_per_zone        = true
github_repository   = "example@1234567/image-recognition@7654321"
github_environments = ["production"]
domain              = { name = "recognition.example.com", zone = "example.com" }
gpu_vcpus           = 32 # two nodes of 8, and twice as many during an upgrade
budget              = { usd = 5000, emails = ["platform@example.com"] }
